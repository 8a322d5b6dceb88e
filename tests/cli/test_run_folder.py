"""Evaluation of a run's folder that may come from someone else: what it asks for beyond its network is left out."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run

from fastadaad import cli, load_model
from fastadaad.cli.run_folder import read_run
from fastadaad.models import WeightsError
from fastadaad.models.weights_writing import save_weights
from fastadaad.run_config import RunConfig


def write_run(folder: Path, config: RunConfig) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    save_weights(folder / "best.safetensors", load_model("cnn-4-s1", in_channels=1))
    return folder


def test_a_usual_run_is_read_whole_and_silently(tmp_path, caplog):
    config = tiny_run()
    assert read_run(write_run(tmp_path / "run", config)) == config
    assert not caplog.records


def test_what_nobody_asked_for_is_left_out_and_said(tmp_path, caplog):
    config = tiny_run()
    asking = replace(
        config,
        data=replace(config.data, download=True, num_workers=10**6, batch_size=10**9),
        evaluation=replace(config.evaluation, batch_size=10**9),
    )
    with caplog.at_level("INFO", "fastadaad"):
        found = read_run(write_run(tmp_path / "run", asking))
    assert (found.data.download, found.data.batch_size, found.evaluation.batch_size) == (False, 4096, 4096)
    assert found.data.num_workers <= 1024
    assert found.student == config.student
    (record,) = caplog.records
    names = "data.download=true, data.num_workers=1000000, data.batch_size=1000000000, evaluation.batch_size=1000000000"
    assert record.getMessage().startswith(f"left out of {tmp_path / 'run' / 'config.json'}: {names}; give them on the")


@pytest.mark.parametrize("more", [[], ["--download"]])
def test_an_evaluation_downloads_only_if_it_is_told_to(tmp_path, monkeypatch, capsys, more):
    """The folder names Fashion-MNIST, which is in no folder here, and asks for its download."""
    asked = []

    def refuse(root, **options) -> None:
        asked.append(root)
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    monkeypatch.setattr("fastadaad.data.datasets.fashion_mnist.DEBIAN_FOLDER", tmp_path / "none")
    config = tiny_run()
    data = replace(config.data, name="fashion-mnist", root=str(tmp_path / "data"), download=True)
    run = write_run(tmp_path / "run", replace(config, data=data))
    assert cli.main(["evaluate", str(run), *more]) == 2
    assert asked == ([tmp_path / "data"] if more else [])
    assert ("could not be downloaded" if more else "does not exist") in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wrn-70-16", "timm/vit_giant_patch14_224"])
def test_a_giant_network_is_not_built_for_a_small_file(tmp_path, name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    run = write_run(tmp_path / "run", tiny_run())
    drawn = torch.get_rng_state()
    with pytest.raises(WeightsError, match=rf"best.safetensors has \d+ bytes, and model {name} [\d,]+ parameters"):
        load_model(name, checkpoint=run / "best.safetensors")
    assert torch.equal(torch.get_rng_state(), drawn)  # no weight was drawn, so none was allocated
