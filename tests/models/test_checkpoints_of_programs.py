"""Checkpoints in the layouts of PyTorch Lightning, robustness and MAIR, and the values beside their weights."""

import argparse
import collections
import gzip
import io
import math
import pathlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from robustbench_definition import wide_resnet_logits, wide_resnet_shapes
from safetensors.torch import save_file
from torch import Tensor, nn

from fastadaad.models import WeightsError, load_model, load_weights, read_state_dict
from fastadaad.models.weights_reading import read_checkpoint
from fastadaad.models.weights_values import HARMLESS

NAME, NUM_BLOCKS = "wrn-10-1", 1
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> dict[str, Tensor]:
    """Returns the state dict of NAME without normalisation; no tensor has its initial value."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in wide_resnet_shapes(NUM_BLOCKS, 1, 10).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(9 + seed)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) / max(math.prod(shape[1:]), 1) ** 0.5
    return state


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_logits(model: nn.Module, state: dict[str, Tensor], mean=(0.0,) * 3, std=(1.0,) * 3) -> None:
    """Asserts that the logits are those of RobustBench's definition at normalised pixels."""
    x = (IMAGES - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(model.eval()(IMAGES), wide_resnet_logits(state, x, NUM_BLOCKS), rtol=1e-4, atol=1e-5)


def loaded(content: object, folder: Path, **options) -> nn.Module:
    torch.save(content, folder / "w.ckpt")
    return load_model(NAME, checkpoint=folder / "w.ckpt", **options)


def error_of(path: Path, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        load_model(NAME, checkpoint=path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


# Lightning


def lightning(tensors: dict[str, Tensor]) -> dict[str, object]:
    """Returns the entries of a Lightning checkpoint, with hyperparameters and the state of a callback."""
    return {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": tensors,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'mode': 'min'}": {"best_model_score": torch.ones(()), "dirpath": "/runs"}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"root": pathlib.Path("/data"), "args": argparse.Namespace(lr=0.1)},
    }


@pytest.mark.parametrize(
    "prefix", ["student.", "teacher.", "net.", "model.", "backbone.", "model.net.", "student.model.", "student.net."]
)
def test_the_only_network_of_a_lightning_module(prefix, tmp_path):
    state = network()
    assert_logits(loaded(lightning(named(prefix, state)), tmp_path), state)
    assert_logits(loaded(lightning(named(prefix, state)), tmp_path, prefix=prefix.rstrip(".")), state)


def test_several_networks_are_named_and_chosen_by_prefix(tmp_path):
    student, teacher = network(0), network(1)
    content = lightning(named("student.", student) | named("teacher.model.", teacher) | {"loss.weight": torch.ones(10)})
    torch.save(content, tmp_path / "w.ckpt")
    assert error_of(tmp_path / "w.ckpt") == (
        "holds several networks (student, teacher): choose one with prefix='student', or write it to a file of its own "
        "with fastadaad export --prefix student"
    )
    assert_logits(loaded(content, tmp_path, prefix="student"), student)
    assert_logits(loaded(content, tmp_path, prefix="teacher."), teacher)
    assert_logits(loaded(content, tmp_path, prefix="teacher.model"), teacher)
    assert read_state_dict(tmp_path / "w.ckpt", prefix="student").keys() == student.keys()
    assert error_of(tmp_path / "w.ckpt", prefix="ema") == (
        "has no network under prefix='ema': no name begins with ema.: the first names are student, teacher, loss"
    )


def test_an_average_beside_the_network_must_be_chosen(tmp_path):
    plain, averaged = network(0), network(1)
    content = {"state_dict": named("model.", plain) | named("ema_model.module.", averaged)}
    torch.save(content, tmp_path / "w.ckpt")
    assert error_of(tmp_path / "w.ckpt").startswith("holds several networks (model, ema_model): choose one with ")
    assert_logits(loaded(content, tmp_path, prefix="model"), plain)
    assert_logits(loaded(content, tmp_path, prefix="ema_model"), averaged)


def test_networks_in_a_network_are_named_with_the_prefix_around_them(tmp_path):
    state = named("student.net.", network(0)) | named("student.ema.", network(1)) | named("teacher.", network(2))
    torch.save(state, tmp_path / "w.ckpt")
    assert "(student.net, student.ema)" in error_of(tmp_path / "w.ckpt", prefix="student")
    assert_logits(loaded(state, tmp_path, prefix="student.ema"), network(1))


def test_a_prefix_behind_wrappers(tmp_path):
    state = named("_orig_mod.module.student.", network(0)) | named("_orig_mod.module.teacher.", network(1))
    torch.save(state, tmp_path / "w.ckpt")
    assert "(_orig_mod.module.student, _orig_mod.module.teacher)" in error_of(tmp_path / "w.ckpt")
    assert_logits(loaded(state, tmp_path, prefix="_orig_mod.module.teacher"), network(1))
    assert_logits(loaded(state, tmp_path, prefix="teacher"), network(1))


def test_a_prefix_may_be_an_entry(tmp_path):
    content = {"model": network(0), "teacher": named("module.", network(1)), "epoch": 3}
    assert_logits(loaded(content, tmp_path), network(0))
    assert_logits(loaded(content, tmp_path, prefix="teacher"), network(1))


def test_a_normalisation_beside_the_network_belongs_to_it(tmp_path):
    beside = {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
    student, teacher = network(0), network(1)
    assert_logits(loaded(named("net.", student) | beside, tmp_path), student, MEAN, STD)
    both = named("student.", student) | named("teacher.", teacher) | beside
    assert_logits(loaded(both, tmp_path, prefix="teacher"), teacher, MEAN, STD)


def test_tensors_of_no_network_are_not_dropped_silently(tmp_path):
    torch.save(named("net.", network()) | {"loss.weight": torch.ones(10)}, tmp_path / "w.ckpt")
    message = error_of(tmp_path / "w.ckpt")
    assert "unexpected (net.conv1.weight" in message
    assert message.endswith("or give prefix='net'")
    assert_logits(loaded(torch.load(tmp_path / "w.ckpt"), tmp_path, prefix="net"), network())


def test_weights_of_a_module_of_several_networks_still_fit_that_module(tmp_path):
    module = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2), "net": nn.Linear(2, 2)})
    torch.save(module.state_dict(), tmp_path / "w.pt")
    other = nn.ModuleDict({name: nn.Linear(2, 2) for name in module})
    load_weights(other, tmp_path / "w.pt")
    x = torch.rand(3, 2)
    for name, layer in module.items():
        assert torch.equal(other[name](x), layer(x))


