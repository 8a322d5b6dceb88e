"""Contract of the engines: equal batches from all engines, as a pure function of the position."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from fastadaad.data import Augmentation, Pipeline, Sampling, make_pipeline
from fastadaad.data.augmentation import draw
from fastadaad.data.hashing import epoch_order

NUM_IMAGES = 23
IMAGES = torch.randint(0, 256, (NUM_IMAGES, 6, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES = torch.arange(NUM_IMAGES)  # used as labels, they identify the images
AUGMENTATION = Augmentation(padding=2, flip=True, cutout=3)
ENGINES = ["resident", "torch", "dali"]


def pipeline(engine: str, images=IMAGES, labels=NAMES, **options) -> Pipeline:
    """Makes a pipeline; the options are those of Pipeline and of Sampling."""
    defaults = {"augmentation": AUGMENTATION, "batch_size": 5, "seed": 3}
    options = defaults | options
    sampling = {name: options.pop(name) for name in Sampling.__dataclass_fields__ if name in options}
    return make_pipeline(engine, images, labels, sampling=Sampling(**sampling), num_workers=1, **options)


def whole_epoch(batches) -> tuple[torch.Tensor, torch.Tensor]:
    x_natural, labels = zip(*batches, strict=True)
    return torch.cat(x_natural), torch.cat(labels)


def with_torchvision(image: torch.Tensor, top: int, left: int, flip: bool, center: list[int]) -> torch.Tensor:
    """Applies AUGMENTATION with torchvision: uint8 [H, W, C] to fp32 [C, H, W]."""
    height, width, _ = image.shape
    out = TF.crop(TF.pad(image.permute(2, 0, 1), [2]), top, left, height, width)
    out = (TF.horizontal_flip(out) if flip else out).float() / 255
    row, column = (middle - 1 for middle in center)  # first row and column of a square of side 3
    out[:, max(row, 0) : row + 3, max(column, 0) : column + 3] = 0
    return out


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_match_torchvision_with_the_same_draws(engine):
    x_natural, names = whole_epoch(pipeline(engine).epoch(4))
    assert torch.equal(names, epoch_order(3, 4, NUM_IMAGES))
    draws = draw(AUGMENTATION, 3, 4, names, 6, 9)
    rows = zip(*(part.tolist() for part in (draws.top, draws.left, draws.flip, draws.cutout_center)), strict=True)
    expected = torch.stack([with_torchvision(IMAGES[i], *row) for i, row in zip(names, rows, strict=True)])
    assert x_natural.dtype == torch.float32
    assert torch.equal(x_natural, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_visits_every_image_once_in_order_and_unchanged(engine):
    x_natural, names = whole_epoch(pipeline(engine, shuffle=False, augmentation=None).epoch(0))
    assert torch.equal(names, NAMES)
    assert torch.equal(x_natural, IMAGES.permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("batch_size", "num_shards"), [(1, 1), (7, 1), (23, 2), (50, 1), (4, 3), (2, 23), (3, 30)])
def test_every_image_is_evaluated_once_for_any_batch_size_and_number_of_shards(engine, batch_size, num_shards):
    whole = pipeline(engine, shuffle=False, augmentation=None, batch_size=batch_size)
    shards = [whole.shard(index, num_shards) for index in range(num_shards)]
    names = [label.item() for shard in shards for _, labels in shard.epoch(0) for label in labels]
    assert sorted(names) == NAMES.tolist()
    assert sum(shard.num_images for shard in shards) == NUM_IMAGES


@pytest.mark.parametrize("engine", ENGINES)
def test_shards_partition_the_set_in_two_epochs(engine):
    shards = [pipeline(engine).shard(index, 2) for index in range(2)]
    seen = []
    for epoch in (0, 1):
        first, second = (whole_epoch(shard.epoch(epoch))[1].tolist() for shard in shards)
        assert not set(first) & set(second)
        assert sorted(first + second) == NAMES.tolist()
        seen.append(set(first))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_any_batch_can_be_the_first(engine):
    full = list(pipeline(engine).epoch(2))
    again = pipeline(engine)
    for start_batch in (0, 3, len(full)):
        tail = list(again.epoch(2, start_batch))
        assert len(tail) == len(full) - start_batch
        for (x_natural, names), (x_full, names_full) in zip(tail, full[start_batch:], strict=True):
            assert torch.equal(names, names_full)
            assert torch.equal(x_natural, x_full)


RESUME = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_pipeline import pipeline, whole_epoch
epochs = [pipeline({engine!r}).epoch(1, 2), pipeline({engine!r}).epoch(2)]
torch.save([whole_epoch(batches) for batches in epochs], {path!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_process_resumes_in_the_middle_of_an_epoch(engine, tmp_path):
    run = pipeline(engine)
    begun = run.epoch(1)
    for _ in range(2):
        next(begun)
    path = tmp_path / "rest.pt"
    script = RESUME.format(folder=str(Path(__file__).parent), engine=engine, path=str(path))
    subprocess.run([sys.executable, "-c", script], check=True)
    for resumed, going_on in zip(torch.load(path), (begun, run.epoch(2)), strict=True):
        for part, whole in zip(resumed, whole_epoch(going_on), strict=True):
            assert torch.equal(part, whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_epoch_stopped_early_does_not_change_the_next(engine):
    run = pipeline(engine)
    left_early = run.epoch(0)
    next(left_early)
    x_natural, names = whole_epoch(run.epoch(1))
    x_fresh, names_fresh = whole_epoch(pipeline(engine).epoch(1))
    assert torch.equal(names, names_fresh)
    assert torch.equal(x_natural, x_fresh)


def test_pixels_of_an_image_do_not_depend_on_the_batch_size_or_earlier_epochs():
    def by_name(batches):
        x_natural, names = whole_epoch(batches)
        return x_natural[names.argsort()]

    used = pipeline("resident", batch_size=4)
    list(used.epoch(0))
    assert torch.equal(by_name(used.epoch(1)), by_name(pipeline("resident", batch_size=11).epoch(1)))
    assert not torch.equal(by_name(used.epoch(0)), by_name(used.epoch(1)))


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_select_the_images(engine):
    samples = torch.tensor([20, 3, 11])
    _, names = whole_epoch(pipeline(engine, samples=samples, shuffle=False).epoch(0))
    assert names.tolist() == [20, 3, 11]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.float()}, r"images are torch.float32 \[23, 6, 9, 3\]: give uint8 \[M, H, W, C\]"),
        ({"images": IMAGES[0]}, r"images are torch.uint8 \[6, 9, 3\]: give uint8"),
        ({"labels": NAMES[1:]}, r"labels are torch.int64 \[22\]: give int64 \[23\], one per image"),
        ({"labels": NAMES.int()}, r"labels are torch.int32 \[23\]: give int64"),
        ({"batch_size": 24, "drop_last": True}, "batch_size 24 exceeds the 23 images .*: choose batch_size <= 23"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        pipeline("torch", **changes)


@pytest.mark.parametrize("start_batch", [-1, 6])
def test_an_impossible_position_is_named_immediately(start_batch):
    with pytest.raises(ValueError, match=rf"start_batch {start_batch} is outside 0\.\.5"):
        pipeline("resident").epoch(0, start_batch)


@pytest.mark.parametrize("engine", ["resident", "dali"])
@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_an_engine_without_auto_augment_refuses_it(engine, name):
    with pytest.raises(
        ValueError, match=rf"Pipeline does not run {name}: set data.engine=torch, or leave auto_augment"
    ):
        pipeline(engine, augmentation=Augmentation(auto_augment=name))


@pytest.mark.parametrize("option", [{"color_jitter": 0.1}, {"min_crop_scale": 0.5}])
def test_augmentation_of_files_is_refused_for_arrays(option):
    with pytest.raises(ValueError, match=r"color_jitter and min_crop_scale are for image files, .*: leave them out"):
        pipeline("torch", augmentation=Augmentation(**option))
