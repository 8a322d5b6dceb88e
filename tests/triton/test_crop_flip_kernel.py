"""crop_flip's Triton kernels against padding, slicing, mirroring and erasing one sample at a time, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from fastadaad.kernels.triton.crop_flip import crop_flip
from torch import Tensor


def _one_by_one(images: Tensor, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    height, width = images.shape[1:3]
    padded = F.pad(images.cpu().permute(0, 3, 1, 2).float() / 255, [padding] * 4)
    samples = []
    for index, y, x, mirrored in zip(indices.tolist(), top.tolist(), left.tolist(), flip.tolist(), strict=True):
        crop = padded[index, :, y : y + height, x : x + width]
        samples.append(crop.flip(-1) if mirrored else crop)
    return torch.stack(samples)


def _erased(x_natural: Tensor, cutout: int, cutout_center: Tensor) -> Tensor:
    """Draws the squares on a wide canvas, so that no square needs clipping."""
    canvas = F.pad(x_natural, [cutout] * 4)
    for sample, (y, x) in zip(canvas, (cutout_center.cpu() + cutout - cutout // 2).tolist(), strict=True):
        sample[:, y : y + cutout, x : x + cutout] = 0
    return canvas[..., cutout:-cutout, cutout:-cutout]


def _draw(shape: tuple[int, ...], padding: int, device: torch.device) -> list[Tensor]:
    """Returns images, indices, top, left, flip of nine samples; every corner of the padded image is cropped."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    indices = torch.randint(shape[0], (9,), generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, 9), generator=generator)
    top[:4], left[:4] = torch.tensor([0, 0, 2, 2]) * padding, torch.tensor([0, 2, 0, 2]) * padding
    flip = torch.arange(9) % 2 == 0
    return [x.to(device) for x in (images, indices, top, left, flip)]


def _centers(height: int, width: int, device: torch.device) -> Tensor:
    """Returns nine centers: the corners, the middles of the borders and of the image."""
    rows, columns = (torch.tensor([0, size // 2, size - 1], device=device) for size in (height, width))
    return torch.cartesian_prod(rows, columns)


# (5, 21, 18, 3) takes two programs per sample.
_shapes = pytest.mark.parametrize(
    ("shape", "padding"), [((7, 8, 6, 3), 2), ((3, 28, 28, 1), 0), ((5, 21, 18, 3), 4), ((2, 1, 1, 1), 1)], ids=str
)


@_shapes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bitwise_as_one_by_one(shape: tuple[int, ...], padding: int, layout: torch.memory_format, device: torch.device):
    arguments = _draw(shape, padding, device)
    result = crop_flip(*arguments, padding, channels_last=layout == torch.channels_last)
    assert result.is_contiguous(memory_format=layout)
    assert torch.equal(result.cpu(), _one_by_one(*arguments, padding))


@_shapes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("cutout", [1, 5, 8, 60])
def test_cutout_bitwise_as_erased(
    shape: tuple[int, ...], padding: int, cutout: int, layout: torch.memory_format, device: torch.device
):
    arguments, centers = _draw(shape, padding, device), _centers(*shape[1:3], device)
    result = crop_flip(*arguments, padding, cutout, centers, layout == torch.channels_last)
    assert result.is_contiguous(memory_format=layout)
    assert torch.equal(result.cpu(), _erased(_one_by_one(*arguments, padding), cutout, centers))


def test_every_byte_is_divided_exactly(device: torch.device):
    images = torch.arange(256, dtype=torch.uint8, device=device).reshape(1, 16, 16, 1)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    result = crop_flip(images, zero, zero, zero, zero.bool(), 0)
    assert torch.equal(result.cpu().flatten(), torch.arange(256).float() / 255)


def test_strided_arguments(device: torch.device):
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8, device=device).reshape(2, 3, 4, 5).permute(0, 2, 3, 1)
    offsets = torch.arange(8, device=device)
    arguments = images, offsets[:2], offsets[::2][:2], offsets[1::2][:2], (offsets % 2 == 0)[::3][:2]
    expected = _one_by_one(*arguments, 2)
    assert torch.equal(crop_flip(*arguments, 2).cpu(), expected)
    centers = offsets[:4].reshape(2, 2).t()
    assert torch.equal(crop_flip(*arguments, 2, 2, centers).cpu(), _erased(expected, 2, centers))


def test_no_samples(device: torch.device):
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    arguments = images, none, none, none, none.bool(), 2
    assert tuple(crop_flip(*arguments).shape) == (0, 3, 4, 5)
    assert tuple(crop_flip(*arguments, 2, none.reshape(0, 2), True).shape) == (0, 3, 4, 5)