def test_a_network_whose_own_names_begin_with_net_is_filled(tmp_path):
    """The names behind the first prefix fit; removing the second one as well would not."""
    inner = nn.Sequential(collections.OrderedDict(net=nn.Linear(2, 2)))
    torch.save(named("student.", inner.state_dict()), tmp_path / "w.pt")
    other = nn.Sequential(collections.OrderedDict(net=nn.Linear(2, 2)))
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.net.weight, inner.net.weight)


def test_a_checkpoint_of_the_lightning_example(tmp_path):
    """The teacher is no submodule of the example, so the student is the only network."""
    pl = pytest.importorskip("pytorch_lightning")
    from digits import robust_teacher
    from lightning_module import RobustDistillation

    from fastadaad import InnerConfig, ThreatModel

    student, teacher = load_model("cnn-16-s1", in_channels=1), robust_teacher()
    inner = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.05, num_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=0
    )
    trainer.strategy.connect(RobustDistillation(student, teacher, "adaad", inner))
    trainer.save_checkpoint(tmp_path / "w.ckpt", weights_only=False)
    x = torch.rand(4, 1, 8, 8)
    for prefix in ("student", None):
        read = load_model("cnn-16-s1", in_channels=1, checkpoint=tmp_path / "w.ckpt", prefix=prefix)
        assert torch.equal(read.eval()(x), student.eval()(x))


