"""Batch of augmented fp32 pixels from uint8 images, in one pass."""

import torch
from torch import Tensor

from . import checks
from .registration import register


def crop_flip(
    images: Tensor,
    indices: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    padding: int,
    *,
    cutout: int = 0,
    cutout_center: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Sample b is image indices[b], zero-padded, cropped at (top[b], left[b]), mirrored if flip[b], divided by 255.

    Args:
        images: uint8 [M, H, W, C], any strides.
        indices: int64 [B], each in [0, M).
        top: First row of each crop in the padded image: int64 [B], each in [0, 2 padding].
        left: First column of each crop, like top.
        flip: bool [B]; True mirrors the columns.
        padding: Black pixels added on each side of an image.
        cutout: Side in pixels of a black square over the finished sample, 0 for none (DeVries and Taylor, "Improved
            regularization of convolutional neural networks with cutout", 2017). Its rows are [row - cutout // 2,
            row - cutout // 2 + cutout), clipped to the sample; the columns follow the same rule.
        cutout_center: int64 [B, 2], (row, column) in [0, H) and [0, W); given if and only if cutout > 0.
        channels_last: Returns torch.channels_last memory instead of contiguous memory.

    Returns:
        x_natural, fp32 [B, C, H, W] in [0, 1].

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value.
        RuntimeError: An entry of indices, top, left or cutout_center is out of range (the C++ kernel checks this).
    """
    if images.dim() != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}: it must be [M, H, W, C]")
    if indices.dim() != 1:
        raise ValueError(f"indices has shape {tuple(indices.shape)}: it must be [B]")
    checks.check_dtype("images", images, torch.uint8)
    checks.check_dtype("indices", indices, torch.int64)
    checks.check_device("indices", indices, "images", images)
    for name, tensor, dtype in (("top", top, torch.int64), ("left", left, torch.int64), ("flip", flip, torch.bool)):
        checks.check_dtype(name, tensor, dtype)
        checks.check_shape(name, tensor, indices.shape, "that of indices")
        checks.check_device(name, tensor, "images", images)
    if padding < 0:
        raise ValueError(f"padding is {padding}: it must be a number of pixels >= 0")
    _check_cutout(cutout, cutout_center, images, indices)
    return _op(images, indices, top, left, flip, padding, cutout, cutout_center, channels_last)


def _check_cutout(cutout: int, cutout_center: Tensor | None, images: Tensor, indices: Tensor) -> None:
    if cutout < 0:
        raise ValueError(f"cutout is {cutout}: it must be a number of pixels >= 0")
    if cutout_center is None:
        if cutout > 0:
            raise ValueError(f"cutout is {cutout} without cutout_center: give the rows and columns, int64 [B, 2]")
        return
    if cutout == 0:
        raise ValueError("cutout_center is given and cutout is 0: give the side of the square, or no cutout_center")
    checks.check_dtype("cutout_center", cutout_center, torch.int64)
    checks.check_shape("cutout_center", cutout_center, (len(indices), 2), "a row and a column for each of indices")
    checks.check_device("cutout_center", cutout_center, "images", images)


def crop_flip_ref(
    images: Tensor,
    indices: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    padding: int,
    cutout: int = 0,
    cutout_center: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Reference of crop_flip in plain torch: gathers pixels of the unpadded image, black elsewhere."""
    height, width = images.shape[1:3]
    out_rows, out_columns = (torch.arange(size, device=images.device) for size in (height, width))
    rows = top[:, None] - padding + out_rows
    columns = left[:, None] - padding + torch.where(flip[:, None], width - 1 - out_columns, out_columns)
    visible = _rectangle(_within(rows, 0, height), _within(columns, 0, width))
    if cutout_center is not None:
        first_row, first_column = (cutout_center - cutout // 2)[..., None].unbind(1)
        visible &= ~_rectangle(_within(out_rows, first_row, cutout), _within(out_columns, first_column, cutout))
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pixels = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]] * visible[..., None]
    return (pixels.permute(0, 3, 1, 2).float() / 255).clone(memory_format=_memory_format(channels_last))


def _within(places: Tensor, first: Tensor | int, size: int) -> Tensor:
    """Returns a bool mask of the places in [first, first + size)."""
    return (places >= first) & (places < first + size)


def _rectangle(rows: Tensor, columns: Tensor) -> Tensor:
    """Returns bool [B, H, W] from the rows [B, H] and the columns [B, W] of a rectangle."""
    return rows[:, :, None] & columns[:, None, :]


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake(
    images: Tensor,
    indices: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    padding: int,
    cutout: int = 0,
    cutout_center: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    _, height, width, channels = images.shape
    shape = indices.shape[0], channels, height, width
    memory_format = _memory_format(channels_last)
    return torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=memory_format)


_op = register(
    "crop_flip(Tensor images, Tensor indices, Tensor top, Tensor left, Tensor flip, int padding, int cutout=0, "
    "Tensor? cutout_center=None, bool channels_last=False) -> Tensor",
    crop_flip_ref,
    _fake,
)
