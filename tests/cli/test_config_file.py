"""--config: a file is the settings that it holds, between the recipe and the command line; errors name file and key."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fastadaad import cli, methods, recipes
from fastadaad.cli.config_file import take_config
from fastadaad.config_io import override


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(capsys, *words: str) -> dict:
    """Returns the settings that `fastadaad train WORDS` would train with."""
    assert cli.main(["train", *words, "--print-config"]) == 0
    return json.loads(capsys.readouterr().out)


def as_json(config) -> dict:
    return json.loads(json.dumps(asdict(config)))


MINE = """
recipe: demo
method: trades
seed: 3
optim: {epochs: 5, learning_rate: 1e-3, milestones: []}
inner:
  step_size: 2/255
teacher: {policy: exact}
trackers: [wandb, mlflow]
data.batch_size: 32
"""
MINE_AS_OVERRIDES = [
    "seed=3", "optim.epochs=5", "optim.learning_rate=0.001", "inner.step_size=2/255", "trackers=[wandb,mlflow]",
    "data.batch_size=32",
]  # fmt: skip


def test_a_file_is_its_settings_on_top_of_its_recipe(capsys):
    Path("mine.yaml").write_text(MINE)
    expected = override(recipes.get("demo", method="trades"), MINE_AS_OVERRIDES)
    assert settings_of(capsys, "--config", "mine.yaml") == as_json(expected)
    # The command line counts most, with the settings before or behind the option.
    for words in (["--config", "mine.yaml", "seed=4"], ["seed=4", "--config", "mine.yaml"]):
        assert settings_of(capsys, *words) == as_json(override(expected, ["seed=4"]))
    other = override(recipes.get("fashion-mnist", method="rslad"), MINE_AS_OVERRIDES)
    assert settings_of(capsys, "fashion-mnist", "--config", "mine.yaml", "--method", "rslad") == as_json(other)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_config_of_a_run_gives_the_same_run(capsys, name):
    for method in methods.METHODS if name == "demo" else ["pgd-at"]:
        changes = ["seed=7", "inner.threat_model.epsilon=11/255", "inner.step_size=1/255", "optim.weight_decay=1e-05"]
        config = override(recipes.get(name, method=method), changes)
        Path("config.json").write_text(json.dumps(asdict(config)))
        assert settings_of(capsys, "--config", "config.json") == as_json(config)


@pytest.mark.parametrize("words", [["compare", "--methods", "adaad"], ["sweep-epsilon", "--epsilons", "0.1"]])
def test_other_commands_that_take_a_recipe_take_a_file(monkeypatch, words):
    found = {}

    def record(recipe, overrides, *arguments, **options):
        found.update(recipe=recipe, overrides=list(overrides))
        return []

    monkeypatch.setattr("fastadaad.cli.comparison.compare.compare", record)
    monkeypatch.setattr("fastadaad.cli.comparison.sweep.sweep_epsilon", record)
    Path("mine.yaml").write_text("recipe: demo\noptim: {epochs: 5}\n")
    assert cli.main([*words, "seed=4", "--config", "mine.yaml"]) == 0
    assert found == {"recipe": "demo", "overrides": ["optim.epochs=5", "seed=4"]}


def test_settings_of_another_method_are_warned_about(caplog):
    caplog.set_level(logging.WARNING)
    Path("mine.yaml").write_text("recipe: demo\nmethod: adaad\n")
    arguments = cli.parse(["train", "--config", "mine.yaml", "--method", "trades"])
    take_config(arguments)
    assert (arguments.recipe, arguments.method) == ("demo", "trades")
    assert caplog.messages == ["mine.yaml has the settings of adaad: trades gets the same ones"]


DEEP = "a: " + "[" * 600
LAUGHS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))


@pytest.fixture
def usual_recursion_limit():
    """Restores Python's own limit for a test: torch.compile raises it for the rest of the process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recipe: demo\noptim: {epoch: 3}", "mine.yaml: unknown setting optim.epoch=3: did you mean optim.epochs?"),
        ("recipe: demo\nlr: 0.1", "mine.yaml: unknown setting lr=0.1: did you mean optim.learning_rate?"),
        ("recipe: demo\noptim: {epochs: many}", "mine.yaml: optim.epochs is 'many': give a whole number"),
        ("recipe: demo\noptim: 3", "mine.yaml: optim is a section: set its fields one by one, as optim.FIELD=VALUE"),
        ("recipe: demo\noptim:", "mine.yaml: optim is null: give a value, or leave it out"),
        ("recipe: demo\noptim: {milestones: [[1]]}", "mine.yaml: optim.milestones is '[[]]': give a list"),
        ("recipe: demo\nteacher: {policy: often}", "mine.yaml: teacher policy 'often' is unknown: choose exact"),
        ("recipe: demo\nseed: 1\nseed: 2", "mine.yaml cannot be read (it holds a name twice): give settings in YAML"),
        ("recipe: demo\noptim: {epochs: 3", "mine.yaml cannot be read (line 2: "),
        ("recipe: demo\nseed: !!python/name:os.system", "mine.yaml cannot be read (line 2: could not determine a con"),
        ("recipe: demo\nseed: 2026-13-45", "mine.yaml cannot be read ("),
        ("recipe: dem", "unknown recipe 'dem': did you mean demo?"),
        ("recipe: [demo]", "mine.yaml: recipe is no name, see fastadaad recipes"),
        ("seed: 1", "mine.yaml names no recipe: add a line such as recipe: demo, or give RECIPE"),
        ("- seed", "mine.yaml holds no settings by name: write lines such as seed: 1"),
        ("", "mine.yaml holds no settings by name"),
        ("\0", "mine.yaml cannot be read ("),
        (DEEP, "mine.yaml cannot be read (it is nested too deeply)"),
        (f"recipe: demo\na0: &a0 [x]\n{LAUGHS}", "mine.yaml: unknown setting a0=[x]: "),
        ("recipe: demo\nseed: &s [*s]", "mine.yaml: seed is '[[]]': give a whole number"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("usual_recursion_limit")
def test_a_broken_file_is_named_in_one_line(capsys, content, message):
    Path("mine.yaml").write_text(content)
    assert cli.main(["train", "--config", "mine.yaml", "--print-config"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"fastadaad: {message}")
    assert line.count("\n") == 1


def test_a_missing_file_and_a_missing_recipe_are_named(capsys):
    assert cli.main(["train", "--config", "nowhere.yaml", "--print-config"]) == 2
    assert "nowhere.yaml cannot be read (No such file or directory)" in capsys.readouterr().err
    Path("cut.json").write_text('{"seed": ')
    assert cli.main(["train", "--config", "cut.json", "--print-config"]) == 2
    assert "cut.json cannot be read (Expecting value" in capsys.readouterr().err
