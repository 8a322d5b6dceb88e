"""Every setting has a description in the source, and its class is on a page of the API reference."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("fastadaad.config", "fastadaad.run_config", "fastadaad.methods.options")


def settings_classes() -> Iterator[type]:
    """Yields the dataclasses that the modules of settings define."""
    for name in MODULES:
        for _, member in inspect.getmembers(importlib.import_module(name), is_dataclass):
            if member.__module__ == name:
                yield member


def described_fields(cls: type) -> set[str]:
    """Names that a class describes itself: in its docstring's Args section, or by a docstring below the field."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    _, _, arguments = (ast.get_docstring(definition) or "").partition("Args:\n")
    names = set(re.findall(r"^    (\w+): \S", arguments, re.MULTILINE))
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            names.add(statement.target.id)
    return names


def reference() -> Iterator[tuple[str, set[str] | None]]:
    """Yields each entry of the API reference: a dotted name, and the members that it shows (None: all)."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text(), re.MULTILINE):
            members = re.search(r"members: \[(.*)\]", options)
            yield name, set(re.split(r",\s*", members[1])) if members else None


CLASSES = list(settings_classes())


def test_the_classes_of_all_settings_are_found():
    names = {cls.__name__ for cls in CLASSES}
    assert names >= {"ThreatModel", "InnerConfig", "TeacherPolicy", "DataConfig", "OptimConfig", "RunConfig"}
    assert "MethodOptions" in names


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_is_described_in_the_source(cls):
    described = set().union(*(described_fields(base) for base in cls.__mro__ if is_dataclass(base)))
    assert {field.name for field in fields(cls)} - described == set()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_of_settings_is_in_the_api_reference(cls):
    """An entry of the reference shows the docstrings of all fields."""
    entries = dict(reference())
    members = entries.get(cls.__module__, set())
    assert f"{cls.__module__}.{cls.__name__}" in entries or members is None or cls.__name__ in members
