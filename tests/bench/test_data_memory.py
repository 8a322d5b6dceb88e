"""Measurement of memory: valid packs, a second copy of the images is detected, missing limits are reported."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import data_memory
from bench.memory import printed_json
from fastadaad.data import load_dataset
from fastadaad.data.datasets.packed import read_pack, verify_pack

CPU = torch.device("cpu")


def test_the_written_pack_is_complete(tmp_path):
    data_memory.write_pack(tmp_path, 50 * data_memory.MB)
    verify_pack(tmp_path, read_pack(tmp_path), lambda num_images: None)
    images = load_dataset("packed", tmp_path).train_images
    assert 50 * data_memory.MB - data_memory.IMAGE_BYTES < images.nbytes <= 50 * data_memory.MB


# In a process of its own: one that has run other tests takes the memory they freed, and does not grow.
COPYING = """
import sys
from bench import data_memory
from fastadaad.data import ResidentPipeline

class Copying(ResidentPipeline):
    def __init__(self, images, labels, **options):
        super().__init__(images.clone(), labels, **options)

if sys.argv[1] == "copying":
    data_memory.ResidentPipeline = Copying
data_memory.main(["cpu", "array", "200"])
"""


@pytest.mark.slow
def test_a_second_copy_of_the_images_is_detected():
    without, copying = (printed_json([sys.executable, "-c", COPYING, word]) for word in ("without", "copying"))
    assert without["growth_share"] < 0.5
    assert copying["growth_share"] > 0.9


def test_an_epoch_that_takes_too_long_is_cut_off(monkeypatch):
    monkeypatch.setattr(data_memory, "MAX_S", -1)
    row = data_memory.epoch(data_memory.array_of(20 * data_memory.MB), CPU)
    assert row["num_read"] == data_memory.BATCH_SIZE < row["num_images"]


def test_the_process_prints_the_row(capsys):
    data_memory.main(["cpu", "array", "5"])
    row = json.loads(capsys.readouterr().out)
    assert (row["mb"], row["num_images"], row["num_read"]) == (5, 406, 406)


def test_the_row_reports_a_limit_that_cannot_be_set(monkeypatch, tmp_path):
    monkeypatch.setattr(data_memory, "CGROUPS", tmp_path / "none")
    monkeypatch.setattr(data_memory, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(data_memory, "write_pack", lambda folder, num_bytes: None)
    calls = []

    def measured(device, *words, cgroup=None):
        calls.append((*words, cgroup))
        return {"growth_mb": 1}

    monkeypatch.setattr(data_memory, "_measured", measured)
    array, pack = data_memory.rows(CPU)
    assert list(array) == list(pack)
    assert (array["limit_mb"], pack["limit_mb"]) == ("none", "none: needs root and cgroups of version 1")
    assert [words[0] for words in calls] == ["array", "pack"]
    assert [words[-1] for words in calls] == [None, None]


@pytest.mark.slow
def test_a_failing_process_raises():
    with pytest.raises(RuntimeError, match=r"does not exist: set data\.root=FOLDER"):
        data_memory._measured(CPU, "pack", Path("nowhere"))
