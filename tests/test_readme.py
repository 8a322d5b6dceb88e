"""What the README promises: its examples run, and its figures are rows of bench/results."""

import re
from pathlib import Path

import pytest

from fastadaad import cli, recipes
from fastadaad.compare import method_names
from fastadaad.config_io import override

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_two_python_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=["distiller", "drop-in"])
def test_python_example_runs(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert float(re.search(r"[0-9.]+", capsys.readouterr().out)[0]) > 0


@pytest.mark.parametrize("line", re.findall(r"^    fastadaad (.+)$", README, flags=re.MULTILINE))
def test_command_line_example_parses(line):
    arguments = cli.parse(line.split())
    recipe = getattr(arguments, "recipe", None)
    if recipe is not None:
        methods = getattr(arguments, "methods", "") or getattr(arguments, "method", None) or "adaad"
        for method in method_names(methods.split(",")):
            override(recipes.get(recipe, method=method), getattr(arguments, "overrides", ()))


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