# robustness


def robustness(state: dict[str, Tensor], attacked: dict[str, Tensor] | None = None) -> dict[str, object]:
    """Returns a checkpoint of MadryLab's robustness: the network, its copy in the attacker, and two normalisers."""
    normalizer = {"new_mean": torch.tensor(MEAN).reshape(3, 1, 1), "new_std": torch.tensor(STD).reshape(3, 1, 1)}
    copied = named("normalize.", normalizer) | named("model.", attacked or state)
    tensors = (
        named("module.normalizer.", normalizer)
        | named("module.model.", state)
        | {f"module.attacker.{name}": tensor.clone() for name, tensor in copied.items()}
    )
    return {"model": tensors, "optimizer": {"state": {}}, "schedule": None, "epoch": 3, "amp": None}


def test_robustness(tmp_path):
    state = network()
    assert_logits(loaded(robustness(state), tmp_path), state, MEAN, STD)
    assert_logits(loaded(robustness(state), tmp_path, prefix="module.model"), state, MEAN, STD)
    checkpoint = read_checkpoint(tmp_path / "w.ckpt")
    assert len(checkpoint.unused) == len(state) + 2
    assert checkpoint.beside == ("optimizer", "schedule", "epoch", "amp")


def test_an_attacker_with_other_weights_is_another_network(tmp_path):
    torch.save(robustness(network(0), attacked=network(1)), tmp_path / "w.ckpt")
    assert error_of(tmp_path / "w.ckpt").startswith("holds several networks (module.model, module.attacker): choose")
    assert_logits(load_model(NAME, checkpoint=tmp_path / "w.ckpt", prefix="module.attacker"), network(1), MEAN, STD)


# MAIR

CHANNELS = {
    "list": list,
    "tuple": tuple,
    "tensor": torch.tensor,
    "buffer": lambda values: torch.tensor(values).reshape(1, 3, 1, 1),
    "float32": lambda values: np.array(values, np.float32),
    "float64": np.array,
    "big-endian": lambda values: np.array(values, ">f4"),
    "numbers": lambda values: [np.float32(value) for value in values],
}


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
@pytest.mark.parametrize("kind", CHANNELS)
def test_mair(prefix, kind, tmp_path):
    state = network()
    content = {
        "rmodel": named(prefix, state),
        "mean": CHANNELS[kind](MEAN),
        "std": CHANNELS[kind](STD),
        "n_classes": 10,
    }
    assert_logits(loaded(content, tmp_path), state, MEAN, STD)
    assert read_checkpoint(tmp_path / "w.ckpt").beside == ("n_classes",)


def test_mairs_own_buffers_win_and_a_missing_normalisation_is_none(tmp_path):
    state = network()
    own = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD), "n_classes": torch.tensor(10)}
    assert_logits(loaded({"rmodel": state | own, "mean": [0.0] * 3, "std": [9.0] * 3}, tmp_path), state, MEAN, STD)
    assert_logits(loaded({"rmodel": state, "mean": None, "std": None}, tmp_path), state)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ("0.5", STD),
        (MEAN, [0.25, 0.0, 0.25]),
        (MEAN, [0.25, float("nan"), 0.25]),
        ([], STD),
        ([[0.5]], STD),
        (np.array(["0.5"] * 3), STD),
        (np.array([0.5, None, 0.5]), STD),
        (torch.ones(()).expand(2**40), STD),
        (MEAN, 5000 * [0.5]),
        ([2**1500] * 3, STD),
    ],
    ids=range(10),
)
def test_mairs_normalisation_must_be_numbers(mean, std, tmp_path):
    torch.save({"rmodel": network(), "mean": mean, "std": std}, tmp_path / "w.ckpt")
    assert error_of(tmp_path / "w.ckpt").startswith("has a wrong normalisation (")


