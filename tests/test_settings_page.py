"""docs/settings.md is what its tool writes, has each setting once, and shows the values of the recipes."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fastadaad import recipes
from fastadaad.config_io import setting_names
from fastadaad.methods.options import MethodOptions
from tools import settings_page

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
ROWS = {
    cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [re.split(r"(?<!\\)\|", line)[1:-1]]
}


def test_the_page_is_up_to_date():
    assert settings_page.page() == PAGE, "run python tools/settings_page.py"


def test_each_setting_has_one_row_with_a_description():
    sections = {"teacher.policy", "precision", "method_options"}  # set at once, or one by one
    options = {f"method_options.{field.name}" for field in fields(MethodOptions)}
    assert set(ROWS) == set(setting_names()) - sections | options
    assert len(ROWS) == sum(line.startswith("| `") for line in PAGE.splitlines())
    assert all(len(row) == 4 and row[2] for row in ROWS.values())


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("optim.ema_decay", ["a finite number", "`0`"]),
        ("inner.threat_model.epsilon", ["a finite number", "`8/255`"]),
        ("teacher.beside", ["a string or null", "`null`"]),
        ("evaluation.attacks", ["a list [a string, ...]", "`[natural, fgsm, pgd20]`"]),
        ("mode", ["eager, compiled, graph or auto", "`auto`"]),
        ("data.name", ["a string", "required"]),
    ],
)
def test_a_row_has_values_and_default(name, row):
    assert ROWS[name][:2] == row


def test_the_recipes_of_a_row_are_those_that_differ_from_its_default():
    for name, read in {
        "optim.ema_decay": lambda config: config.optim.ema_decay,
        "optim.nesterov": lambda config: config.optim.nesterov,
        "data.batch_size": lambda config: config.data.batch_size,
    }.items():
        found = dict(re.findall(r"(\S+): ([^;]+)", ROWS[name][3]))
        shown = {recipe: value for value, listed in found.items() for recipe in listed.split(", ")}
        expected = {recipe: f"{read(make())}".lower() for recipe, make in recipes.RECIPES.items()}
        default = ROWS[name][1].strip("`")
        assert shown == {recipe: value for recipe, value in expected.items() if value not in (default, f"{default}.0")}
