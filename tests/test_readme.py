"""What the README promises: its examples run, and its figures are rows of bench/results."""

import re
from pathlib import Path

import pytest

from fastadaad import cli, recipes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_two_python_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=["distiller", "drop-in"])
def test_python_example_runs(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert float(re.search(r"[0-9.]+", capsys.readouterr().out)[0]) > 0


@pytest.mark.parametrize("line", re.findall(r"^    fastadaad (train|compare) (\S+)(.*)$", README, flags=re.MULTILINE))
def test_command_line_example_parses(line):
    command, recipe, rest = line
    arguments = cli.parse([command, recipe, *rest.split()])
    recipes.get(arguments.recipe)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
