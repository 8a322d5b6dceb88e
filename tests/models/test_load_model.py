"""Reading weights: formats, wrappers, prefixes, and a one-line error for each problem."""

import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from fastadaad.models import WeightsError, load_model, read_state_dict

NAME = "cnn-2"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Returns a state dict of NAME; no tensor has its initial value."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_model(NAME).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for key, value in tensors.items()
    }


def load(content, path, **options) -> torch.nn.Module:
    torch.save(content, path)
    return load_model(NAME, checkpoint=path, **options)


def assert_equal_weights(model, weights) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def error_of(path, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        load_model(NAME, checkpoint=path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message


def test_safetensors(weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    assert_equal_weights(load_model(NAME, checkpoint=tmp_path / "w.safetensors"), weights)


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_torch_save(weights, tmp_path, suffix):
    assert_equal_weights(load(OrderedDict(weights), tmp_path / f"w.{suffix}"), weights)


@pytest.mark.parametrize("wrappers", [["state_dict"], ["model"], ["net"], ["model", "state_dict"]])
def test_wrapped(weights, tmp_path, wrappers):
    content = weights
    for wrapper in wrappers:
        content = {"epoch": 3, "best": 0.5, wrapper: content}
    assert_equal_weights(load(content, tmp_path / "w.pt"), weights)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.model.", "module.module."])
def test_prefixed(weights, tmp_path, prefix):
    content = {"state_dict": {prefix + key: value for key, value in weights.items()}}
    assert_equal_weights(load(content, tmp_path / "w.pt"), weights)


def test_only_leading_prefixes_are_stripped(tmp_path):
    torch.save({"module.a.module.b": torch.ones(1), "amodule.c": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_state_dict(tmp_path / "w.pt")) == {"a.module.b", "amodule.c"}


def test_counters_and_normalisation_may_be_missing(weights, tmp_path):
    optional = {key for key in weights if "num_batches_tracked" in key or "normalize" in key}
    assert len(optional) == 5
    model = load({key: weights[key] for key in weights if key not in optional}, tmp_path / "w.pt", mean=0.25)
    assert model.normalize.mean.flatten().tolist() == [0.25] * 3
    state = model.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in weights if key not in optional)


def test_misfits_are_listed_together_and_nothing_is_loaded(weights, tmp_path):
    content = {key: value for key, value in weights.items() if not key.startswith("features.0")}
    content |= {"extra.weight": torch.zeros(1), "fc.bias": torch.zeros(12)}
    torch.save(content, tmp_path / "w.pt")
    model = load_model(NAME)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = error_of(tmp_path / "w.pt")
    assert message == (
        f"{tmp_path / 'w.pt'} does not fit SmallCNN: 5 missing (features.0.0.weight, features.0.1.weight, "
        "features.0.1.bias, ...); 1 unexpected (extra.weight); 1 of wrong shape (fc.bias [12] instead of [10]): "
        "check the model's name, num_classes, in_channels"
    )
    assert_equal_weights(model, before)


def test_wrong_number_of_classes_is_reported(weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    message = error_of(tmp_path / "w.safetensors", num_classes=100)
    assert "2 of wrong shape (fc.weight [10, 8] instead of [100, 8], fc.bias [10] instead of [100])" in message


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_without_running_it(weights, tmp_path, zipped):
    content = {"state_dict": weights, "args": Attack(tmp_path / "ran")}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    message = error_of(tmp_path / "w.pt")
    assert "is refused: loading it calls io.open, which could run any code or fill the memory; save" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_not_run(tmp_path):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    assert "is not a torch.save file or is corrupt" in error_of(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kept", "suffix"), [(0, "pt"), (0.5, "pt"), (0.99, "pt"), (0, "safetensors"), (0.5, "safetensors")]
)
def test_a_truncated_file_is_reported(weights, tmp_path, kept, suffix):
    path = tmp_path / f"w.{suffix}"
    {"pt": torch.save, "safetensors": save_file}[suffix](weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "or is corrupt" in error_of(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_web_page_is_reported(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_text("<!DOCTYPE html><html></html>")
    assert "is a web page, not weights" in error_of(path)


@pytest.mark.parametrize("length", [0x3C, 0x3C20])
def test_a_header_whose_length_reads_like_a_tag_is_not_a_web_page(tmp_path, length):
    """The bytes of the length, little-endian, are "<", or a space and "<"."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"__metadata__": {}}'.ljust(length))
    assert read_state_dict(path) == {}


def test_a_missing_file_and_a_folder_are_reported(tmp_path):
    assert error_of(tmp_path / "w.pt").endswith("does not exist: give a .safetensors, .pt or .pth file")
    assert error_of(tmp_path).endswith("is a folder: give a .safetensors, .pt or .pth file")


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)], {"model": {"a": 1}}, {0: torch.zeros(1)}])
def test_a_file_without_a_state_dict_is_reported(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    assert "holds no state dict, neither directly nor under state_dict, model_state_dict, model, " in error_of(
        tmp_path / "w.pt"
    )


def test_two_networks_in_one_file_are_reported(weights, tmp_path):
    torch.save(weights | {f"module.{key}": value for key, value in weights.items()}, tmp_path / "w.pt")
    assert "holds more than one network" in error_of(tmp_path / "w.pt")


def test_weights_of_the_package_load_by_their_name():
    from fastadaad.models.shipped import FOLDER

    shipped = load_model("cnn-72-s1", in_channels=1, checkpoint="shipped:demo-teacher")
    direct = load_model("cnn-72-s1", in_channels=1, checkpoint=FOLDER / "demo-teacher.safetensors")
    assert_equal_weights(shipped, direct.state_dict())
    with pytest.raises(ValueError, match="shipped:nothing is not part of this package: shipped are "):
        load_model("cnn-72-s1", checkpoint="shipped:nothing")
