"""Files that cannot be written for a while: one warning per reason, and another attempt with the next file."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from fastadaad.runtime.retrying_files import RetryingFiles


def refuse(code: int, *path: str) -> None:
    raise OSError(code, os.strerror(code), *path)


@pytest.fixture(autouse=True)
def messages_at_warning(caplog):
    caplog.set_level("WARNING", logger="fastadaad")


def test_a_reason_is_logged_once_for_all_files_of_a_name(caplog):
    files = RetryingFiles()
    for step in range(5):
        assert not files.attempt("the checkpoint", partial(refuse, errno.EROFS, f"step-{step}"))
    assert len(caplog.messages) == 1
    assert "the checkpoint cannot be written ([Errno 30] Read-only file system: 'step-0')" in caplog.messages[0]
    files.attempt("metrics.csv", partial(refuse, errno.EROFS, "metrics.csv"))
    assert len(caplog.messages) == 2


def test_another_reason_is_logged_too(caplog):
    files = RetryingFiles()
    for code in (errno.ENOSPC, errno.EROFS, errno.ENOSPC):
        files.attempt("the checkpoint", partial(refuse, code))
    assert [line.partition("(")[2].partition(")")[0] for line in caplog.messages] == [
        "[Errno 28] No space left on device",
        "[Errno 30] Read-only file system",
    ]


def test_a_failed_write_is_repeated_with_the_next_file(tmp_path, caplog):
    files = RetryingFiles()
    place = tmp_path / "run"
    place.write_text("a file in the folder's place")
    files.write(place / "a", b"old")
    files.write(place / "a", b"new")
    with pytest.raises(OSError, match="run"):
        files.require()
    place.unlink()
    files.write(place / "b", b"b")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"a": b"new", "b": b"b"}
    assert len(caplog.messages) == 1
    files.require()


def test_a_required_file_is_named_even_if_the_system_names_none(tmp_path, monkeypatch):
    files = RetryingFiles()
    monkeypatch.setattr("os.fsync", lambda descriptor: refuse(errno.ENOSPC))
    files.write(tmp_path / "best", b"weights")
    with pytest.raises(OSError, match="No space left") as caught:
        files.require()
    assert caught.value.filename == str(tmp_path / "best")


def test_a_rank_that_is_not_enabled_writes_nothing(tmp_path):
    files = RetryingFiles(enabled=False)
    files.write(tmp_path / "a", b"a")
    assert files.attempt("the checkpoint", partial(refuse, errno.EROFS, "a"))
    files.require()
    assert not list(Path(tmp_path).iterdir())


def test_a_stale_handle_of_a_network_disk_is_tried_again(tmp_path, monkeypatch, caplog):
    """NFS answers ESTALE for a folder that was replaced on the server."""
    replace, failures = os.replace, [errno.ESTALE, errno.ESTALE]

    def stale(*paths: Path) -> None:
        if failures:
            refuse(failures.pop())
        replace(*paths)

    monkeypatch.setattr(os, "replace", stale)
    files = RetryingFiles()
    for content in (b"first", b"second", b"third"):
        files.write(tmp_path / "metrics.csv", content)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"third"]
    assert len(caplog.messages) == 1
    assert "Stale file handle" in caplog.messages[0]
