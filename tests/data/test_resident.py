"""The resident pipeline against torchvision's pad, crop and flip, and as a pure function of its position."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from fastadaad.data import ResidentPipeline
from fastadaad.data.augmentation import augmentation, epoch_order

NUM_IMAGES = 23
IMAGES = torch.randint(0, 256, (NUM_IMAGES, 6, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES = torch.arange(NUM_IMAGES)  # as labels, they tell which image is where


def pipeline(**options) -> ResidentPipeline:
    return ResidentPipeline(IMAGES, NAMES, **({"batch_size": 5, "seed": 3} | options))


def with_torchvision(image: torch.Tensor, top: int, left: int, flip: bool, padding: int) -> torch.Tensor:
    """uint8 [H, W, C] to fp32 [C, H, W]."""
    height, width, _ = image.shape
    out = TF.crop(TF.pad(image.permute(2, 0, 1), [padding]), top, left, height, width)
    return (TF.horizontal_flip(out) if flip else out).float() / 255


def whole_epoch(batches) -> tuple[torch.Tensor, torch.Tensor]:
    x_natural, labels = zip(*batches, strict=True)
    return torch.cat(x_natural), torch.cat(labels)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (2, True)])
def test_pixels_equal_torchvisions(padding, flip):
    x_natural, names = whole_epoch(pipeline(padding=padding, flip=flip).epoch(4))
    assert torch.equal(names, epoch_order(3, 4, NUM_IMAGES))
    corners = zip(*(part.tolist() for part in augmentation(3, 4, names, padding, flip)), strict=True)
    expected = [with_torchvision(IMAGES[i], *corner, padding) for i, corner in zip(names, corners, strict=True)]
    torch.testing.assert_close(x_natural, torch.stack(expected), rtol=0, atol=0)


def test_evaluation_visits_every_image_once_in_order_and_unchanged():
    x_natural, names = whole_epoch(pipeline(shuffle=False).epoch(0))
    assert torch.equal(names, NAMES)
    assert torch.equal(x_natural, IMAGES.permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_batch_sizes_and_length(drop_last, sizes):
    batches = pipeline(drop_last=drop_last)
    assert [len(names) for _, names in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)


def test_length_where_the_batch_size_divides_the_set():
    assert len(pipeline(batch_size=NUM_IMAGES)) == len(pipeline(batch_size=NUM_IMAGES, drop_last=True)) == 1


def test_any_batch_can_be_the_first():
    options = {"padding": 2, "flip": True}
    full = list(pipeline(**options).epoch(2))
    for start_batch in range(len(full) + 1):
        tail = list(pipeline(**options).epoch(2, start_batch))
        assert len(tail) == len(full) - start_batch
        for (x_natural, names), (x_full, names_full) in zip(tail, full[start_batch:], strict=True):
            assert torch.equal(names, names_full)
            assert torch.equal(x_natural, x_full)


def test_pixels_of_an_image_do_not_depend_on_the_batch_size_or_earlier_epochs():
    def by_name(batches):
        x_natural, names = whole_epoch(batches)
        return x_natural[names.argsort()]

    options = {"padding": 2, "flip": True}
    used = pipeline(**options, batch_size=4)
    list(used.epoch(0))
    assert torch.equal(by_name(used.epoch(1)), by_name(pipeline(**options, batch_size=11).epoch(1)))
    assert not torch.equal(by_name(used.epoch(0)), by_name(used.epoch(1)))


def test_strided_images_are_read_correctly():
    strided = ResidentPipeline(IMAGES.flip(0).transpose(1, 2), NAMES, batch_size=NUM_IMAGES, shuffle=False)
    (x_natural, _), *_ = strided.epoch(0)
    assert torch.equal(x_natural, IMAGES.flip(0).permute(0, 3, 2, 1).float() / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.float()}, r"images are torch.float32 \[23, 6, 9, 3\]: give uint8 \[M, H, W, C\]"),
        ({"images": IMAGES[0]}, r"images are torch.uint8 \[6, 9, 3\]: give uint8"),
        ({"labels": NAMES[1:]}, r"labels are torch.int64 \[22\]: give int64 \[23\], one per image"),
        ({"labels": NAMES.int()}, r"labels are torch.int32 \[23\]: give int64"),
        ({"batch_size": 0}, "batch_size 0 is not positive: give at least 1"),
        ({"batch_size": 24, "drop_last": True}, "batch_size 24 exceeds the 23 images .*: choose batch_size <= 23"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ResidentPipeline(**({"images": IMAGES, "labels": NAMES, "batch_size": 5} | changes))


@pytest.mark.parametrize("start_batch", [-1, 6])
def test_impossible_position_is_named_at_once(start_batch):
    with pytest.raises(ValueError, match=rf"start_batch {start_batch} is outside 0\.\.5"):
        pipeline().epoch(0, start_batch)
