"""The dali engine against Pillow, torchvision and the other engines; test_pipeline.py checks the contract."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from odd_images import write_broken, write_readable
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from fastadaad.data import Augmentation, DataError, ImageFiles, ResidentPipeline, Sampling
from fastadaad.data.augmentation import draw
from fastadaad.data.engines import dali as dali_engine
from fastadaad.data.engines.dali import DaliPipeline
from fastadaad.data.engines.torch_loader import TorchPipeline
from fastadaad.data.image_decoding import decode
from fastadaad.data.resized_crop import center_window, resized_crop_windows
from fastadaad.runtime.workers import LostWorkerError

NUM_PHOTOS = 7
PHOTO_SIZE = 96  # side of the resized photos
# DALI keeps fractions between the two passes of a resize, Pillow rounds. The filters are also cut differently at the
# border, which is visible if an edge in the image meets it.
INNER_ERROR, BORDER_ERROR, MEAN_ERROR = 1, 16, 0.2  # of 255


def photo(seed: int) -> Image.Image:
    """Draws smooth noise of six octaves with sharp shapes on it, 200 to 299 pixels per side."""
    torch_generator, generator = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(200, 300, 2))
    coarse = (torch.randn(1, 3, 2**octave, 2**octave, generator=torch_generator) for octave in range(1, 7))
    waves = [
        0.6**octave * F.interpolate(noise, (height, width), mode="bicubic") for octave, noise in enumerate(coarse, 1)
    ]
    pixels = (120 + 60 * sum(waves)[0]).clamp(0, 255).byte().permute(1, 2, 0)
    image = Image.fromarray(pixels.numpy())
    for _ in range(4):
        left, top, size = (int(number) for number in generator.integers(0, 200, 3))
        color = tuple(int(number) for number in generator.integers(0, 256, 3))
        ImageDraw.Draw(image).ellipse((left, top, left + size, top + size), fill=color)
    return image


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> ImageFiles:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(NUM_PHOTOS):
        photo(seed).save(folder / f"{seed}.jpg", quality=90, progressive=seed == 1, subsampling=0 if seed == 2 else 2)
    names = [f"{seed}.jpg" for seed in range(NUM_PHOTOS)]
    return ImageFiles(root=folder, names=names, image_size=PHOTO_SIZE, center_share=0.875)


def pipeline(images, engine=DaliPipeline, shuffle=False, batch_size=3, drop_last=False, **options):
    sampling = Sampling(batch_size=batch_size, seed=3, shuffle=shuffle, drop_last=drop_last)
    return engine(images, torch.arange(len(images)), sampling=sampling, num_workers=1, **options)


def whole_epoch(batches) -> tuple[Tensor, Tensor]:
    x_natural, names = zip(*batches, strict=True)
    return torch.cat(x_natural), torch.cat(names)


def assert_resized_alike(x_natural: Tensor, expected: Tensor) -> None:
    difference = 255 * (x_natural - expected).abs()
    assert difference.mean() < MEAN_ERROR
    assert difference[..., 1:-1, 1:-1].max() < INNER_ERROR + 0.01
    assert difference.max() < BORDER_ERROR + 0.01


@pytest.mark.parametrize("num_channels", [1, 3])
def test_batches_of_arrays_equal_those_of_the_resident_engine(num_channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 9, 13, num_channels), dtype=torch.uint8, generator=generator)
    options = {"augmentation": Augmentation(padding=3, flip=True, cutout=4), "sampling": Sampling(batch_size=6, seed=1)}
    for layout in (images, images.flip(0).transpose(1, 2)):
        resident = whole_epoch(ResidentPipeline(layout, torch.arange(20), **options).epoch(2))
        found = whole_epoch(DaliPipeline(layout, torch.arange(20), num_workers=2, **options).epoch(2))
        assert all(torch.equal(*parts) for parts in zip(found, resident, strict=True))


def test_decoded_jpegs_equal_those_of_pillow(photos, tmp_path):
    """Isolates the decoder by a center square that is not resized."""
    side = 144  # nine blocks of 16 pixels, so that cutting costs nothing
    for name in photos.names:
        decode(photos.root / name).crop((0, 0, side, side)).save(tmp_path / name, quality=90)
    files = ImageFiles(root=tmp_path, names=photos.names, image_size=side)
    x_natural, _ = whole_epoch(pipeline(files).epoch(0))
    expected = torch.stack([TF.pil_to_tensor(decode(files.path(index))) for index in range(NUM_PHOTOS)])
    assert torch.equal(x_natural, expected * (1 / torch.tensor(255.0)))


@pytest.mark.parametrize("min_crop_scale", [1.0, 0.08])
def test_windows_match_resized_crops_of_torchvision(photos, min_crop_scale):
    augmentation = Augmentation(min_crop_scale=min_crop_scale, flip=True)
    x_natural, names = whole_epoch(pipeline(photos, shuffle=True, augmentation=augmentation).epoch(5))
    draws = draw(augmentation, 3, 5, names, PHOTO_SIZE, PHOTO_SIZE)
    expected = []
    for number, index in enumerate(names.tolist()):
        image = decode(photos.path(index))
        if draws.resized_crop is None:
            window = center_window(image.height, image.width, photos.center_share)
        else:
            size, numbers = np.array([[image.height, image.width]]), draws.resized_crop[number : number + 1].numpy()
            window = resized_crop_windows(size, numbers, min_crop_scale)[0].tolist()
        crop = TF.pil_to_tensor(TF.resized_crop(image, *window, [PHOTO_SIZE, PHOTO_SIZE])).float() / 255
        expected.append(crop.flip(-1) if draws.flip[number] else crop)
    assert sorted(names.tolist()) == list(range(NUM_PHOTOS))
    assert_resized_alike(x_natural, torch.stack(expected))


def test_augmentations_are_applied_in_the_order_of_the_torch_engine(photos):
    augmentation = Augmentation(min_crop_scale=0.5, padding=9, flip=True, cutout=30)
    (x_natural, names), (expected, expected_names) = (
        whole_epoch(pipeline(photos, engine, augmentation=augmentation).epoch(1))
        for engine in (DaliPipeline, TorchPipeline)
    )
    assert torch.equal(names, expected_names)
    difference = 255 * (x_natural - expected).abs()
    assert difference.mean() < MEAN_ERROR
    assert difference.max() < BORDER_ERROR + 0.01  # the old border may be inside after the crop


def with_colors(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Computes fp64 [3, H, W] in [0, 255] without rounding in between."""

    def grey(image: Tensor) -> Tensor:
        return (image * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(0)

    image = (brightness * image).clamp(0, 255)
    image = (contrast * image + (1 - contrast) * grey(image).mean()).clamp(0, 255)
    return (saturation * image + (1 - saturation) * grey(image)).clamp(0, 255)


def test_colours_are_multiplied(photos):
    """Allows for rounding to 8 bits after each factor of at most 1.4, which adds up to 0.5, then 1.4, then 3."""
    plain, _ = whole_epoch(pipeline(photos).epoch(1))
    augmentation = Augmentation(color_jitter=0.4)
    jittered, names = whole_epoch(pipeline(photos, augmentation=augmentation).epoch(1))
    factors = draw(augmentation, 3, 1, names, PHOTO_SIZE, PHOTO_SIZE).color
    expected = torch.stack(
        [with_colors(255 * x.double(), *row) for x, row in zip(plain, factors.tolist(), strict=True)]
    )
    difference = (255 * jittered.double() - expected).abs()
    assert (expected - 255 * plain).abs().amax((1, 2, 3)).min() > 10
    assert difference.max() < 3
    assert difference.mean() < 0.5


def test_odd_files_are_read_as_by_the_torch_engine(tmp_path):
    names = [path.name for path in write_readable(tmp_path) if path.suffix != ".gif"]
    files = ImageFiles(root=tmp_path, names=names, image_size=24)
    (x_natural, _), (expected, _) = (
        whole_epoch(pipeline(files, engine).epoch(0)) for engine in (DaliPipeline, TorchPipeline)
    )
    for image, as_expected, name in zip(x_natural, expected, names, strict=True):
        rounded = "sixteen_bit" in name  # DALI rounds 16 bits to 8, Pillow keeps the upper 8
        difference = (255 * (image - as_expected)).abs().max()
        assert difference < (1.01 if rounded else 0.01), name


RESUME = """
import sys, torch
sys.path[:0] = {folders!r}
from test_dali import Augmentation, ImageFiles, Path, pipeline, whole_epoch
files = ImageFiles(root=Path({root!r}), names={names!r}, image_size=32)
run = pipeline(files, shuffle=True, batch_size=2, augmentation=Augmentation(min_crop_scale=0.1, flip=True))
torch.save(whole_epoch(run.epoch(1, 2)), {path!r})
"""


@pytest.mark.slow
def test_a_new_process_resumes_in_the_middle_of_an_epoch(photos, tmp_path):
    files = ImageFiles(root=photos.root, names=photos.names, image_size=32)
    augmentation = Augmentation(min_crop_scale=0.1, flip=True)
    run = pipeline(files, shuffle=True, batch_size=2, augmentation=augmentation)
    left_early = run.epoch(0)
    next(left_early)
    begun = run.epoch(1)
    for _ in range(2):
        next(begun)
    path = str(tmp_path / "rest.pt")
    folders = [str(folder) for folder in Path(__file__).parents[:2]]  # of this file and of odd_images
    script = RESUME.format(folders=folders, root=str(files.root), names=list(files.names), path=path)
    subprocess.run([sys.executable, "-c", script], check=True)
    for resumed, going_on in zip(torch.load(path), whole_epoch(begun), strict=True):
        assert torch.equal(resumed, going_on)


def test_epochs_stopped_early_leave_no_threads(photos):
    run = pipeline(photos, batch_size=1)
    next(run.epoch(0))
    num_threads = len(os.listdir("/proc/self/task"))
    for epoch in range(5):
        next(run.epoch(epoch))
    assert len(os.listdir("/proc/self/task")) == num_threads


def odd_files(folder: Path, **options) -> tuple[ImageFiles, list[str]]:
    """Returns readable and broken files in turn, and the names of the files that DALI must refuse.

    It must refuse an animation, but not floating-point pixels, which DALI takes to be in [0, 1].
    """
    readable, broken = write_readable(folder), write_broken(folder)
    (folder / "floats.tif").unlink()
    refused = [path.name for path in broken if path.name != "floats.tif"] + ["animated.gif", "missing.jpg"]
    names = sorted({path.name for path in readable} | set(refused))
    return ImageFiles(root=folder, names=names, image_size=16, **options), refused


def test_each_unreadable_file_is_named_in_one_line(tmp_path):
    _, refused = odd_files(tmp_path)
    for name in refused:
        files = ImageFiles(root=tmp_path, names=["rgb.png", name], image_size=16)
        with pytest.raises(DataError) as caught:
            list(pipeline(files).epoch(0))
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name} "), message
        assert "\n" not in message


