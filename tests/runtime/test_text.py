"""Untrusted names of files and tensors in messages."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from fastadaad import cli
from fastadaad.data import DataError
from fastadaad.models import WeightsError, load_model
from fastadaad.models.weights_writing import save_weights
from fastadaad.runtime.progress import image_progress
from fastadaad.runtime.text import HEAD, TAIL, line_of, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wrn-34-10 ε ≤ 8/255 '日本'", "wrn-34-10 ε ≤ 8/255 '日本'"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[2J\x07\x9b", r"\x1b[2J\x07\x9b"),
        ("\u2028\u202e\ufeff", r"\u2028\u202e\ufeff"),
        ("\udcff", r"\udcff"),
        ("a" * (HEAD + TAIL), "a" * (HEAD + TAIL)),
        ("a" * HEAD + "b" * 10**6 + "c" * TAIL, "a" * HEAD + "..." + "c" * TAIL),
    ],
)
def test_text_is_escaped_and_truncated(text, shown):
    assert printable(text) == shown
    assert printable(shown[:100]) == shown[:100]


def test_an_error_of_the_system_gets_a_remedy_and_one_of_two_lines_becomes_one():
    lost = FileNotFoundError(2, "No such file or directory", "a\nb")
    assert line_of(lost) == "a b cannot be used (No such file or directory): make it possible, or give another place"
    assert line_of(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert line_of(ValueError("one\n  two\x1b")) == r"one two\x1b"


@pytest.mark.parametrize("kind", [DataError, WeightsError])
def test_an_error_is_one_line_in_another_process_too(kind):
    error = kind("images/\x1b[2Jcat\n.png is empty")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == r"images/\x1b[2Jcat\n.png is empty"


def test_names_of_tensors_do_not_break_the_line(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"\x1b[2J\n": torch.ones(1), "b" * 10_000: torch.ones(1)}, path)
    with pytest.raises(WeightsError) as caught:
        load_model("cnn-2", checkpoint=path)
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit SmallCNN: ")
    assert r"2 unexpected (\x1b[2J\n, bbb" in message
    assert message.endswith("check the model's name, num_classes, in_channels")
    assert len(message) < HEAD + TAIL + 20


NAME = "\x1b[2J[/bold][red]"


def test_inspect_shows_names_literally(tmp_path, capsys, monkeypatch):
    """Names of tensors and folders are escaped, and are not markup."""
    monkeypatch.chdir(tmp_path)
    save_file({NAME: torch.ones(1)}, "w.safetensors")
    assert cli.main(["inspect", "w.safetensors"]) == 0
    assert capsys.readouterr().out.endswith("first tensors: \\x1b[2J[/bold][red]\n")
    path = Path(f"{NAME}.safetensors")
    path.parent.mkdir(parents=True)
    save_weights(path, load_model("cnn-2"))
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(" ")
    assert out.splitlines()[0].strip() == "bold][red].safetensors"
    assert out.endswith("teacher.checkpoint=\\x1b[2J[/bold][red].safetensors\n")
    assert cli.main(["export", str(path), "[/red].safetensors"]) == 2  # there is no folder [
    assert cli.main(["export", str(path), f"{path.parent}/w.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("\\x1b[2J[/w.safetensors: cnn-2")


@pytest.mark.parametrize("words", [["evaluate", "\x1b[2J"], ["evaluate", "a\0"], ["train", "demo", "--a\nb"]], ids=str)
def test_a_wrong_argument_is_reported_in_one_line(capsys, words):
    try:
        code = cli.main(words)
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert repr(words[-1])[1:-1] in error
    assert error.removesuffix("\n").isprintable()


def test_a_progress_bar_shows_its_title_literally():
    console = Console(file=io.StringIO(), width=100)
    with image_progress(console, NAME, 1):
        pass
    assert console.file.getvalue().startswith("\\x1b[2J[/bold][red] ")
