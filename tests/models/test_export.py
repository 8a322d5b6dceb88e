"""Exported files load elsewhere: RobustBench's names and logits, and fastadaad's load_model."""

import pytest
import torch
from robustbench_definition import wide_resnet_logits, wide_resnet_shapes
from safetensors import safe_open
from safetensors.torch import load_file

from fastadaad import load_model
from fastadaad.models.export import export
from fastadaad.models.weights_writing import save_weights

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def saved(tmp_path, name: str = "wrn-10-2", **options):
    """Returns a network whose weights are in a file; its batch-norm statistics are not those of a new layer."""
    torch.manual_seed(0)
    model = load_model(name, num_classes=7, **options)
    with torch.no_grad():
        model(torch.rand(32, 3, 16, 16) ** 2)
    save_weights(tmp_path / "best.safetensors", model)
    return model.eval()


def test_the_pt_file_has_the_names_and_logits_of_robustbench(tmp_path):
    model = saved(tmp_path)
    lines = export(tmp_path, tmp_path / "student.pt")
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wide_resnet_shapes(1, 2, 7)
    torch.testing.assert_close(wide_resnet_logits(state, IMAGES, 1), model(IMAGES), rtol=1e-4, atol=1e-5)
    assert lines == [
        f"{tmp_path / 'student.pt'}: loads into RobustBench's WideResNet(depth=10, widen_factor=2, num_classes=7)"
    ]


def test_a_normalisation_becomes_mu_and_sigma(tmp_path):
    model = saved(tmp_path, mean=(0.4, 0.5, 0.6), std=0.25)
    lines = export(tmp_path / "best.safetensors", tmp_path / "student.pt")
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    assert (state["mu"].shape, state["sigma"].shape) == ((1, 3, 1, 1), (1, 3, 1, 1))
    torch.testing.assert_close(wide_resnet_logits(state, IMAGES, 1), model(IMAGES), rtol=1e-4, atol=1e-5)
    assert "mu and sigma" in lines[1]
    again = load_model("wrn-10-2", num_classes=7, checkpoint=tmp_path / "student.pt").eval()
    torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn-10-1", "resnet18", "preactresnet18", "mobilenet-v2", "cnn-8"])
def test_safetensors_and_state_dict_reload_with_the_same_logits(name, tmp_path):
    model = saved(tmp_path, name, mean=0.5, std=0.25)
    x = torch.rand(2, 3, 32, 32)
    for out in ("student.safetensors", "student.pt"):
        export(tmp_path, tmp_path / out)
        again = load_model(name, num_classes=7, checkpoint=tmp_path / out).eval()
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert load_file(tmp_path / "student.safetensors").keys() == model.state_dict().keys()
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert name in file.metadata()["fastadaad"]


def test_impossible_exports_raise_and_overwrite_nothing(tmp_path):
    saved(tmp_path)
    (tmp_path / "old.pt").write_text("precious")
    with pytest.raises(ValueError, match=r"old\.pt exists already: give another name"):
        export(tmp_path, tmp_path / "old.pt")
    assert (tmp_path / "old.pt").read_text() == "precious"
    with pytest.raises(ValueError, match=r"give .safetensors, or .pt"):
        export(tmp_path, tmp_path / "student.onnx")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no network that fastadaad builds"):
        export(tmp_path / "other.pt", tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()
