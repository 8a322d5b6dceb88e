"""Writes docs/settings.md, the page of all settings, from the dataclasses: `python tools/settings_page.py`."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastadaad import methods, recipes
from fastadaad.config_io import PIXEL_FIELDS, described_type
from fastadaad.methods.options import MethodOptions
from fastadaad.run_config import RunConfig
from fastadaad.runtime.text import pixels_text

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
INTRODUCTION = """# All settings

<!-- Written by python tools/settings_page.py: change the docstrings of the settings, and run it again. -->

`fastadaad train RECIPE NAME=VALUE` changes a setting, `--print-config` prints all of a run, and `--config FILE` reads
them from YAML or JSON. `teacher.policy=refreshed(every=5)` and `precision=bf16` set a section at once. The last column
has the recipes that set another value than the default, each with its default method; other methods may have others.
"""
OPTIONS = """
## method_options

`method_options.NAME` changes an option of the method, which refuses those that it does not read. A row of the table
of methods may have another default ([Methods](methods.md)).
"""


def descriptions(cls: type) -> dict[str, str]:
    """Returns the description of each field of a dataclass: of its docstring's Args, or below the field."""
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        _, _, arguments = (ast.get_docstring(definition) or "").partition("Args:\n")
        found |= dict(re.findall(r"^    (\w+): (.+)$", arguments, re.MULTILINE))
        for statement, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                assert isinstance(statement.target, ast.Name)
                assert isinstance(below.value, ast.Constant)
                found[statement.target.id] = " ".join(str(below.value.value).split())
    return found


def sections(cls: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yields each section with its dotted name, the top level first."""
    yield prefix, cls
    for name, hint in get_type_hints(cls).items():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                assert isinstance(part, type)
                yield from sections(part, f"{prefix}{name}.")


def shown(name: str, value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(shown(name, item) for item in value)}]"
    return pixels_text(value) if name in PIXEL_FIELDS else f"{value:g}" if isinstance(value, float) else str(value)


def users(name: str, default: Any) -> str:
    """Returns the values that recipes set instead of `default`, each with the names of its recipes."""
    by_value: dict[str, list[str]] = {}
    *parents, field = name.split(".")
    for recipe, make in recipes.RECIPES.items():
        section: Any = make()
        for parent in parents:
            section = section and getattr(section, parent)
        # A recipe without a teacher sets nothing of it.
        if section is not None and (value := getattr(section, field)) != default and name != "recipe":
            by_value.setdefault(shown(field, value), []).append(recipe)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in by_value.items())


def default_of(field: "Field[Any]") -> Any:
    """Returns the default of a field, MISSING if a value must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def table(cls: type, prefix: str, last: str) -> list[str]:
    """Returns the lines of the table of a section's own fields; `last` is the head of its last column."""
    hints, texts = get_type_hints(cls), descriptions(cls)
    lines = ["", f"| name | values | default | what it is | {last} |", "| --- | --- | --- | --- | --- |"]
    for field in fields(cls):
        hint = hints[field.name]
        if field.name == "method_options" or any(is_dataclass(part) for part in (hint, *get_args(hint))):
            continue  # a section, which has a table of its own
        default = default_of(field)
        cells = [
            f"`{prefix}{field.name}`",
            described_type(hint),
            "required" if default is MISSING else f"`{shown(field.name, default)}`",
            texts[field.name],
            readers(field.name) if cls is MethodOptions else users(f"{prefix}{field.name}", default),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def readers(option: str) -> str:
    """Returns the methods that read an option."""
    names = [name for name, row in methods.METHODS.items() if option in row.reads]
    return "all" if len(names) == len(methods.METHODS) else ", ".join(names)


def page() -> str:
    """Returns the content of the page."""
    lines = [INTRODUCTION.rstrip()]
    for prefix, cls in sections():
        title = prefix.rstrip(".") or "The run"
        summary = (cls.__doc__ or "").partition("\n")[0]
        lines += ["", f"## {title}", "", summary, *table(cls, prefix, "recipes that set it")]
    lines += [OPTIONS.rstrip(), *table(MethodOptions, "method_options.", "methods that read it")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
