"""Output that fails ends no work: a full disk, a closed stream, a reader that has gone, a terminal that has gone."""

import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console
from stopped_runs import before_step, long_run, trainer, weights

from fastadaad import cli
from fastadaad.runtime.messages import LogFile, messages_on
from fastadaad.runtime.output import TolerantStream, lost_output, tolerant_output
from fastadaad.training.trainer import Trainer


def full() -> TextIO:
    return open("/dev/full", "w", buffering=1)


def closed() -> TextIO:
    with open(os.devnull, "w") as stream:
        return stream


def without_reader() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def without_terminal() -> TextIO:
    """Returns a terminal whose other side is gone."""
    other, own = os.openpty()
    stream = os.fdopen(own, "w", buffering=1)
    os.close(other)
    return stream


FAULTS = {
    "full disk": (full, "No space left on device"),
    "closed": (closed, "I/O operation on closed file"),
    "no reader": (without_reader, "Broken pipe"),
    "no terminal": (without_terminal, "Input/output error"),
}


def discard(stream: TextIO) -> None:
    """Closes a stream and drops what it holds back."""
    if not stream.closed:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), stream.fileno())
        stream.close()


@pytest.fixture(params=FAULTS)
def fault(request) -> Iterator[tuple[TextIO, str]]:
    make, reason = FAULTS[request.param]
    stream = make()
    yield stream, reason
    discard(stream)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    trainer(long_run(), folder).train()
    return weights(folder)


def test_a_stream_keeps_its_first_error(fault):
    stream = TolerantStream(fault[0])
    assert stream.write(2 * "line\n") == 10
    stream.write("more\n")
    stream.flush()
    assert fault[1] in str(stream.error)


def test_a_training_goes_on_without_its_console_and_has_its_messages_in_a_file(fault, tmp_path, whole):
    run = Trainer(long_run(), tmp_path, Console(file=fault[0], width=200))
    run.train()
    assert weights(tmp_path) == whole
    assert "tiny pgd-at seed 0: student fp32" in (tmp_path / "log.txt").read_text()


def test_a_training_goes_on_without_the_standard_streams(tmp_path, whole, monkeypatch):
    stream = full()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    run = Trainer(long_run(), tmp_path)
    before_step(run, 2, lambda: warnings.warn("a warning", stacklevel=1))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        run.train()
    assert weights(tmp_path) == whole
    lines = (tmp_path / "log.txt").read_text()
    assert "UserWarning: a warning\n" in lines
    assert "stdout cannot be written (No space left on device): the run goes on\n" in lines
    assert sys.stdout is stream
    discard(stream)


@pytest.fixture
def terminal() -> Iterator[None]:
    """The signal's default, as under a terminal; nohup, under which the tests may run, ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_goes_away_ends_no_training(tmp_path, whole):
    run, before = trainer(long_run(), tmp_path), signal.getsignal(signal.SIGHUP)
    before_step(run, 5, lambda: signal.raise_signal(signal.SIGHUP))
    run.train()
    assert weights(tmp_path) == whole
    assert "SIGHUP: the terminal is gone, and the work goes on" in (tmp_path / "log.txt").read_text()
    assert signal.getsignal(signal.SIGHUP) == before


def test_messages_wait_until_their_file_can_be_written(tmp_path):
    path, log = tmp_path / "folder" / "log.txt", logging.getLogger("fastadaad.test")
    with messages_on(Console(file=io.StringIO())), LogFile(path) as file:
        log.info("first")
        file.begin()
        log.info("second")
        assert not path.exists()
        path.parent.mkdir()
        log.info("third\x1b[2J")
        assert [line[20:] for line in path.read_text().splitlines()] == ["first", "second", r"third\x1b[2J"]
    log.info("fourth")
    assert path.read_text().count("\n") == 3


def test_letters_that_a_stream_lacks_are_escaped():
    content = io.BytesIO()
    stream = TolerantStream(io.TextIOWrapper(content, encoding="ascii"))
    stream.write("85.0 \u00b1 0.4\n")
    stream.flush()
    assert (content.getvalue(), stream.error) == (rb"85.0 \xb1 0.4" + b"\n", None)


def test_the_streams_are_restored_unless_somebody_has_replaced_them(monkeypatch):
    console, other = Console(file=io.StringIO()), io.StringIO()
    streams = sys.stdout, sys.stderr
    with tolerant_output(console):
        assert lost_output() == []
    assert (sys.stdout, sys.stderr) == streams
    with tolerant_output(console):
        monkeypatch.setattr(sys, "stdout", other)
    assert sys.stdout is other


@pytest.mark.parametrize(
    ("make", "code", "line"), [(full, 2, "(No space left on device): make room"), (without_reader, 141, "")]
)
def test_a_result_that_cannot_be_printed_is_an_error(make: Callable[[], TextIO], code, line, monkeypatch, capsys):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(cli, "end_output", lambda: None)
    assert cli.main(["recipes"]) == code
    assert line in capsys.readouterr().err
    discard(stream)


PROGRAM = """
import os, sys
from fastadaad.runtime.output import open_standard_streams
open_standard_streams()
with open(sys.argv[1], "w") as file:
    os.write(1, b"a library prints")
    os.write(2, b"a library prints")
    file.write("a checkpoint")
"""


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path):
    path = tmp_path / "file"
    command = f"exec {sys.executable} -c '{PROGRAM}' {path} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command]).returncode == 0
    assert path.read_text() == "a checkpoint"
