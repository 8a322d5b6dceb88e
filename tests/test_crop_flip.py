"""crop_flip: bit for bit what padding, slicing and flipping each image gives."""

import pytest
import torch
import torch.nn.functional as F
from implementations import CPP, assert_registered, assert_versions_agree, every_implementation
from torch import Tensor

from fastadaad import ops


def one_by_one(images: Tensor, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad, slice, flip: one image after the other."""
    height, width = images.shape[1:3]
    samples = [torch.empty(0, images.shape[3], height, width)]
    for index, first_row, first_column, mirrored in zip(indices, top, left, flip, strict=True):
        padded = F.pad(images[index].permute(2, 0, 1).float() / 255, (padding,) * 4)
        crop = padded[None, :, first_row : first_row + height, first_column : first_column + width]
        samples.append(crop.flip(-1) if mirrored else crop)
    return torch.cat(samples)


def draw(batch: int, shape: tuple[int, ...], padding: int):
    generator = torch.Generator().manual_seed(batch + padding)
    images = torch.randint(0, 256, (11, *shape), dtype=torch.uint8, generator=generator)
    indices = torch.randint(0, 11, (batch,), generator=generator)
    top, left = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
    return images, indices, top, left, torch.rand(batch, generator=generator) < 0.5, padding


@every_implementation
@pytest.mark.parametrize("batch", [0, 1, 129])
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 12, 3), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 4, 13])
def test_bit_for_bit_what_slices_give(run, batch, shape, padding):
    arguments = draw(batch, shape, padding)
    x_natural = run("crop_flip", *arguments)
    assert x_natural.dtype == torch.float32
    assert x_natural.is_contiguous()
    assert torch.equal(x_natural, one_by_one(*arguments))


@every_implementation
def test_all_byte_values_and_corners(run):
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    corners = torch.tensor([0, 0, 4, 8, 8])
    arguments = (images, torch.zeros(5).long(), corners, corners.flip(0), torch.tensor([0, 1, 0, 1, 0]).bool(), 4)
    assert torch.equal(run("crop_flip", *arguments), one_by_one(*arguments))


@every_implementation
def test_any_strides(run):
    images, indices, top, left, flip, padding = draw(9, (7, 12, 3), 2)
    planes = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    apart = [values.repeat_interleave(2)[::2] for values in (indices, top, left, flip)]
    expected = run("crop_flip", images, indices, top, left, flip, padding)
    assert torch.equal(run("crop_flip", planes, *apart, padding), expected)


def test_versions_for_all_processors_agree_bit_for_bit():
    assert_versions_agree("crop_flip", *draw(9, (7, 12, 3), 2))


def test_registration():
    assert_registered("crop_flip", ops.crop_flip, *draw(3, (4, 5, 3), 2))


@pytest.mark.parametrize("run", CPP)
@pytest.mark.parametrize(
    ("name", "position", "value", "limit"), [("indices", 1, 11, 11), ("top", 2, 5, 5), ("left", 3, -1, 5)]
)
def test_values_out_of_range(run, name, position, value, limit):
    arguments = draw(3, (4, 4, 1), 2)
    arguments[position][1] = value
    with pytest.raises(RuntimeError, match=rf"{name}\[1\] is {value}: it must be in \[0, {limit}\)"):
        run("crop_flip", *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 4, 1).byte()}, r"images has shape \(4, 4, 1\): it must be \[M, H, W, C\]"),
        ({"images": torch.zeros(2, 4, 4, 1)}, r"images is torch.float32: convert it to torch.uint8"),
        ({"indices": torch.zeros(3, 1).long()}, r"indices has shape \(3, 1\): it must be \[B\]"),
        ({"indices": torch.zeros(3)}, r"indices is torch.float32: convert it to torch.int64"),
        ({"top": torch.zeros(2).long()}, r"top has shape \(2,\): it must be \(3,\), that of indices"),
        ({"flip": torch.zeros(3)}, r"flip is torch.float32: convert it to torch.bool"),
        ({"left": torch.zeros(3, device="meta").long()}, r"left is on meta, images on cpu: move both"),
        ({"padding": -1}, r"padding is -1: it must be a number of pixels >= 0"),
    ],
)
def test_wrong_arguments(change, message):
    good = {name: torch.zeros(3).long() for name in ("indices", "top", "left")}
    good |= {"images": torch.zeros(2, 4, 4, 1).byte(), "flip": torch.zeros(3).bool(), "padding": 1}
    with pytest.raises(ValueError, match=message):
        ops.crop_flip(**(good | change))
