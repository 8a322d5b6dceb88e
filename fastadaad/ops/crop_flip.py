"""uint8 images -> a batch of augmented fp32 pixels, in one pass."""

import torch
from torch import Tensor

from . import checks
from .registration import register


def crop_flip(images: Tensor, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Sample b is image indices[b], zero-padded, cropped at (top[b], left[b]) and mirrored where flip[b]; pixel / 255.

    images: uint8 [M, H, W, C], any strides, padded by `padding` on each side; indices: int64 [B], each in [0, M);
    top, left: int64 [B], each in [0, 2 padding]; flip: bool [B]. Returns x_natural fp32 [B, C, H, W], contiguous, in
    [0, 1]. Raises ValueError for arguments that do not fit, and on the CPU also for values out of range.
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
    return _op(images, indices, top, left, flip, padding)


def crop_flip_ref(images: Tensor, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """crop_flip in plain torch: gather with rows and columns inside the unpadded image, black elsewhere."""
    height, width = images.shape[1:3]
    offsets = torch.arange(width, device=images.device)
    rows = top[:, None] - padding + torch.arange(height, device=images.device)
    columns = left[:, None] - padding + torch.where(flip[:, None], width - 1 - offsets, offsets)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pixels = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]] * inside[..., None]
    return (pixels.permute(0, 3, 1, 2).float() / 255).clone(memory_format=torch.contiguous_format)


def _fake(images: Tensor, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    _, height, width, channels = images.shape
    return images.new_empty((indices.shape[0], channels, height, width), dtype=torch.float32)


_op = register(
    "crop_flip(Tensor images, Tensor indices, Tensor top, Tensor left, Tensor flip, int padding) -> Tensor",
    crop_flip_ref,
    _fake,
)
