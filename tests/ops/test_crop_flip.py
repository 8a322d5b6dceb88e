"""crop_flip equals padding, slicing, flipping and erasing each image, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from implementations import CPP, assert_registered, assert_versions_agree, every_implementation
from torch import Tensor
from torchvision.transforms.v2.functional import erase

from fastadaad import ops


def one_by_one(images: Tensor, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pads, slices and flips one image after the other."""
    height, width = images.shape[1:3]
    samples = [torch.empty(0, images.shape[3], height, width)]
    for index, first_row, first_column, mirrored in zip(indices, top, left, flip, strict=True):
        padded = F.pad(images[index].permute(2, 0, 1).float() / 255, (padding,) * 4)
        crop = padded[None, :, first_row : first_row + height, first_column : first_column + width]
        samples.append(crop.flip(-1) if mirrored else crop)
    return torch.cat(samples)


def erased(x_natural: Tensor, cutout: int, cutout_center: Tensor) -> Tensor:
    """Draws black squares on one sample after the other, on a wide canvas, so that no square needs clipping."""
    canvas = F.pad(x_natural, (cutout,) * 4)
    first = (cutout_center + cutout - cutout // 2).tolist()
    black = torch.zeros(1)
    canvas = torch.stack([erase(x, *corner, cutout, cutout, black) for x, corner in zip(canvas, first, strict=True)])
    return canvas[..., cutout:-cutout, cutout:-cutout]


def every_center(height: int, width: int) -> Tensor:
    """Returns all pixels as int64 [height * width, 2], including borders and corners."""
    return torch.cartesian_prod(torch.arange(height), torch.arange(width))


def public(*arguments) -> Tensor:
    """Calls ops.crop_flip with the positional arguments of the operation."""
    names = "cutout", "cutout_center", "channels_last"
    return ops.crop_flip(*arguments[:6], **dict(zip(names, arguments[6:], strict=True)))


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
def test_equals_slices_bit_for_bit(run, batch, shape, padding):
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


@every_implementation
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 12, 3), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("cutout", [1, 2, 5, 8, 30])
def test_cutout_equals_erasing_bit_for_bit(run, shape, cutout):
    center = every_center(*shape[:2])
    arguments = draw(len(center), shape, 2)
    x_natural = run("crop_flip", *arguments, cutout, center)
    assert x_natural.is_contiguous()
    assert torch.equal(x_natural, erased(one_by_one(*arguments), cutout, center))


@every_implementation
def test_place_of_even_and_odd_squares(run):
    """Side 4 around (2, 3) has rows 0 to 3 and columns 1 to 4; side 3 has rows 1 to 3 and columns 2 to 4."""
    images, zero = torch.full((1, 6, 7, 1), 255, dtype=torch.uint8), torch.zeros(1).long()
    for cutout, rows, columns in ((4, slice(0, 4), slice(1, 5)), (3, slice(1, 4), slice(2, 5))):
        expected = torch.ones(1, 1, 6, 7)
        expected[0, 0, rows, columns] = 0
        x_natural = run("crop_flip", images, zero, zero, zero, zero.bool(), 0, cutout, torch.tensor([[2, 3]]))
        assert torch.equal(x_natural, expected)


@every_implementation
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 12, 3), (1, 5, 2)], ids=str)
@pytest.mark.parametrize("cutout", [0, 3, 4])
def test_channels_last_changes_the_layout_only(run, shape, cutout):
    center = every_center(*shape[:2])
    arguments = (*draw(len(center), shape, 2), cutout, center if cutout else None)
    x_natural = run("crop_flip", *arguments, True)
    assert x_natural.stride() == torch.empty(x_natural.shape, memory_format=torch.channels_last).stride()
    assert torch.equal(x_natural, run("crop_flip", *arguments))


