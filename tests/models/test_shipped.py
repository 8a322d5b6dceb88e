"""The shipped teachers are the files that their page describes, with the accuracies that it states."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from fastadaad import recipes
from fastadaad.config_io import read_config
from fastadaad.models.shipped import FOLDER, checkpoint_path
from fastadaad.training.build import build_model
from fastadaad.training.data import training_data
from fastadaad.training.evaluation import evaluate_on_test_set

ROW = r"\| `(\S+\.safetensors)` \| .* \| .* \| ([0-9.]+) / ([0-9.]+) / ([0-9.]+) \| `([0-9a-f]{64})` \|"
ROWS = {name: (accuracies, sha256) for name, *accuracies, sha256 in re.findall(ROW, (FOLDER / "README.md").read_text())}


def test_every_shipped_file_is_described():
    assert set(ROWS) == {path.name for path in FOLDER.glob("*.safetensors")}


@pytest.mark.parametrize("name", ROWS)
def test_file_has_the_checksum_of_its_page(name):
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == ROWS[name][1]


@pytest.mark.parametrize("name", ROWS)
def test_file_was_made_by_the_present_recipe(name, tmp_path):
    with safe_open(FOLDER / name, "pt") as file:
        made_by = json.loads(file.metadata()["fastadaad"])["config"]
    # Settings that are newer than the file are read with their defaults.
    (tmp_path / "config.json").write_text(json.dumps(made_by))
    recipe, config = recipes.get(name.removesuffix(".safetensors")), read_config(tmp_path / "config.json")
    images = replace(config.data, name=recipe.data.name, root=recipe.data.root)  # or a packed copy of the same images
    assert replace(config, mode=recipe.mode, data=images) == recipe


@pytest.mark.slow
def test_demo_teacher_has_the_accuracy_of_its_page():
    config = recipes.get("demo")
    data = training_data(config, torch.device("cpu"))
    model = build_model(config.teacher, data, torch.device("cpu"))
    results = evaluate_on_test_set(model, config, data, Console(quiet=True), "teacher")
    promised = [float(accuracy) for accuracy in ROWS["demo-teacher.safetensors"][0]]
    # Another processor rounds differently: after 20 steps of gradient signs, a few of the 360 images may change sides.
    assert [100 * result.accuracy for result in results] == pytest.approx(promised, abs=500 / 360 + 0.05)


def test_recipes_find_their_shipped_teachers():
    configs = {name: recipes.get(name) for name in recipes.RECIPES}
    shipped = {name: c.teacher.checkpoint for name, c in configs.items() if c.teacher and c.teacher.checkpoint}
    assert shipped.keys() == {"demo", "fashion-mnist", "fashion-mnist-small", "cifar10-small"}
    assert all(checkpoint_path(checkpoint).is_file() for checkpoint in shipped.values())


def test_unknown_shipped_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="shipped are shipped:cifar10-teacher, shipped:demo-teacher, "):
        checkpoint_path("shipped:nothing")
