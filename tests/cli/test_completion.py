"""Words that the shell's tab key completes, as argcomplete prints them for a line that ends at the cursor."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastadaad import cli, methods, recipes
from fastadaad.config_io import override, setting_names

LINES = {
    "fastadaad swe": ["sweep-epsilon"],
    "fastadaad train cifar100-": ["cifar100-rn18", "cifar100-mnv2"],
    "fastadaad compare cifar100-": ["cifar100-rn18", "cifar100-mnv2"],
    "fastadaad doctor --max-batch demo-": ["demo-teacher"],
    "fastadaad train demo optim.sw": ["optim.swa_begin="],
    "fastadaad train demo seed=1 optim.sw": ["optim.swa_begin="],
    "fastadaad train demo mode=": ["eager", "compiled", "graph", "auto"],
    "fastadaad train demo deterministic=t": ["true"],
    "fastadaad train demo --method lb": ["lbgat-fixed"],
    "fastadaad compare demo --methods adaad,pg": ["adaad,pgd-at"],
    "fastadaad train --pri": ["--print-config"],
}
BEGINNINGS = {
    "fastadaad ": set(cli.COMMANDS),
    "fastadaad train ": set(recipes.RECIPES),
    "fastadaad train demo --method ": set(methods.METHODS),
}
# A process of its own, as argcomplete writes to file descriptors that are pytest's here.
PROGRAM = """
import json, os, sys
from fastadaad import cli
from fastadaad.cli.completion import complete

class EndError(Exception):
    pass

def end(code):
    raise EndError

found, lines = {}, json.loads(sys.argv[2])
for line in lines:
    os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    try:
        complete(cli._parser(), exit_method=end)
    except EndError:
        with open(sys.argv[1]) as file:
            found[line] = [word.strip() for word in file.read().split("|")]
assert "torch" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def completed(tmp_path_factory) -> dict[str, list[str]]:
    """Returns the words that are offered at the end of each line."""
    folder = tmp_path_factory.mktemp("completion")
    output = str(folder / "words")
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "|", "_ARGCOMPLETE_STDOUT_FILENAME": output}
    asked["_ARGCOMPLETE_COMP_WORDBREAKS"] = "=:"  # bash completes behind the last of them
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, output, json.dumps([*LINES, *BEGINNINGS])],
        env=os.environ | asked, cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", LINES)
def test_the_tab_key_completes(completed, line):
    assert completed[line] == LINES[line]


@pytest.mark.parametrize("line", BEGINNINGS)
def test_everything_is_offered_at_the_start(completed, line):
    assert set(completed[line]) >= BEGINNINGS[line]


def test_every_name_is_a_setting_that_can_be_set():
    config = recipes.get("demo")
    names = setting_names()
    assert len(names) > 90
    assert {"optim.epochs", "inner.threat_model.epsilon", "teacher.policy", "precision", "seed"} <= set(names)
    for name in names:
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, bool | int | float) or value is None:
            assert override(config, [f"{name}={'null' if value is None else value}"]) == config
        assert not dataclasses.is_dataclass(value) or name in ("teacher.policy", "precision")


def test_a_command_asks_for_completions_only_if_the_shell_does(monkeypatch):
    asked = []
    monkeypatch.setattr("fastadaad.cli.completion.complete", asked.append)
    cli.parse(["recipes"])
    assert asked == []
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    cli.parse(["recipes"])
    assert len(asked) == 1


def test_the_page_has_the_line_that_switches_it_on():
    page = (Path(__file__).parents[2] / "docs" / "features.md").read_text()
    assert 'eval "$(register-python-argcomplete fastadaad)"' in page