@every_implementation
@pytest.mark.parametrize("channels_last", [False, True])
def test_options_with_any_strides(run, channels_last):
    images, *rest = draw(84, (7, 12, 3), 2)
    planes = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    center = every_center(7, 12)
    expected = run("crop_flip", images, *rest, 5, center)
    for apart in (
        center.t().contiguous().t(),
        center.repeat_interleave(2, 0)[::2],
        center.repeat_interleave(2, 1)[:, ::2],
    ):
        assert torch.equal(run("crop_flip", planes, *rest, 5, apart, channels_last), expected)


@every_implementation
def test_options_without_samples(run):
    x_natural = run("crop_flip", *draw(0, (7, 12, 3), 2), 5, torch.zeros(0, 2).long(), True)
    assert x_natural.shape == (0, 3, 7, 12)
    assert x_natural.is_contiguous(memory_format=torch.channels_last)


OPTIONS = [(0, None, False), (5, torch.tensor([[0, 4], [3, 0], [2, 2]]), False), (2, torch.ones(3, 2).long(), True)]


def test_versions_for_all_processors_agree_bit_for_bit():
    assert_versions_agree("crop_flip", *draw(9, (7, 12, 3), 2))
    assert_versions_agree("crop_flip", *draw(3, (7, 12, 3), 2), *OPTIONS[-1])


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "cutout", "cutout, channels-last"])
def test_registration(options):
    assert_registered("crop_flip", public, *draw(3, (4, 5, 3), 2), *options)


def test_channels_last_survives_compilation():
    arguments = draw(3, (4, 5, 3), 2)
    compiled = torch.compile(ops.crop_flip, fullgraph=True, backend="aot_eager")
    x_natural = compiled(*arguments, channels_last=True)
    assert x_natural.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x_natural, ops.crop_flip(*arguments))


@pytest.mark.parametrize("run", CPP)
@pytest.mark.parametrize(
    ("name", "position", "value", "limit"), [("indices", 1, 11, 11), ("top", 2, 5, 5), ("left", 3, -1, 5)]
)
def test_values_out_of_range(run, name, position, value, limit):
    arguments = draw(3, (4, 4, 1), 2)
    arguments[position][1] = value
    with pytest.raises(RuntimeError, match=rf"{name}\[1\] is {value}: it must be in \[0, {limit}\)"):
        run("crop_flip", *arguments)


CENTER = torch.zeros(3, 2).long()


@pytest.mark.parametrize("run", CPP)
@pytest.mark.parametrize(("column", "value", "limit"), [(0, 4, 4), (0, -1, 4), (1, 6, 6)])
def test_centers_out_of_range(run, column, value, limit):
    center = CENTER.clone()
    center[1, column] = value
    with pytest.raises(RuntimeError, match=rf"cutout_center\[1, {column}\] is {value}: it must be in \[0, {limit}\)"):
        run("crop_flip", *draw(3, (4, 6, 1), 2), 2, center)


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
        ({"cutout": -1}, r"cutout is -1: it must be a number of pixels >= 0"),
        ({"cutout": 2}, r"cutout is 2 without cutout_center: give the rows and columns, int64 \[B, 2\]"),
        ({"cutout_center": CENTER}, r"cutout_center is given and cutout is 0: give the side of the square"),
        ({"cutout": 2, "cutout_center": CENTER.float()}, r"cutout_center is torch.float32: convert it to torch.int64"),
        (
            {"cutout": 2, "cutout_center": CENTER[:2]},
            r"cutout_center has shape \(2, 2\): it must be \(3, 2\), a row and",
        ),
        ({"cutout": 2, "cutout_center": CENTER.to("meta")}, r"cutout_center is on meta, images on cpu: move both"),
    ],
)
def test_wrong_arguments(change, message):
    good = {name: torch.zeros(3).long() for name in ("indices", "top", "left")}
    good |= {"images": torch.zeros(2, 4, 4, 1).byte(), "flip": torch.zeros(3).bool(), "padding": 1}
    with pytest.raises(ValueError, match=message):
        ops.crop_flip(**(good | change))
