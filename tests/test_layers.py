"""Imports go one way: a room imports the rooms of the layers below it and itself, and no modules import in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastadaad"

# From the bottom to the top. Rooms of one layer do not import each other.
LAYERS = (
    ("kernels", "config"),
    ("runtime",),
    ("ops",),
    ("models", "data", "methods"),
    ("inner",),
    ("evaluation",),
    ("run_config",),
    ("config_io", "recipes"),
    ("training",),
    ("cli",),
    ("__main__", "__init__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}


def modules_in(package: Path) -> dict[str, Path]:
    """Returns the files of a package by dotted name without the package's own; `data` is data/__init__.py."""
    names = {path: path.relative_to(package).with_suffix("").parts for path in sorted(package.rglob("*.py"))}
    return {
        ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts): p for p, parts in names.items()
    }


def imports_of(name: str, path: Path, package: str, known: set[str]) -> Iterator[str]:
    """Yields the modules of the package that a file imports, anywhere in it; strings for import_module too."""
    base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [package, *base[: len(base) - node.level + 1]] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            targets = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] != package:
                continue
            inner = ".".join(parts[1:])
            while inner and inner not in known and inner.split(".")[0] != "kernels":
                inner = inner.rpartition(".")[0]
            yield inner or "__init__"


def graph_of(package: Path) -> dict[str, set[str]]:
    """Returns module -> modules that it imports."""
    modules = modules_in(package)
    return {
        name: {target for target in imports_of(name, path, package.name, set(modules)) if target != name}
        for name, path in modules.items()
    }


def upward_imports(graph: dict[str, set[str]]) -> list[str]:
    """Returns one line per import that leads to a higher layer, or to another room of the same one."""
    lines = []
    for name, targets in graph.items():
        room = name.split(".")[0]
        for target in sorted(targets):
            other = target.split(".")[0]
            if other != room and FLOOR[other] >= FLOOR[room]:
                lines.append(f"{name} imports {target}")
    return lines


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns a list of modules for each circle that a depth-first search closes."""
    found: list[list[str]] = []
    finished: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(trail[trail.index(name) :])
        elif name not in finished:
            for target in sorted(graph.get(name, ())):
                visit(target, [*trail, name])
            finished.add(name)

    for name in graph:
        visit(name, [])
    return found


def write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "fastadaad"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_every_room_has_a_layer():
    assert {name.split(".")[0] for name in modules_in(PACKAGE)} | {"kernels"} == set(FLOOR)


def test_imports_go_one_way():
    assert upward_imports(graph_of(PACKAGE)) == []


def test_no_modules_import_in_a_circle():
    assert circles(graph_of(PACKAGE)) == []


def test_a_newcomer_sees_about_a_dozen_entries():
    entries = [path for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.suffix in ("", ".py")]
    assert len([entry for entry in entries if entry.name != "kernels"]) <= 13, sorted(entry.name for entry in entries)


@pytest.mark.parametrize(
    "line",
    [
        "from fastadaad.training.trainer import Trainer",
        "import fastadaad.cli",
        "from fastadaad import training",
        "from ..training import trainer",
        "def late():\n    from fastadaad.inner import step",
        "if True:\n    from fastadaad import Distiller",
        "from fastadaad.models.factory import load_model",
    ],
)
def test_a_planted_upward_import_is_found(tmp_path, line):
    files = {"data/__init__.py": "", "data/cifar.py": line, "training/__init__.py": "", "training/trainer.py": ""}
    files |= {"inner/__init__.py": "", "inner/step.py": "", "cli/__init__.py": "", "__init__.py": ""}
    files |= {"models/__init__.py": "", "models/factory.py": ""}
    lines = upward_imports(graph_of(write_package(tmp_path, files)))
    assert len(lines) == 1
    assert lines[0].startswith("data.cifar imports ")


def test_a_planted_circle_is_found(tmp_path):
    files = {
        "inner/a.py": "from fastadaad.inner import b",
        "inner/b.py": "from fastadaad.inner.c import x",
        "inner/c.py": "def f():\n    import fastadaad.inner.a",
        "inner/__init__.py": "",
    }
    assert circles(graph_of(write_package(tmp_path, files))) == [["inner.a", "inner.b", "inner.c"]]
