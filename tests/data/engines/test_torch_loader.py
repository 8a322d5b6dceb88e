"""The torch engine on image files: against Pillow alone, and with unreadable files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import write_broken, write_readable
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision.transforms import v2

from fastadaad.data import Augmentation, DataError, ImageFiles, Sampling
from fastadaad.data.augmentation import draw
from fastadaad.data.engines.torch_loader import TorchPipeline
from fastadaad.data.resized_crop import resized_crop_windows

SIZE = 16
NUM_FILES = 7


@pytest.fixture
def files(tmp_path) -> ImageFiles:
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((50 + 10 * number, 60), Image.Resampling.BICUBIC).save(
            tmp_path / f"{number}.png"
        )
    return ImageFiles(root=tmp_path, names=[f"{number}.png" for number in range(NUM_FILES)], image_size=SIZE)


def batches(files: ImageFiles, num_workers: int = 0, epoch: int = 0, batch_size: int = 3, drop_last=False, **options):
    labels = torch.arange(len(files))
    sampling = Sampling(batch_size=batch_size, shuffle=False, seed=1, drop_last=drop_last)
    pipeline = TorchPipeline(files, labels, sampling=sampling, num_workers=num_workers, **options)
    return pipeline, list(pipeline.epoch(epoch))


def pixels(image: Image.Image) -> Tensor:
    """Converts to fp32 [C, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32)) / 255


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_resized_crops_match_pillow_at_the_drawn_windows(files, num_workers):
    augmentation = Augmentation(min_crop_scale=0.1, flip=True)
    _, found = batches(files, num_workers, epoch=2, augmentation=augmentation)
    draws = draw(augmentation, 1, 2, torch.arange(NUM_FILES), SIZE, SIZE)
    expected = []
    for number in range(NUM_FILES):
        with Image.open(files.path(number)) as image:
            size = np.array([[image.height, image.width]])
            window = resized_crop_windows(size, draws.resized_crop[number : number + 1].numpy(), 0.1)
            top, left, height, width = window[0].tolist()
            crop = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        expected.append(pixels(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws.flip[number] else crop))
    assert torch.equal(torch.cat([x_natural for x_natural, _ in found]), torch.stack(expected))
    assert torch.equal(torch.cat([labels for _, labels in found]), torch.arange(NUM_FILES))


def test_without_random_crops_the_center_square_is_taken(files):
    ((x_natural, _),) = batches(files, batch_size=NUM_FILES)[1]
    with Image.open(files.path(2)) as image:  # 60 rows, 70 columns
        expected = image.crop((5, 0, 65, 60)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert torch.equal(x_natural[2], pixels(expected))


def test_colours_are_multiplied_as_by_pillow(files):
    ((plain, _),) = batches(files, batch_size=NUM_FILES)[1]
    augmentation = Augmentation(color_jitter=0.4)
    ((jittered, _),) = batches(files, batch_size=NUM_FILES, augmentation=augmentation)[1]
    color = draw(augmentation, 1, 0, torch.arange(NUM_FILES), SIZE, SIZE).color
    for image, factors, found in zip(plain, color.tolist(), jittered, strict=True):
        enhanced = Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())
        for kind, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
        ):
            enhanced = kind(enhanced).enhance(factor)
        # Both round after each of the three.
        torch.testing.assert_close(found, pixels(enhanced), rtol=0, atol=3 / 255)


AUTO_AUGMENTS = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", AUTO_AUGMENTS)
def test_auto_augment_is_torchvisions_between_flip_and_cutout_with_the_drawn_seeds(files, name, num_workers):
    augmentation = Augmentation(flip=True, auto_augment=name, cutout=6)
    draws = draw(augmentation, 1, 2, torch.arange(NUM_FILES), SIZE, SIZE)
    ((plain, _),) = batches(files, batch_size=NUM_FILES)[1]
    expected = []
    for image, flip, seed, center in zip(plain, draws.flip, draws.auto_augment, draws.cutout_center, strict=True):
        image = (255 * (image.flip(2) if flip else image)).round().byte()
        torch.manual_seed(seed.item())
        image = AUTO_AUGMENTS[name](image).float() / 255
        top, left = (center - 3).tolist()
        image[:, max(top, 0) : top + 6, max(left, 0) : left + 6] = 0
        expected.append(image)
    _, found = batches(files, num_workers, epoch=2, augmentation=augmentation)
    assert torch.equal(torch.cat([x_natural for x_natural, _ in found]), torch.stack(expected))


@pytest.mark.parametrize("name", AUTO_AUGMENTS)
def test_auto_augment_is_a_function_of_the_position_and_leaves_torchs_generator_alone(files, name):
    def of_epoch(epoch: int) -> list[Tensor]:
        return [x_natural for x_natural, _ in pipeline.epoch(epoch)]

    pipeline, first = batches(files, augmentation=Augmentation(auto_augment=name))
    assert not torch.equal(first[0][0], of_epoch(1)[0])
    (again, _), *_ = pipeline.epoch(0, start_batch=2)
    assert torch.equal(again, first[2][0])
    torch.manual_seed(0)
    of_epoch(0)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    batches(files)  # a DataLoader draws one number per epoch
    assert torch.equal(state, torch.get_rng_state())


def odd_files(folder: Path, **options) -> tuple[ImageFiles, dict[Path, str]]:
    """Returns readable and broken files in turn, and the errors of the broken ones."""
    readable, broken = write_readable(folder), write_broken(folder)
    names = sorted(path.name for path in (*readable, *broken))
    return ImageFiles(root=folder, names=names, image_size=SIZE, **options), broken


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_file_is_named(tmp_path, num_workers):
    files, _ = odd_files(tmp_path)
    with pytest.raises(DataError, match=r"^\S*/\S+ .*: replace it, or set data.on_error=skip to leave such files out"):
        batches(files, num_workers)


def test_unreadable_files_are_skipped_and_listed(tmp_path):
    files, broken = odd_files(tmp_path, on_error="skip")
    pipeline, found = batches(files, batch_size=20)
    assert set(pipeline.skipped) == set(broken)
    for path, reason in pipeline.skipped.items():
        assert str(path) in reason
        assert broken[path] in reason
    seen = torch.cat([labels for _, labels in found]).tolist()
    assert seen == [number for number in range(len(files)) if files.path(number) not in broken]
    assert all(len(x_natural) == len(labels) for x_natural, labels in found)


def test_a_training_batch_without_a_readable_file_is_an_error(tmp_path):
    broken = write_broken(tmp_path)
    files = ImageFiles(root=tmp_path, names=[path.name for path in broken], image_size=SIZE, on_error="skip")
    assert batches(files)[1] == []
    with pytest.raises(DataError, match=r"no image of a batch can be read: \S+/truncated.jpg cannot be decoded"):
        batches(files, drop_last=True)
