"""Engines by name, and the choice of engine=auto."""

from pathlib import Path

import pytest
import torch

from fastadaad.data import ImageFiles, Sampling, engines, make_pipeline

IMAGES = torch.zeros(4, 2, 2, 1, dtype=torch.uint8)
FILES = ImageFiles(root=Path("pets"), names=["a.png"] * 4, image_size=8)
LABELS = torch.zeros(4, dtype=torch.int64)


def engine_of(engine: str, images) -> str:
    return type(make_pipeline(engine, images, LABELS, sampling=Sampling(batch_size=2))).__name__


@pytest.mark.parametrize(
    ("engine", "images", "expected"),
    [
        ("auto", IMAGES, "ResidentPipeline"),
        ("resident", IMAGES, "ResidentPipeline"),
        ("torch", IMAGES, "TorchPipeline"),
        ("dali", IMAGES, "DaliPipeline"),
        ("auto", FILES, "DaliPipeline"),
        ("torch", FILES, "TorchPipeline"),
    ],
)
def test_the_chosen_engine(engine, images, expected):
    assert engine_of(engine, images) == expected


def test_without_dali_files_are_read_by_torch_with_a_warning(monkeypatch):
    monkeypatch.setattr(engines, "dali_status", lambda: "missing (optional): pip install 'fastadaad[dali]'")
    with pytest.warns(
        UserWarning, match=r"by torch, which is slower than NVIDIA DALI: .* pip install 'fastadaad\[dali"
    ):
        assert engine_of("auto", FILES) == "TorchPipeline"


def test_the_number_of_workers_reaches_the_engines_with_workers():
    for engine in ("torch", "dali"):
        pipeline = make_pipeline(engine, IMAGES, LABELS, sampling=Sampling(batch_size=2), num_workers=3)
        assert pipeline.num_workers == 3
