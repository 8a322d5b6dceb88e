"""Batches from uint8 images: gather, zero padding, crop, mirror and scaling to [0, 1] in one pass."""

import torch
import triton
import triton.language as tl

_BLOCK_PIXELS = 1024  # eight output pixels for each of 128 threads: two 128-bit stores
_NUM_WARPS = 4


@triton.jit
def _crop_flip_kernel(
    images_ptr,  # [M, H, W, C] uint8 contiguous
    indices_ptr,  # [B] int64
    top_ptr,  # [B] int64
    left_ptr,  # [B] int64
    flip_ptr,  # [B] bool
    out_ptr,  # [B, C, H, W] fp32 contiguous
    channels,
    height,
    width,
    padding,
    BLOCK_PIXELS: tl.constexpr,
):
    """BLOCK_PIXELS output pixels of one sample for each program; each is one byte read and one fp32 written."""
    sample = tl.program_id(0).to(tl.int64)
    num_pixels = channels * height * width
    pixels = tl.program_id(1) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixels < num_pixels
    channel = pixels // (height * width)
    row = pixels // width % height
    column = pixels % width
    column = tl.where(tl.load(flip_ptr + sample), width - 1 - column, column)
    row += tl.load(top_ptr + sample).to(tl.int32) - padding
    column += tl.load(left_ptr + sample).to(tl.int32) - padding
    on_image = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    image_ptr = images_ptr + tl.load(indices_ptr + sample) * num_pixels
    values = tl.load(image_ptr + (row * width + column) * channels + channel, mask=on_image, other=0)
    # Correctly rounded: the product with 1/255 would differ from torch's quotient in the last bit.
    values = tl.div_rn(values.to(tl.float32), 255.0)
    tl.store(out_ptr + sample * num_pixels + pixels, values, mask=inside)


def crop_flip(
    images: torch.Tensor,
    indices: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    flip: torch.Tensor,
    padding: int,
) -> torch.Tensor:
    """x_natural [B, C, H, W] fp32 from images [M, H, W, C] uint8; indices, top, left: [B] int64; flip: [B] bool."""
    _, height, width, channels = images.shape
    x_natural = torch.empty((len(indices), channels, height, width), dtype=torch.float32, device=images.device)
    if x_natural.numel() == 0:
        return x_natural
    per_sample = [tensor.contiguous() for tensor in (indices, top, left, flip)]
    grid = (len(indices), triton.cdiv(channels * height * width, _BLOCK_PIXELS))
    with torch.cuda.device_of(images):
        _crop_flip_kernel[grid](
            images.contiguous(), *per_sample, x_natural, channels, height, width, padding, _BLOCK_PIXELS,
            num_warps=_NUM_WARPS,
        )  # fmt: skip
    return x_natural