def test_mairs_normalisation_of_other_channels_does_not_fit(tmp_path):
    torch.save({"rmodel": network(), "mean": [0.5], "std": [0.5]}, tmp_path / "w.ckpt")
    assert "normalize.mean [1, 1, 1] instead of [3, 1, 1]" in error_of(tmp_path / "w.ckpt")


def test_mean_and_std_beside_other_weights_are_not_pixels(tmp_path):
    """They may be the accuracy over several seeds."""
    state = network()
    assert_logits(loaded({"state_dict": state, "mean": [0.5] * 3, "std": [0.1] * 3}, tmp_path), state)


# Values beside the weights

BESIDE = {
    "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.zeros((2, 3), order="F"),
    "empty": np.zeros(0),
    "strings": np.array(["a", "bc"]),
    "objects": np.array(["a", None], dtype=object),
    "records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "random": np.random.RandomState(0).get_state(),
    "path": pathlib.Path("/runs/a"),
    "pure path": pathlib.PureWindowsPath("c:/runs"),
    "history": collections.defaultdict(list, loss=[0.5]),
    "counts": collections.defaultdict(int, a=1),
    "losses": collections.defaultdict(float),
    "nested": collections.defaultdict(collections.Counter, a=collections.Counter("aab")),
    "ordered": collections.OrderedDict(a=1),
    "args": argparse.Namespace(lr=0.1, root=pathlib.Path("/data"), seeds=np.arange(3)),
    "bytes": b"",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_harmless_values_are_skipped_and_named(name, zipped, tmp_path):
    state, path = network(), tmp_path / "w.pth"
    for content in ({"state_dict": state, name: BESIDE[name]}, {**state, name: BESIDE[name]}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert_logits(load_model(NAME, checkpoint=path), state)
        assert read_checkpoint(path).beside == (name,)


@pytest.mark.parametrize("function", [dict.fromkeys, print, np.zeros, pathlib.Path.unlink, np.random.RandomState])
def test_a_default_or_a_value_that_calls_something_else_is_refused(function, tmp_path):
    torch.save({"state_dict": network(), "history": collections.defaultdict(function)}, tmp_path / "w.pt")
    assert error_of(tmp_path / "w.pt").startswith("is refused: loading it calls ")


def test_paths_arrays_and_dicts_with_a_default_are_not_built(tmp_path):
    torch.save(BESIDE, tmp_path / "w.pt")
    with torch.serialization.safe_globals(HARMLESS):
        read = torch.load(tmp_path / "w.pt", weights_only=True)
    assert read.keys() == BESIDE.keys()
    found = [*read.values(), *read["random"], *vars(read["args"]).values()]
    assert not any(isinstance(value, np.ndarray | pathlib.PurePath | collections.defaultdict) for value in found)
    assert read["history"] == {"loss": [0.5]}


def test_a_dict_of_tensors_beside_tensors_is_not_taken_for_a_harmless_value(tmp_path):
    torch.save({"step": torch.ones(1), "weights of mine": network()}, tmp_path / "w.pt")
    assert error_of(tmp_path / "w.pt").startswith("holds no state dict")


# Suffixes


@pytest.mark.parametrize("suffix", [".pt", ".PTH", ".pth.tar", ".ckpt", ".bin", "", ".safetensors", ".SAFETENSORS"])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_the_first_bytes_determine_the_format(suffix, kind, tmp_path):
    state, path = network(), tmp_path / f"w{suffix}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind == "zip")
    assert_logits(load_model(NAME, checkpoint=path), state)


def test_a_tar_archive_and_gzip_get_one_line(tmp_path):
    stream = io.BytesIO()
    torch.save(network(), stream)
    path = tmp_path / "w.pth.tar"
    path.write_bytes(gzip.compress(stream.getvalue()))
    assert error_of(path) == "is compressed by gzip: unpack it with gunzip, and give the file that results"
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        with tarfile.open(path, "w", format=form) as archive:
            archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
        assert error_of(path) == (
            "is a tar archive: unpack it and give the weights file in it; if torch before 0.1.10 wrote it, "
            "load and save it again with that torch"
        )