def test_unreadable_files_are_skipped_and_listed(tmp_path):
    files, refused = odd_files(tmp_path, on_error="skip")
    run = pipeline(files, shuffle=True, batch_size=8)
    sampling = Sampling(batch_size=8, seed=3)
    for epoch in (0, 1):  # the second epoch skips the files that the first one found
        batches = [batch.tolist() for batch in sampling.batches(epoch, len(files))]
        expected = [[index for index in batch if files.names[index] not in refused] for batch in batches]
        assert [names.tolist() for _, names in run.epoch(epoch)] == [batch for batch in expected if batch]
    assert {path.name for path in run.skipped} == set(refused)
    assert run.skipped[tmp_path / "animated.gif"].endswith(
        "cannot be decoded by DALI: convert it, or set data.engine=torch"
    )
    assert "is a web page" in run.skipped[tmp_path / "web_page.jpg"]


def test_the_rest_of_a_batch_keeps_its_labels(tmp_path):
    write_broken(tmp_path)
    for number in range(4):
        Image.new("RGB", (20, 20), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    names = ["0.png", "empty.jpg", "1.png", "text.png", "2.png", "3.png"]
    run = pipeline(ImageFiles(root=tmp_path, names=names, image_size=20, on_error="skip"), batch_size=4)
    batches = [(x_natural[:, 0, 5, 5].mul(255).round().tolist(), found.tolist()) for x_natural, found in run.epoch(0)]
    assert batches == [([0, 50], [0, 2]), ([100, 150], [4, 5])]


def test_two_iterators_of_a_pipeline_do_not_disturb_each_other(tmp_path):
    files, _ = odd_files(tmp_path, on_error="skip")
    alone = whole_epoch(pipeline(files, shuffle=True).epoch(1))
    run = pipeline(files, shuffle=True)
    begun = run.epoch(1)
    first = next(begun)
    list(run.epoch(0))  # finds all unreadable files, some of which DALI was already requested to read
    for part, expected in zip(whole_epoch([first, *begun]), alone, strict=True):
        assert torch.equal(part, expected)


def test_a_training_batch_without_a_readable_file_is_an_error(tmp_path):
    broken = [path.name for path in write_broken(tmp_path) if path.name != "floats.tif"]
    files = ImageFiles(root=tmp_path, names=broken, image_size=16, on_error="skip")
    assert list(pipeline(files).epoch(0)) == []
    with pytest.raises(DataError, match="no image of a batch can be read: "):
        list(pipeline(files, drop_last=True).epoch(0))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_jpeg_without_its_end_is_refused_even_if_dali_decodes_it(photos, tmp_path, monkeypatch, on_error):
    """Covers GPU decoders that accept a truncated JPEG: here a file with bytes after its end, which Pillow refuses."""
    content = photos.path(0).read_bytes()
    for name, extra in (("whole.jpg", b""), ("longer.jpg", b"\0\0\0")):
        (tmp_path / name).write_bytes(content + extra)
    files = ImageFiles(root=tmp_path, names=["whole.jpg", "longer.jpg"], image_size=16, on_error=on_error)
    run = pipeline(files)
    ((x_natural, _),) = run.epoch(0)
    assert torch.equal(x_natural[0], x_natural[1])

    def without_end(path: Path) -> Image.Image:
        if path.name == "longer.jpg":
            raise DataError(f"{path} is truncated")
        return decode(path)

    monkeypatch.setattr(dali_engine, "decode", without_end)
    if on_error == "raise":
        with pytest.raises(DataError, match=r"longer.jpg is truncated"):
            list(run.epoch(0))
    else:
        ((x_natural, names),) = run.epoch(0)
        assert names.tolist() == [0]
        assert list(run.skipped) == [tmp_path / "longer.jpg"]


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({}, r"data.engine=dali needs NVIDIA DALI: missing \(optional\): pip install 'fastadaad\[dali\]'"),
        ({"nvidia-dali": "1.0"}, r"needs NVIDIA DALI: nvidia-dali is an empty decoy: pip uninstall nvidia-dali"),
    ],
)
def test_dali_that_is_not_installed_is_named_with_its_package(photos, monkeypatch, versions, message):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "nvidia.dali" else find_spec(name, *rest)
    )

    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ValueError, match=message):
        pipeline(photos)


def test_a_pipeline_that_stops_for_another_reason_is_one_line(photos, monkeypatch):
    from fastadaad.data.engines import dali_graph

    def stop(*arguments) -> None:
        raise RuntimeError("Critical error in pipeline:\nbad allocation")

    monkeypatch.setattr(dali_graph, "run", stop)
    with pytest.raises(
        LostWorkerError, match=r"^NVIDIA DALI has stopped \(Critical error in pipeline: bad allocation\): "
    ):
        whole_epoch(pipeline(photos).epoch(0))
