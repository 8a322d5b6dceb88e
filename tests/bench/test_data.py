"""`python -m bench data`: timing with a fake clock, generated files, and the rows of small runs."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_runs import tiny_run

from bench import data, data_contests, data_loaders, data_memory, data_speed, data_wait, image_tree, pixel_differences
from bench.data_speed import Contest, Entrant
from bench.data_table import speed_table, tables
from bench.image_tree import TreeSpec
from bench.pages import rows_of
from bench.rows import conditions
from fastadaad import recipes
from fastadaad.data import load_dataset
from fastadaad.data.image_decoding import decode

CPU = torch.device("cpu")
SMALL = TreeSpec(num_images=24, min_size=16, max_size=64)


@pytest.fixture
def threads():
    """Restores the number of threads, which the command sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return image_tree.image_tree(SMALL, Console(quiet=True), tmp_path_factory.mktemp("trees"))


class FakeClock:
    """Clock advanced by entrants with a given time per batch of ten; records the order of events."""

    def __init__(self, monkeypatch):
        self.now, self.events = 0.0, []
        monkeypatch.setattr(data_speed, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def entrant(self, name, seconds, start=0.0):
        """Entrant with `seconds[epoch]` per batch; batches at both ends of the epoch take ten times as long."""

        def epoch(number):
            self.events.append(f"{name} {number}")
            self.now += start
            try:
                for batch in range(20):
                    self.now += seconds[number] * (1 if 5 <= batch < 16 else 10)
                    yield torch.zeros(10, 1, 1, 1), torch.zeros(10)
            finally:
                self.events.append(f"{name} ends")

        return Entrant(epoch=epoch, work="nothing", num_workers=0)

    def contest(self, entrants, num_batches=20, num_workers=0):
        return Contest(
            images="none",
            batch_size=10,
            num_batches=num_batches,
            num_workers=num_workers,
            entrants=entrants,
            references=("slow",),
            device=CPU,
        )


def test_images_per_s_come_from_the_middle_and_ratios_from_one_round(monkeypatch):
    clock = FakeClock(monkeypatch)
    # The machine slows down from round to round; the first round is a warm-up.
    slow = clock.entrant("slow", [99.0, 1.0, 2.0, 8.0], start=5.0)
    fast = clock.entrant("fast", [99.0, 0.25, 0.5, 2.0])
    rows = {row["engine"]: row for row in data_speed.rows(clock.contest({"slow": slow, "fast": fast}), rounds=3)}
    assert rows["fast"]["images_per_s_p50"] == pytest.approx(10 / 0.5)
    assert rows["slow"]["images_per_s_p50"] == pytest.approx(10 / 2)
    assert [rows["fast"][f"times_slow_{quantile}"] for quantile in ("p20", "p50", "p80")] == [4.0, 4.0, 4.0]
    assert rows["slow"]["times_slow_p50"] == 1.0
    assert rows["slow"]["first_batch_p50_ms"] == pytest.approx(1e3 * (5 + 10 * 2))
    assert (rows["fast"]["batches"], rows["fast"]["n"]) == (11, 3)


def test_one_entrant_ends_before_the_next_begins_and_the_order_rotates(monkeypatch):
    clock = FakeClock(monkeypatch)
    data_speed.take_turns(clock.contest({name: clock.entrant(name, [1.0] * 3) for name in ("a", "b")}), rounds=2)
    order = [f"{name} {number}" for number, names in enumerate(("ab", "ba", "ab")) for name in names]
    assert clock.events == [event for start in order for event in (start, f"{start[0]} ends")]


def test_the_timed_batches_are_a_multiple_of_the_workers(monkeypatch):
    clock = FakeClock(monkeypatch)
    assert clock.contest({}, num_batches=20, num_workers=2).num_timed == 10
    assert clock.contest({}, num_batches=20, num_workers=3).num_timed == 6  # 20 - 1 - 2 x 6 = 7
    assert clock.contest({}, num_batches=11, num_workers=2).num_timed == 2
    with pytest.raises(ValueError, match="10 batches are too few to be timed: take 110 images or more"):
        _ = clock.contest({}, num_batches=10, num_workers=2).num_timed


def test_the_tree_has_images_of_the_given_sizes_and_reproducible_bytes(tree, tmp_path):
    sizes = []
    for number, path in SMALL.files():
        with Image.open(tree / path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes += image.size
        if number < 5:
            image_tree.picture(number, SMALL).save(tmp_path / path.name, quality=image_tree.QUALITY)
            assert (tmp_path / path.name).read_bytes() == (tree / path).read_bytes()
    assert min(sizes) >= 16
    assert max(sizes) <= 64
    assert len(set(sizes)) > 20
    assert len(sizes) == 2 * (24 + image_tree.NUM_CLASSES)
    dataset = load_dataset("folder", tree, image_size=8)
    assert len(dataset.train_labels) == 24
    assert len(dataset.class_names) == image_tree.NUM_CLASSES


def test_images_are_as_large_on_disk_as_photographs(tmp_path):
    sizes = []
    for number in range(8):
        image_tree.picture(number, TreeSpec()).save(tmp_path / "image.jpg", quality=image_tree.QUALITY)
        sizes.append((tmp_path / "image.jpg").stat().st_size)
    assert min(sizes) > 20e3
    assert max(sizes) < 110e3
    assert 30e3 < np.median(sizes) < 70e3


def test_a_tree_is_written_once_and_an_unfinished_one_is_rewritten(tree, tmp_path):
    unfinished = tmp_path / f"{SMALL.name}.unfinished"
    unfinished.mkdir()
    (unfinished / "rest").touch()
    root = image_tree.image_tree(SMALL, Console(quiet=True), tmp_path)
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == sorted(
        path.relative_to(tree) for path in tree.rglob("*")
    )
    marked = next(root.rglob("*.jpg"))
    marked.write_bytes(b"mine")
    assert image_tree.image_tree(SMALL, Console(quiet=True), tmp_path) == root
    assert marked.read_bytes() == b"mine"


def test_the_dataloader_pads_with_black_crops_and_flips():
    images = torch.full((40, 8, 8, 3), 255, dtype=torch.uint8)
    dataset = data_loaders.array_dataset(images, torch.arange(40), padding=4)
    (x_natural, labels), *rest = data_loaders.epoch(dataset, 32, 0, CPU)
    assert not rest  # the incomplete last batch is dropped
    assert x_natural.shape == (32, 3, 8, 8)
    assert x_natural.unique().tolist() == [0.0, 1.0]
    assert len(set(labels.tolist())) == 32
    inside = x_natural[:, 0].sum((1, 2))
    assert inside.min() < 64  # moved
    assert inside.min() >= 16


def test_the_dataloader_reads_the_training_files(tree):
    dataset = data_loaders.file_dataset(tree / "train", 16, 0.08)
    ((x_natural, labels),) = data_loaders.epoch(dataset, 24, 0, CPU)
    assert x_natural.shape == (24, 3, 16, 16)
    assert x_natural.dtype == torch.float32
    assert 0.5 < x_natural.max() <= 1
    assert labels.bincount().tolist() == [3] * 4 + [2] * 6


def test_planted_pixel_differences():
    expected = [np.full((2, 3, 3), 100, np.uint8), np.full((4, 3, 3), 7, np.uint8)]
    found = [expected[0] - 1, expected[1].copy()]
    found[1][3, 2, 1] = 255
    row = pixel_differences.difference_row("a path", "a setting", expected, found)
    assert row["mean_difference"] == pytest.approx((18 + 248) / (18 + 36), rel=1e-3)
    assert row["max_difference"] == 248
    assert row["num_images"] == 2


def test_the_default_setting_equals_the_engine(tree):
    files = load_dataset("folder", tree, image_size=16).train_images
    decoded = [np.asarray(decode(files.path(index))) for index in range(len(files))]
    windows = pixel_differences.crop_windows(decoded)
    found = list(pixel_differences.dali_images(files, pixel_differences.Setting(), CPU, windows))
    for ours, theirs in zip(pixel_differences.engine_images("dali", files, CPU), found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    sharp = list(pixel_differences.dali_images(files, pixel_differences.RESIZES["antialias=False"], CPU, windows))
    assert max(np.abs(a.astype(float) - b).max() for a, b in zip(sharp, found, strict=True)) > 20


def test_the_waiting_fraction_is_measured_by_the_trainer(monkeypatch, tmp_path):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_run)
    rows = list(data_wait.rows({"tiny": 1}, 1, 0, "cpu"))
    assert [(row["engine"], row["workers"]) for row in rows] == [("resident", 0), ("dali", 0), ("torch", 0)]
    assert all(0 < row["waiting_share_p50"] < 1 for row in rows)
    config = data_wait.short_config("tiny", 3, "torch", 2, "cpu")
    metrics = [{"data_wait": share, "images_per_s": 10.0, "seconds": 2.0} for share in (0.1, 0.2, 0.6)]
    row = data_wait.row(config, metrics)
    assert (row["waiting_share_p50"], row["epochs"], row["workers"], row["n"]) == (0.2, 3, 2, 3)


@pytest.mark.slow
def test_small_runs_write_rows_and_the_page(monkeypatch, tmp_path, tree, threads):
    monkeypatch.setattr(data, "TreeSpec", lambda num_images: replace(SMALL, num_images=num_images))
    monkeypatch.setattr(data, "IMAGE_SIZE", 16)
    monkeypatch.setattr(data_contests, "ARRAY_BATCH", 2)
    monkeypatch.setattr(data_contests, "FILE_BATCH", 2)
    output, page = tmp_path / "data.csv", tmp_path / "data.md"
    words = ["--parts", "arrays,files,pixels", "--rounds", "1", "--arrays", "24", "--images", "24", "--workers", "1"]
    for _ in range(2):
        data.main([*words, "--device", "cpu", "--output", str(output), "--rewrite"])
    rows = rows_of(output)
    assert [(row["images"].split()[1], row["engine"], row["workers"]) for row in rows] == [
        ("arrays", "resident", "0"), ("arrays", "dali", "1"), ("arrays", "torch", "1"), ("arrays", "DataLoader", "1"),
        ("JPEG", "resident, packed", "0"), ("JPEG", "dali", "1"), ("JPEG", "torch", "1"), ("JPEG", "DataLoader", "1"),
    ]  # fmt: skip
    assert all(row["times_torch_p50"] == "1.0" for row in rows if row["engine"] == "torch")
    assert conditions(CPU).keys() <= rows[0].keys()
    assert {row["threads"] for row in rows} == {"1"}
    with open(tmp_path / "data-pixels.csv", newline="") as file:
        differences = {(row["path"], row["setting"]): float(row["mean_difference"]) for row in csv.DictReader(file)}
    assert differences["decode", pixel_differences.AS_SET] < 0.5
    assert differences["decode, crop, resize to 16", "antialias=False"] > 1
    page.write_text("before\n<!-- data:begin -->\nold\n<!-- data:end -->\nafter\n")
    data.main(["--draw", "--output", str(output), "--page", str(page)])
    assert page.read_text().startswith("before\n<!-- data:begin -->\n\nImages/s")
    assert page.read_text().endswith("<!-- data:end -->\nafter\n")
    assert tables(output) in page.read_text()


def test_a_table_shows_the_latest_row():
    quantiles = {f"{name}_{key}": "2" for name in ("times_torch", "times_dataloader") for key in ("p20", "p50", "p80")}
    row = {"images": "i", "engine": "e", "work": "w", "first_batch_p50_ms": "3.4", **quantiles}
    rates = [{f"images_per_s_{key}": rate for key in ("p20", "p50", "p80")} for rate in ("1", "2345.6")]
    text = speed_table([row | rate for rate in rates])
    assert text.splitlines()[2:] == [
        "| i | e | w | 2,346 (2,346 to 2,346) | 2.00 (2.00 to 2.00) | 2.00 (2.00 to 2.00) | 3 |"
    ]


def test_the_rows_about_memory_get_their_own_file(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(data_memory, "rows", lambda device: [{"set": "a", "peak_bytes": 7, "kind": device.type}])
    data.main(["--parts", "memory", "--device", "cpu", "--output", str(tmp_path / "data.csv")])
    (row,) = rows_of(tmp_path / "data-memory.csv")
    assert (row["set"], row["peak_bytes"], row["kind"]) == ("a", "7", "cpu")


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        data.main(["--parts", "arrays,pictures"])
    assert "unknown part pictures" in capsys.readouterr().err
