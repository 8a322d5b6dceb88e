"""Files that cannot be written for a while: what is said of them, and that they are written later."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from fastadaad.runtime.patient_files import PatientFiles


def refuse(code: int, *path: str) -> None:
    raise OSError(code, os.strerror(code), *path)


def test_a_reason_is_said_once_whichever_file_it_meets():
    said: list[str] = []
    files = PatientFiles(said.append)
    for step in range(5):
        assert not files.attempt("the checkpoint", partial(refuse, errno.EROFS, f"step-{step}"))
    assert len(said) == 1
    assert "the checkpoint cannot be written ([Errno 30] Read-only file system: 'step-0')" in said[0]
    files.attempt("metrics.csv", partial(refuse, errno.EROFS, "metrics.csv"))
    assert len(said) == 2


def test_another_reason_is_said_too():
    said: list[str] = []
    files = PatientFiles(said.append)
    for code in (errno.ENOSPC, errno.EROFS, errno.ENOSPC):
        files.attempt("the checkpoint", partial(refuse, code))
    assert [line.partition("(")[2].partition(")")[0] for line in said] == [
        "[Errno 28] No space left on device",
        "[Errno 30] Read-only file system",
    ]


def test_what_could_not_be_written_is_written_with_the_next_file(tmp_path):
    said: list[str] = []
    files = PatientFiles(said.append)
    place = tmp_path / "run"
    place.write_text("a file in the folder's place")
    files.write(place / "a", b"old")
    files.write(place / "a", b"new")
    with pytest.raises(OSError, match="run"):
        files.require()
    place.unlink()
    files.write(place / "b", b"b")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"a": b"new", "b": b"b"}
    assert len(said) == 1
    files.require()


def test_a_file_that_is_required_is_named_where_the_system_does_not(tmp_path, monkeypatch):
    files = PatientFiles(lambda line: None)
    monkeypatch.setattr("os.fsync", lambda descriptor: refuse(errno.ENOSPC))
    files.write(tmp_path / "best", b"weights")
    with pytest.raises(OSError, match="No space left") as caught:
        files.require()
    assert caught.value.filename == str(tmp_path / "best")


def test_another_process_writes_nothing(tmp_path):
    files = PatientFiles(print, enabled=False)
    files.write(tmp_path / "a", b"a")
    assert files.attempt("the checkpoint", partial(refuse, errno.EROFS, "a"))
    files.require()
    assert not list(Path(tmp_path).iterdir())
