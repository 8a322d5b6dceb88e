"""Checkpoints that are damaged, foreign, from another version, or cannot be written."""

import functools
import json
import operator
import os
import random
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stopped_runs import (
    StopHereError,
    before_step,
    die,
    full_disk,
    long_run,
    printed_by,
    run_until,
    trainer,
    untimed_rows,
    weights,
)

from fastadaad.training import checkpoint as run_checkpoint
from fastadaad.training.checkpoint import (
    CheckpointError,
    CheckpointFacts,
    checkpoint_paths,
    last_checkpoint,
    last_facts,
    read_checkpoint,
    write_checkpoint,
)
from fastadaad.training.state import NUMBERS


def test_a_checkpoint_that_lacks_an_item_of_this_version_is_refused(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    monkeypatch.setattr("fastadaad.training.state.NUMBERS", (*NUMBERS, "something new"))
    with pytest.raises(
        CheckpointError, match=r"does not hold the state of this version \('something new'\): resume with the version"
    ):
        trainer(long_run(), tmp_path, resume=True)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_the_header(path: Path) -> None:
    """Changes a number of the JSON, which stays valid."""
    content = path.read_bytes()
    assert b'\\"epochs\\": 3' in content
    path.write_bytes(content.replace(b'\\"epochs\\": 3', b'\\"epochs\\": 2', 1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_weights(path: Path) -> None:
    path.write_bytes((path.parent.parent / "last.safetensors").read_bytes())


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_web_page(path: Path) -> None:
    path.write_text("<html>not found</html>")


DAMAGES = [flip_a_bit, flip_a_bit_of_the_header, truncate, replace_by_weights, empty, replace_by_a_web_page]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_detected_and_the_one_before_is_used(tmp_path, damage):
    config = long_run()
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run_until(config, folder, step=6)
    last, before = checkpoint_paths(folder)
    damage(last)
    with pytest.raises(CheckpointError, match=f"^{last} "):
        read_checkpoint(last)
    resumed = trainer(config, folder, resume=True)
    assert resumed.state.step == 5
    assert f"{last} is " in printed_by(resumed)
    assert f"resuming from {before}" in printed_by(resumed)
    assert checkpoint_paths(folder) == [before]
    assert last.with_suffix(".damaged").exists()
    resumed.train()
    assert weights(folder) == weights(tmp_path / "whole")


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    """A flipped bit anywhere is detected, or changes nothing that is read."""
    run_until(long_run(), tmp_path, step=2)
    path = checkpoint_paths(tmp_path)[0]
    original, content = read_checkpoint(path), path.read_bytes()
    draws = random.Random(0)
    unseen = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            continue
        unseen += 1
        assert found.facts == original.facts
    assert unseen <= 2


def test_a_run_without_a_usable_checkpoint_is_not_started_again(tmp_path):
    run_until(long_run(), tmp_path, step=6)
    for path in checkpoint_paths(tmp_path):
        truncate(path)
    with pytest.raises(
        CheckpointError, match=r"none of the 2 checkpoints in .* can be used: to start again, move .* away"
    ):
        trainer(long_run(), tmp_path, resume=True)


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_training_continues(tmp_path, monkeypatch):
    config = long_run()
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run = trainer(config, folder)
    before_step(run, 3, lambda: monkeypatch.setattr(os, "fsync", full_disk))
    seen = []
    before_step(run, 7, lambda: seen.extend(map(read_checkpoint, checkpoint_paths(folder))))
    before_step(run, 10, monkeypatch.undo)
    run.train()
    assert [checkpoint.state["training"]["step"] for checkpoint in seen] == [3, 2]
    assert printed_by(run).count("the checkpoint cannot be written ([Errno 28] No space left on device)") == 1
    assert weights(folder) == weights(tmp_path / "whole")  # the failed writes were repeated later
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")


def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path, monkeypatch):
    run = trainer(long_run(), tmp_path)
    before_step(run, 3, lambda: monkeypatch.setattr(os, "fsync", full_disk))
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert run.state.epoch == 3
    assert last_checkpoint(tmp_path).facts.epoch == 0


def test_no_checkpoint_comes_before_the_best_weights_of_an_earlier_epoch(tmp_path, monkeypatch):
    """A process that resumes from this checkpoint would not write them again."""
    always_the_same = {"natural_accuracy": 0.9, "robust_accuracy": 0.5}  # the first epoch stays the best
    monkeypatch.setattr(
        "fastadaad.training.trainer.evaluate_on_validation_split", lambda *given, **options: always_the_same
    )
    trainer(long_run(), tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    best = folder / "best.safetensors"
    best.mkdir(parents=True)  # no file can replace a folder
    run = trainer(long_run(), folder)
    seen = []
    before_step(run, 5, lambda: seen.extend(path.stem for path in checkpoint_paths(folder)))
    before_step(run, 5, best.rmdir)
    before_step(run, 6, die)
    with pytest.raises(StopHereError):
        run.train()
    assert seen == ["step-000000004", "step-000000003"]
    (refused,) = [line for line in printed_by(run).splitlines() if line.startswith("the checkpoint cannot be written")]
    assert str(best) in refused
    resumed = trainer(long_run(), folder, resume=True)
    assert resumed.state.step == 6
    resumed.train()
    assert weights(folder) == weights(tmp_path / "whole")


def test_a_checkpoint_is_synced_before_its_renaming_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    fsync, replace_file = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "contents")
        fsync(descriptor)

    def note_replace(source, target) -> None:
        done.append("name")
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    facts = CheckpointFacts(run={}, versions={}, processes=1, epoch=0, epochs=1, finished=False)
    write_checkpoint(tmp_path, 1, facts, {"weights": torch.ones(3)})
    assert done == ["contents", "name", "folder"]


@pytest.mark.parametrize(
    "place",
    [("training", "epoch"), ("training", "optimizer", "state"), ("counts",), ("random_states", 0, "numpy", 1, 5)],
)
def test_an_untrusted_checkpoint_with_a_value_of_another_type_is_refused(tmp_path, place):
    run_until(long_run(), tmp_path, step=2)
    checkpoint = read_checkpoint(checkpoint_paths(tmp_path)[0])
    *outer, last = place
    functools.reduce(operator.getitem, outer, checkpoint.state)[last] = "something else"
    write_checkpoint(tmp_path, 2, checkpoint.facts, checkpoint.state)
    position = torch.get_rng_state()
    with pytest.raises(CheckpointError, match="does not hold the state of this version"):
        trainer(long_run(), tmp_path, resume=True)
    assert torch.equal(torch.get_rng_state(), position)


@pytest.mark.parametrize("name", ["run", "versions"])
def test_facts_of_another_type_are_refused(tmp_path, name):
    """The checksum of the file fits, as anyone can compute one."""
    facts = CheckpointFacts(run={}, versions={}, processes=1, epoch=0, epochs=1, finished=False)
    object.__setattr__(facts, name, ["seed"])
    path = write_checkpoint(tmp_path, 1, facts, {"weights": torch.ones(3)})
    with pytest.raises(CheckpointError, match="is no checkpoint of a run"):
        read_checkpoint(path)
    assert last_facts(tmp_path) is None


def test_a_lost_folder_is_reported_and_made_again(tmp_path):
    run = trainer(long_run(), tmp_path)
    checkpoints = tmp_path / "checkpoints"

    def put_a_file_in_its_place() -> None:
        for path in checkpoint_paths(tmp_path):
            path.unlink()
        checkpoints.rmdir()
        checkpoints.write_text("")

    before_step(run, 3, put_a_file_in_its_place)
    before_step(run, 6, checkpoints.unlink)
    run.train()
    assert printed_by(run).count("the checkpoint cannot be written") == 1
    assert len(checkpoint_paths(tmp_path)) == 2


def test_a_checkpoint_is_tensors_and_plain_json(tmp_path):
    run_until(long_run(), tmp_path, step=6)
    path = checkpoint_paths(tmp_path)[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fastadaad"])
    assert header["content"]["facts"]["run"]["optim"]["epochs"] == 3
    assert header["content"]["facts"]["versions"]["torch"] == torch.__version__
    tensors = load_file(path)
    assert any("momentum_buffer" in name for name in tensors)
    assert any("averaged" in name for name in tensors)
    assert not any(kind in content for kind in (b"\x80\x02", b"PK\x03\x04")[1:])  # no zip of pickles


def test_the_format_is_checked(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    monkeypatch.setattr(run_checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="has format 1, and this version reads 2"):
        read_checkpoint(checkpoint_paths(tmp_path)[0])
