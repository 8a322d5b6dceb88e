"""Batches from uint8 images: gather, zero padding, crop, mirror, black square and scaling to [0, 1] in one pass."""

import torch
import triton
import triton.language as tl

_BLOCK_PIXELS = 1024  # eight output pixels for each of 128 threads: two 128-bit stores
_NUM_WARPS = 4


@triton.jit
def _place(pixels, height, width, column_stride):
    """Channel, row and column of output pixels, given their positions in memory order."""
    # All divisors are positive: division takes fewer instructions if the compiler knows this.
    tl.assume(height > 0)
    tl.assume(width > 0)
    tl.assume(height * width > 0)
    tl.assume(column_stride > 0)
    # Neighbours in memory are columns (column_stride 1) or the channels of a pixel (column_stride C).
    places = pixels // column_stride
    channel = places // (height * width) + pixels % column_stride
    return channel, places // width % height, places % width


@triton.jit
def _source(row, column, top_ptr, left_ptr, flip_ptr, width, padding):
    """Row and column of the unpadded image for an output row and column; outside the image: padding."""
    column = tl.where(tl.load(flip_ptr), width - 1 - column, column)
    return row + (tl.load(top_ptr).to(tl.int32) - padding), column + (tl.load(left_ptr).to(tl.int32) - padding)


@triton.jit
def _read(image_ptr, channel, row, column, shown, channels, height, width):
    """Pixels of an image as fp32 in [0, 1]; pixels outside the image or not shown are black and not read."""
    shown = shown & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    values = tl.load(image_ptr + (row * width + column) * channels + channel, mask=shown, other=0)
    # Correctly rounded: the product with 1/255 would differ from torch's quotient in the last bit.
    return tl.div_rn(values.to(tl.float32), 255.0)


@triton.jit
def _crop_flip_kernel(
    images_ptr,  # [M, H, W, C] uint8 contiguous
    indices_ptr,  # [B] int64
    top_ptr,  # [B] int64
    left_ptr,  # [B] int64
    flip_ptr,  # [B] bool
    out_ptr,  # [B, C, H, W] fp32, contiguous or channels-last
    channels,
    height,
    width,
    padding,
    column_stride,  # of out
    BLOCK_PIXELS: tl.constexpr,
):
    """Each program writes BLOCK_PIXELS output pixels of one sample; per pixel it reads one byte and writes one fp32."""
    sample = tl.program_id(0).to(tl.int64)
    num_pixels = channels * height * width
    pixels = tl.program_id(1) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixels < num_pixels
    channel, row, column = _place(pixels, height, width, column_stride)
    row, column = _source(row, column, top_ptr + sample, left_ptr + sample, flip_ptr + sample, width, padding)
    image_ptr = images_ptr + tl.load(indices_ptr + sample) * num_pixels
    values = _read(image_ptr, channel, row, column, inside, channels, height, width)
    tl.store(out_ptr + sample * num_pixels + pixels, values, mask=inside)


@triton.jit
def _crop_flip_cutout_kernel(
    images_ptr,  # [M, H, W, C] uint8 contiguous
    indices_ptr,  # [B] int64
    top_ptr,  # [B] int64
    left_ptr,  # [B] int64
    flip_ptr,  # [B] bool
    cutout_center_ptr,  # [B, 2] int64 contiguous
    out_ptr,  # [B, C, H, W] fp32, contiguous or channels-last
    channels,
    height,
    width,
    padding,
    cutout,
    column_stride,  # of out
    BLOCK_PIXELS: tl.constexpr,
):
    """_crop_flip_kernel with a black square over the sample."""
    sample = tl.program_id(0).to(tl.int64)
    num_pixels = channels * height * width
    pixels = tl.program_id(1) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixels < num_pixels
    channel, row, column = _place(pixels, height, width, column_stride)
    center_ptr = cutout_center_ptr + 2 * sample
    square_row = row - (tl.load(center_ptr).to(tl.int32) - cutout // 2)
    square_column = column - (tl.load(center_ptr + 1).to(tl.int32) - cutout // 2)
    outside_square = (square_row < 0) | (square_row >= cutout) | (square_column < 0) | (square_column >= cutout)
    row, column = _source(row, column, top_ptr + sample, left_ptr + sample, flip_ptr + sample, width, padding)
    image_ptr = images_ptr + tl.load(indices_ptr + sample) * num_pixels
    values = _read(image_ptr, channel, row, column, inside & outside_square, channels, height, width)
    tl.store(out_ptr + sample * num_pixels + pixels, values, mask=inside)


def crop_flip(
    images: torch.Tensor,
    indices: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    flip: torch.Tensor,
    padding: int,
    cutout: int = 0,
    cutout_center: torch.Tensor | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """x_natural [B, C, H, W] fp32 from images [M, H, W, C] uint8; indices, top, left: [B] int64; flip: [B] bool.

    cutout_center: [B, 2] int64 if cutout > 0.
    """
    _, height, width, channels = images.shape
    shape = len(indices), channels, height, width
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x_natural = torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=memory_format)
    if x_natural.numel() == 0:
        return x_natural
    tensors = [tensor.contiguous() for tensor in (images, indices, top, left, flip)]
    sizes = channels, height, width, padding
    column_stride = x_natural.stride(3)
    grid = (len(indices), triton.cdiv(channels * height * width, _BLOCK_PIXELS))
    with torch.cuda.device_of(images):
        if cutout_center is None:
            _crop_flip_kernel[grid](*tensors, x_natural, *sizes, column_stride, _BLOCK_PIXELS, num_warps=_NUM_WARPS)
        else:
            tensors.append(cutout_center.contiguous())
            _crop_flip_cutout_kernel[grid](
                *tensors, x_natural, *sizes, cutout, column_stride, _BLOCK_PIXELS, num_warps=_NUM_WARPS
            )
    return x_natural
