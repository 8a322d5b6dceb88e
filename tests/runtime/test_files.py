"""Weights in a file: written in one piece, or not at all."""

import copy
import errno
import os
import stat
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fastadaad.models import read_state_dict
from fastadaad.models.weights_writing import save_weights
from fastadaad.runtime.files import write_atomically


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "last.safetensors"
    write_atomically(path, b"old")

    def crash(*args):
        raise OSError("planted")

    monkeypatch.setattr(os, failing, crash)
    with pytest.raises(OSError, match="planted"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("code", "is_raised"), [(errno.EINVAL, False), (errno.EBADF, False), (errno.EIO, True)])
def test_a_disk_that_synchronises_no_folders_has_the_file(tmp_path, monkeypatch, code, is_raised):
    synchronise = os.fsync

    def synchronise_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", synchronise_files)
    with pytest.raises(OSError, match="Input/output") if is_raised else nullcontext():
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_weights_that_cannot_be_serialised_leave_the_old_file(tmp_path):
    path = tmp_path / "last.safetensors"
    network = nn.Linear(2, 2)
    save_weights(path, network, epoch=1)
    old = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_weights(path, network, epoch=object())
    assert path.read_bytes() == old


def test_channels_last_weights_are_saved(tmp_path):
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    expected = copy.deepcopy(network.state_dict())
    save_weights(tmp_path / "weights.safetensors", network)
    for name, tensor in read_state_dict(tmp_path / "weights.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
