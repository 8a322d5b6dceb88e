"""Mixup, CutMix and label smoothing against loops over single images, and in the contract of the engines."""

import copy
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastadaad.data import Augmentation, Mixing, Pipeline, Sampling, make_pipeline
from fastadaad.data.mixing import Mixture, draw_mixture, mix

NUM_CLASSES, HEIGHT, WIDTH, SEED = 4, 6, 9, 3
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (24, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.randint(0, NUM_CLASSES, (24,), generator=GENERATOR)
SETTINGS = {
    "smoothed": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "all": {"label_smoothing": 0.2, "mixup": 1.0, "cutmix": 1.0},
}
BOTH = Mixing(num_classes=NUM_CLASSES, mixup=1.0, cutmix=1.0)


def pipeline(engine: str = "resident", mixing: Mixing | None = BOTH, batch_size: int = 8) -> Pipeline:
    return make_pipeline(
        engine,
        IMAGES,
        LABELS,
        sampling=Sampling(batch_size=batch_size, seed=SEED, drop_last=True),
        augmentation=Augmentation(padding=1, flip=True),
        mixing=mixing,
        num_workers=1,
    )


def mixtures(mixing: Mixing, count: int, height: int = HEIGHT, width: int = WIDTH) -> list[Mixture]:
    return [draw_mixture(mixing, SEED, 2, number, height, width) for number in range(count)]


def by_hand(mixing: Mixing, mixture: Mixture | None, x: Tensor, labels: list[int]) -> tuple[Tensor, list[list[float]]]:
    """Mixes each pixel and each label by itself, in Python's numbers."""
    mixed, targets, half = x.clone(), [], len(labels) // 2
    for i, label in enumerate(labels):
        other = (i - half) % len(labels)
        target = [float(name == label) for name in range(NUM_CLASSES)]
        if mixture is not None:
            for row in range(HEIGHT):
                for column in range(WIDTH):
                    if mixture.box is None:
                        here, there = x[i, :, row, column], x[other, :, row, column]
                        mixed[i, :, row, column] = mixture.weight * here + (1 - mixture.weight) * there
                    elif row in range(HEIGHT)[mixture.box[0]] and column in range(WIDTH)[mixture.box[1]]:
                        mixed[i, :, row, column] = x[other, :, row, column]
            target = [mixture.weight * value for value in target]
            target[labels[other]] += 1 - mixture.weight
        targets.append([(1 - mixing.label_smoothing) * y + mixing.label_smoothing / NUM_CLASSES for y in target])
    return mixed, targets


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_is_mixed_as_its_images_one_by_one(name):
    mixing = Mixing(num_classes=NUM_CLASSES, **SETTINGS[name])
    plain, mixed = (pipeline(mixing=given).epoch(2) for given in (None, mixing))
    for number, ((x, labels), (x_mixed, targets)) in enumerate(zip(plain, mixed, strict=True)):
        mixture = None if name == "smoothed" else draw_mixture(mixing, SEED, 2, number, HEIGHT, WIDTH)
        wanted, wanted_targets = by_hand(mixing, mixture, x, labels.tolist())
        torch.testing.assert_close(x_mixed, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(targets, torch.tensor(wanted_targets), rtol=0, atol=1e-6)
        assert targets.dtype == torch.float32
        assert torch.equal(x_mixed, x) == (name == "smoothed")


def test_weights_of_mixup_have_their_beta_distribution():
    weights = [mixture.weight for mixture in mixtures(Mixing(num_classes=2, mixup=0.4), 2000)]
    assert stats.kstest(weights, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    assert stats.kstest(weights, stats.beta(0.6, 0.6).cdf).pvalue < 0.01  # the test can tell them apart


def test_areas_of_cutmix_have_their_beta_distribution_and_its_centres_are_uniform():
    """Boxes inside the image have the drawn area; a border cuts the others, and the weight is that of the pixels."""
    boxes = mixtures(Mixing(num_classes=2, cutmix=1.0), 2000, 1000, 1000)
    whole = []
    for weight, (rows, columns) in boxes:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert weight == pytest.approx(1 - height * width / 1e6)
        if min(rows.start, columns.start) > 0 and max(rows.stop, columns.stop) < 1000:
            whole.append((height, width))
    assert all(height == width for height, width in whole)
    small = [height for height, width in whole if height < 200]
    # Of Beta(1, 1) a fraction 0.04 of the boxes is shorter than 0.2; those of length s are whole with (1 - s)^2.
    expected = 2000 * (0.2**2 - 4 / 3 * 0.2**3 + 0.2**4 / 2)
    assert len(small) == pytest.approx(expected, abs=4 * expected**0.5)


def test_with_both_each_batch_gets_one_of_them():
    fraction = sum(mixture.box is None for mixture in mixtures(BOTH, 1000)) / 1000
    assert fraction == pytest.approx(0.5, abs=0.06)


def test_draws_depend_on_seed_epoch_and_batch_number():
    places = [(SEED, 2, 0), (SEED, 2, 1), (SEED, 3, 0), (SEED + 1, 2, 0)]
    drawn = [draw_mixture(Mixing(num_classes=2, mixup=1.0), *place, HEIGHT, WIDTH).weight for place in places]
    assert len(set(drawn)) == len(places)


@pytest.mark.parametrize("engine", ["torch", "dali"])
def test_all_engines_mix_the_same_batches(engine):
    for (x, targets), (wanted, wanted_targets) in zip(pipeline(engine).epoch(1), pipeline().epoch(1), strict=True):
        assert torch.equal(x, wanted)
        assert torch.equal(targets, wanted_targets)


def test_any_batch_can_be_the_first():
    whole = list(pipeline().epoch(2))
    for start in (1, 2):
        rest = list(pipeline().epoch(2, start))
        assert len(rest) == len(whole) - start
        for (x, targets), (wanted, wanted_targets) in zip(rest, whole[start:], strict=True):
            assert torch.equal(x, wanted)
            assert torch.equal(targets, wanted_targets)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_have_the_rows_of_a_single_process(num_ranks):
    ranks = []
    for rank in range(num_ranks):
        shard = copy.copy(pipeline())
        shard.sampling = replace(shard.sampling, batch_size=8 // num_ranks, shard=rank, num_shards=num_ranks)
        ranks.append(list(shard.epoch(1)))
    for number, (x, targets) in enumerate(pipeline().epoch(1)):
        for rank in range(num_ranks):
            assert torch.equal(ranks[rank][number][0], x[rank::num_ranks])
            assert torch.equal(ranks[rank][number][1], targets[rank::num_ranks])


def test_the_images_of_the_caller_and_their_layout_stay():
    x = torch.rand(4, 3, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    for mixing in (Mixing(num_classes=NUM_CLASSES, mixup=1.0), Mixing(num_classes=NUM_CLASSES, cutmix=1.0)):
        mixed, targets = mix(mixing, SEED, 0, 5, x, LABELS[:4])
        assert torch.equal(x, before)
        assert not torch.equal(mixed, x)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
