"""What strangers name their files and tensors, in messages."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from fastadaad.data import DataError
from fastadaad.models import WeightsError, load_model
from fastadaad.printable import HEAD, TAIL, printable


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
def test_text_as_it_is_shown(text, shown):
    assert printable(text) == shown
    assert printable(shown[:100]) == shown[:100]


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
