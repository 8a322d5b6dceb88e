"""Pipelines of a configuration: splits, files, extra images, and skipped files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from stopped_runs import long_run, run_until, trainer
from tiny_runs import tiny_run
from torch import Tensor

from fastadaad.config_io import override
from fastadaad.data import Dataset, Pipeline
from fastadaad.run_config import RunConfig
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.training import data as training_data_module
from fastadaad.training.data import training_data
from fastadaad.training.evaluation import evaluate_on_test_set
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

CPU = torch.device("cpu")


def numbered_dataset(name, **options) -> Dataset:
    """200 training and 50 test images whose pixels encode their number; four classes of unequal size."""

    def images(first: int, count: int) -> Tensor:
        numbers = torch.arange(first, first + count)
        return torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8).reshape(count, 1, 2, 1)

    labels = (torch.arange(200) % 10).clamp(max=3)
    return Dataset(
        name=name,
        train_images=images(0, 200),
        train_labels=labels,
        test_images=images(1000, 50),
        test_labels=torch.arange(50) % 4,
        class_names=("a", "b", "c", "d"),
    )


def numbers_in(pipeline: Pipeline) -> list[int]:
    high, low = pipeline.images[pipeline.samples].reshape(-1, 2).long().unbind(1)
    return (256 * high + low).tolist()


def test_the_splits_are_disjoint_balanced_and_a_function_of_the_seed(monkeypatch):
    monkeypatch.setattr(training_data_module, "load_dataset", numbered_dataset)
    config = tiny_run()
    config = replace(config, data=replace(config.data, num_samples=100, validation_size=40, batch_size=30))
    config = replace(config, evaluation=replace(config.evaluation, num_images=20))
    data = training_data(config, CPU)
    train, validation = numbers_in(data.train), numbers_in(data.validation)
    assert (len(set(train)), len(set(validation))) == (100, 40)
    assert not set(train) & set(validation)
    assert set(train) | set(validation) <= set(range(200))
    assert numbers_in(data.test) == list(range(1000, 1020))
    assert data.validation.labels.bincount().tolist() == [4, 4, 4, 28]  # fractions 0.1, 0.1, 0.1, 0.7
    assert data.train.labels.bincount().tolist() == [10, 10, 10, 70]
    assert data.num_classes == 4
    for pipeline in (data.train, data.validation):
        assert [(number % 10 if number % 10 < 3 else 3) for number in numbers_in(pipeline)] == (
            pipeline.labels.tolist()
        )
    again = training_data(config, CPU)
    assert numbers_in(again.train) == train
    other = training_data(replace(config, seed=1), CPU)
    assert set(numbers_in(other.validation)) != set(validation)


def test_a_short_evaluation_of_a_set_sorted_by_class_has_every_class(monkeypatch):
    def sorted_dataset(name, **options) -> Dataset:
        dataset = numbered_dataset(name)
        return replace(dataset, test_labels=dataset.test_labels.sort().values)

    monkeypatch.setattr(training_data_module, "load_dataset", sorted_dataset)
    config = tiny_run()
    config = replace(config, data=replace(config.data, num_samples=100, validation_size=40, batch_size=30))
    config = replace(config, evaluation=replace(config.evaluation, num_images=8))
    test = training_data(config, CPU).test
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]  # 13, 13, 12 and 12 of 50
    assert numbers_in(test) == [1000 + 50 * index // 8 for index in range(8)]


def test_a_batch_that_cannot_be_split_over_the_ranks_is_refused():
    with pytest.raises(ValueError, match="batch_size is 64, the images of a step of all 3 ranks: give a multiple"):
        training_data(tiny_run(), CPU, ProcessGroup(rank=1, size=3))


def mixing_run(**settings) -> RunConfig:
    return tiny_run(data=replace(tiny_run().data, **settings))


def test_an_odd_number_of_images_per_rank_cannot_be_mixed_in_pairs():
    config = mixing_run(mixup=0.2, batch_size=66)
    with pytest.raises(ValueError, match=r"batch_size is 66, 33 images per rank.*in pairs, give a multiple of 4"):
        training_data(config, CPU, ProcessGroup(rank=1, size=2))
    training_data(config, CPU)


def test_only_training_batches_are_mixed():
    data = training_data(mixing_run(mixup=1.0, label_smoothing=0.1), CPU)
    plain = training_data(tiny_run(), CPU)
    for split in ("validation", "test"):
        (x, labels), (wanted, wanted_labels) = (next(getattr(of, split).epoch(0)) for of in (data, plain))
        assert torch.equal(x, wanted)
        assert torch.equal(labels, wanted_labels)
    x, labels = next(data.train.epoch(0))
    assert (labels.dtype, labels.shape) == (torch.float32, (64, 10))
    assert not torch.equal(x, next(plain.train.epoch(0))[0])


def write_tree(root: Path, per_class: int = 20, test_per_class: int = 5) -> None:
    """Two classes of noisy images, one dark and one bright."""
    generator = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", test_per_class)):
        for name, brightness in (("dark", 60), ("bright", 190)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(brightness - 50, brightness + 50, (12, 10 + number % 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")


def of_folder(root: Path, *overrides: str) -> RunConfig:
    return override(
        tiny_run(),
        [
            *("data.name=folder", f"data.root={root}", "data.image_size=8", "data.num_samples=null"),
            *("data.validation_size=8", "data.batch_size=16", "evaluation.num_images=null", "optim.epochs=1"),
            *("data.num_workers=1", "data.padding=0", *overrides),
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "dali"])
def test_a_run_on_image_files_learns_dark_from_bright(tmp_path, engine):
    write_tree(tmp_path / "tree")
    config = of_folder(tmp_path / "tree", f"data.engine={engine}", "optim.epochs=6", "data.min_crop_scale=0.5")
    run = Trainer(config, tmp_path / "run", Console(quiet=True))
    assert run.data.dataset.class_names == ("bright", "dark")
    run.train()
    natural, _ = evaluate_on_test_set(run.state.student, config, run.data, Console(quiet=True), "")
    assert (natural.num_images, natural.accuracy) == (10, 1.0)
    assert all(0 <= row["data_wait"] <= 1 for row in read_metrics(tmp_path / "run"))


@pytest.mark.slow
def test_skipped_files_are_listed_at_the_end_and_beside_the_accuracy(tmp_path):
    write_tree(tmp_path / "tree")
    broken = [tmp_path / "tree" / "train" / "dark" / "003.png", tmp_path / "tree" / "val" / "bright" / "002.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    config = of_folder(
        tmp_path / "tree", "data.engine=torch", "data.on_error=skip", "data.validation_size=2", "data.batch_size=19"
    )
    console = Console(record=True, width=200)
    run = Trainer(config, tmp_path / "run", console)
    run.train()
    assert "image files that could not be decoded and were skipped: 1, see" in console.export_text()
    assert (tmp_path / "run" / "skipped_images.txt").read_text().startswith(f"{broken[0]} cannot be decoded")
    natural, _ = evaluate_on_test_set(run.state.student, config, run.data, Console(quiet=True), "")
    assert natural.num_images == 9
    assert natural.notes[0].startswith(
        f"image files of the data set that are left out: 1, the first: {broken[1]} cannot be decoded"
    )


def test_a_file_that_cannot_be_read_ends_the_run_with_its_name(tmp_path):
    write_tree(tmp_path / "tree")
    path = tmp_path / "tree" / "train" / "dark" / "003.png"
    path.write_bytes(b"")
    config = of_folder(tmp_path / "tree", "data.engine=torch", "data.validation_size=0")
    with pytest.raises(ValueError, match=rf"^{path} is empty: replace it, or set data.on_error=skip"):
        Trainer(config, tmp_path / "run", Console(quiet=True)).train()


def write_extra(path: Path, num_images: int = 400) -> np.ndarray:
    images = np.random.default_rng(1).integers(0, 256, (num_images, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=images, label=np.arange(num_images) % 10)
    return images


def test_extra_images_have_their_fraction_of_each_batch(tmp_path):
    extra = write_extra(tmp_path / "extra.npz")
    config = override(tiny_run(), [f"data.extra_images={tmp_path / 'extra.npz'}", "data.extra_share=0.75"])
    config = replace(config, data=replace(config.data, padding=0))
    plain, mixed = (training_data(some, CPU) for some in (tiny_run(), config))
    assert len(mixed.train) == len(plain.train) == 4
    assert len(mixed.validation.samples) == 100  # only the data set's own images
    known = {image.tobytes(): index for index, image in enumerate(extra)}
    for x_natural, labels in mixed.train.epoch(0):
        pixels = (255 * x_natural).round().byte().permute(0, 2, 3, 1).numpy()
        found = [known.get(image.tobytes()) for image in pixels]
        assert sum(index is not None for index in found) == 48  # 0.75 of 64
        assert all(label == index % 10 for label, index in zip(labels, found, strict=True) if index is not None)


def test_extra_images_do_not_change_the_statistics(tmp_path):
    write_extra(tmp_path / "extra.npz")
    config = override(tiny_run(), [f"data.extra_images={tmp_path / 'extra.npz'}"])
    assert training_data(config, CPU).statistics == training_data(tiny_run(), CPU).statistics


def test_extra_images_for_image_files_are_refused(tmp_path):
    write_tree(tmp_path / "tree")
    write_extra(tmp_path / "extra.npz")
    config = of_folder(tmp_path / "tree", f"data.extra_images={tmp_path / 'extra.npz'}")
    with pytest.raises(ValueError, match=r"has arrays and .* has image files: run fastadaad pack on the image files"):
        training_data(config, CPU)


def test_a_batch_larger_than_the_training_set_is_refused_in_one_line(tmp_path):
    write_tree(tmp_path / "tree")
    with pytest.raises(ValueError, match=r"batch_size 128 exceeds the 32 images .*: choose batch_size <= 32"):
        training_data(of_folder(tmp_path / "tree", "data.batch_size=128"), CPU)


def test_training_and_validation_share_one_array():
    data = training_data(tiny_run(), CPU)
    assert data.train.images.data_ptr() == data.validation.images.data_ptr()
    assert data.train.images.data_ptr() == data.dataset.train_images.data_ptr()


@pytest.mark.slow
def test_a_stopped_run_with_auto_augment_ends_bitwise_as_a_whole_one_with_other_workers(tmp_path):
    config = override(long_run(), ["data.engine=torch", "data.auto_augment=trivialaugment", "data.num_workers=0"])
    trainer(config, tmp_path / "whole").train()
    run_until(config, tmp_path / "stopped", step=6)
    trainer(override(config, ["data.num_workers=2"]), tmp_path / "stopped", resume=True).train()
    trainer(override(config, ["data.auto_augment=null"]), tmp_path / "plain").train()
    whole, stopped, plain = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "stopped", "plain"))
    assert all(torch.equal(stopped[name], tensor) for name, tensor in whole.items())
    assert not all(torch.equal(plain[name], tensor) for name, tensor in whole.items())
