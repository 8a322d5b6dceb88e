"""Bad inputs: each gives one line that names the thing and the remedy, and changes no file.

A command line ends with exit code 2, a call with a ValueError.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bad_files import write_bad_files
from bad_inputs import EVALUATE, GROUPS, ROWS

from fastadaad import cli, recipes

# Rows that do without the recipes of this file, which another process does not have.
IN_A_PROCESS = (
    "command line: an unknown recipe", "files: a pickle with code", "files: a web page for a run",
    "command line: a pack of no size",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Makes the working folder with all bad files, and registers the recipes `tiny` and `tiny-teacher`."""
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FASTADAAD_DATA", str(folder / "empty"))
        run = write_bad_files(Path())
        no_teacher = replace(run, recipe="tiny-teacher", method="pgd-at", teacher=None)
        patch.setitem(recipes.RECIPES, "tiny", lambda method="adaad": replace(run, method=method))
        patch.setitem(recipes.RECIPES, "tiny-teacher", lambda method="pgd-at": replace(no_teacher, method=method))
        assert cli.main(shlex.split("train tiny optim.epochs=1 --run-folder done --teacher-check 0")) == 0
        for name, content in (("cut_run", None), ("foreign_run", Path("teacher.safetensors").read_bytes())):
            for path in Path(shutil.copytree("done", name), "checkpoints").iterdir():
                path.write_bytes(path.read_bytes()[:-9] if content is None else content)
        assert cli.main(shlex.split(f"{EVALUATE},cw1 --state kept")) == 0
        for path in Path("kept").iterdir():
            path.write_text('{"survives": [true')
        yield folder


def snapshot(folder: Path) -> dict[str, tuple]:
    """Maps each path to its size, time of change and digest, which differ if the file was touched."""
    return {str(path): (*_stamps(path), _sha256(path)) for path in folder.rglob("*")}


def _stamps(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_size, found.st_mtime_ns


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def line_of(do: str | Callable[[], object], capsys: pytest.CaptureFixture) -> str:
    """Returns the message of a row: from stderr with exit code 2, or from its ValueError."""
    if not isinstance(do, str):
        with pytest.raises(ValueError, match=r".") as caught:
            do()
        return str(caught.value)
    try:
        code = cli.main(shlex.split(do))
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured.out
    assert captured.err.startswith("fastadaad")
    assert captured.err.endswith("\n")
    return captured.err.removesuffix("\n")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ROWS)
def test_a_bad_input_is_named_in_one_line_with_its_remedy_and_changes_no_file(folder, capsys, name):
    before = snapshot(folder)
    line = line_of(ROWS[name].do, capsys)
    for words in ROWS[name].words:
        assert words in line, line
    assert "\n" not in line
    assert "Traceback" not in line
    assert snapshot(folder) == before


def test_the_table_has_at_least_80_different_rows():
    assert len(ROWS) >= 80
    assert all(len(rows) >= 20 for rows in GROUPS.values())
    assert len({str(row.do) for row in ROWS.values()}) == len(ROWS)


@pytest.mark.slow
def test_the_command_ends_as_a_call_of_main_does(folder):
    before = snapshot(folder)
    rows = [ROWS[name] for name in IN_A_PROCESS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fastadaad", *shlex.split(row.do)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for row in rows
    ]
    for row, process in zip(rows, processes, strict=True):
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err.count("\n")) == (2, "", 1), err
        assert all(words in err for words in row.words), err
    assert snapshot(folder) == before


def test_snapshot_notices_each_kind_of_change(tmp_path):
    """Otherwise the table would prove nothing."""
    path = tmp_path / "file"
    path.write_bytes(b"ab")
    before, stamps = snapshot(tmp_path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    changes = [
        lambda: (tmp_path / "new").mkdir(),
        lambda: (tmp_path / "new").rmdir() or path.write_bytes(b"abc"),
        lambda: path.write_bytes(b"ba") and os.utime(path, ns=stamps),
        lambda: path.write_bytes(b"ab"),
    ]
    for change in changes:
        change()
        assert snapshot(tmp_path) != before
    os.utime(path, ns=stamps)
    assert snapshot(tmp_path) == before
