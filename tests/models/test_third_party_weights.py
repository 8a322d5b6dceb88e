"""Third-party weights of a small WideResNet: every wrapper, prefix and normalisation."""

import argparse

import numpy as np
import pytest
import torch
from robustbench_definition import wide_resnet_logits, wide_resnet_shapes
from torch import Tensor, nn

from fastadaad.models import SmallCNN, WeightsError, WideResNet, load_model, read_state_dict
from fastadaad.models.recognition import Recognized, recognize
from fastadaad.models.robust_teachers import ROBUST_TEACHERS

NUM_BLOCKS, WIDTH, NUM_CLASSES = 2, 2, 7
NAME = "wrn-16-2"
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def published(seed: int = 0) -> dict[str, Tensor]:
    """Returns a state dict with RobustBench's names; no tensor has its initial value."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in wide_resnet_shapes(NUM_BLOCKS, WIDTH, NUM_CLASSES).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(9)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) / max(np.prod(shape[1:]), 1) ** 0.5
    return state


def save_and_load(content: object, folder, **options) -> nn.Module:
    torch.save(content, folder / "w.pt")
    return load_model(NAME, num_classes=NUM_CLASSES, checkpoint=folder / "w.pt", **options)


def assert_function(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Asserts that the model's logits are those of RobustBench's definition with `state`."""
    expected = wide_resnet_logits(state, IMAGES, NUM_BLOCKS)
    torch.testing.assert_close(model.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_our_names_are_robustbenchs():
    ours = {
        name: tuple(tensor.shape) for name, tensor in load_model(NAME, num_classes=NUM_CLASSES).state_dict().items()
    }
    normalization = {"normalize.mean": (3, 1, 1), "normalize.std": (3, 1, 1)}
    assert ours == wide_resnet_shapes(NUM_BLOCKS, WIDTH, NUM_CLASSES) | normalization


def test_a_bare_state_dict_gives_the_published_logits(tmp_path):
    state = published()
    assert_function(save_and_load(state, tmp_path), state)


def test_the_unused_copy_of_block1_is_left_out(tmp_path):
    state = published()
    copied = {f"sub_{name}": tensor for name, tensor in published(1).items() if name.startswith("block1.")}
    assert len(copied) == 25
    assert_function(save_and_load(state | copied, tmp_path), state)


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "model_state_dict", "model", "net", "student", "ema", "state_dict_ema", "model_ema", "last", "best"],
)
def test_every_wrapper(wrapper, tmp_path):
    state = published()
    others = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "unaveraged_model_state_dict": {}}
    assert_function(save_and_load({wrapper: state, **others}, tmp_path), state)


def test_plain_weights_are_preferred_to_averaged_weights(tmp_path):
    state = published()
    assert_function(save_and_load({"ema": published(1), "state_dict": state}, tmp_path), state)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "model.module.", "_orig_mod.", "module.module.", "module.model.", "module.0.", "1."]
)
def test_every_prefix(prefix, tmp_path):
    state = published()
    assert_function(save_and_load({prefix + name: tensor for name, tensor in state.items()}, tmp_path), state)


def test_the_counter_of_torchs_averaged_weights_is_left_out(tmp_path):
    state = published()
    model = save_and_load(state, tmp_path)
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(model))
    assert_function(save_and_load(averaged.state_dict(), tmp_path), state)


NORMALIZED = published() | {
    "mu": torch.tensor(MEAN)[None, :, None, None],
    "sigma": torch.tensor(STD)[None, :, None, None],
}


@pytest.mark.parametrize(
    ("names", "network"),
    [
        (("mu", "sigma"), ""),
        (("mean", "std"), ""),
        (("normalize.mean", "normalize.std"), ""),
        (("module.normalize.mean", "module.normalize.std"), "module."),
        (("normalizer.mean", "normalizer.std"), "model."),
        (("norm_layer.means", "norm_layer.sds"), "model."),
        (("0.mean", "0.std"), "1."),
        (("module.0.mean", "module.0.std"), "module.1."),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_every_normalisation_is_loaded_into_the_model(names, network, shape, tmp_path):
    state = {network + name: tensor for name, tensor in published().items()}
    values = (torch.tensor(values).reshape(shape) for values in (MEAN, STD))
    model = save_and_load(state | dict(zip(names, values, strict=True)), tmp_path)
    assert_function(model, NORMALIZED)


def test_without_a_normalisation_in_the_file_the_callers_is_kept(tmp_path):
    assert_function(save_and_load(published(), tmp_path, mean=MEAN, std=STD), NORMALIZED)


def test_arguments_and_numpy_accuracies_beside_the_weights_are_accepted(tmp_path):
    state = published()
    arguments = argparse.Namespace(lr=0.1, dataset="cifar10")
    content = {"net": state, "args": arguments, "acc": np.float64(0.5), "epoch": np.int64(3), "best_acc": np.float32(1)}
    assert_function(save_and_load(content, tmp_path), state)


def test_a_checkpoint_of_another_width_names_the_misfits(tmp_path):
    torch.save({"state_dict": published()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        load_model("wrn-16-4", num_classes=NUM_CLASSES, checkpoint=tmp_path / "w.pt")
    message = str(caught.value)
    assert "of wrong shape (" in message
    assert "block1.layer.0.conv1.weight [32, 16, 3, 3] instead of [64, 16, 3, 3]" in message
    assert len(message) < 500


def test_a_network_in_two_forms_is_refused(tmp_path):
    state = published()
    torch.save(state | {f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"more than one network .*both mean conv1\.weight"):
        read_state_dict(tmp_path / "w.pt")


def test_timms_own_weights_fit_timms_network_behind_the_normalisation(tmp_path):
    timm = pytest.importorskip("timm")
    own = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "w.pth")
    model = load_model("timm/resnet10t", num_classes=5, checkpoint=tmp_path / "w.pth").eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), own(x))


@pytest.mark.parametrize(
    "name",
    [
        "wrn-10-1",
        "wrn-16-4",
        "wrn-28-10",
        "wrn-16-2-swish",
        "wrn-28-10-swish",
        "resnet18",
        "resnet34",
        "preactresnet18",
        "mobilenet-v2",
        "vgg11",
        "vgg16",
        "rescnn-8",
        "cnn-16",
    ],
)
def test_a_network_is_recognised_by_its_weights(name):
    with torch.device("meta"):
        weights = load_model(name, num_classes=100, in_channels=1).state_dict()
    names = [name, "cnn-16-s1"] if name == "cnn-16" else [name]
    assert recognize(weights) == [Recognized(name=known, num_classes=100, in_channels=1) for known in names]


def test_a_network_with_a_missing_or_extra_tensor_is_not_recognised():
    weights = load_model("rescnn-4").state_dict()
    assert recognize(weights)
    assert not recognize({name: tensor for name, tensor in weights.items() if name != "block1.bn1.weight"})
    assert not recognize(weights | {"extra.weight": torch.zeros(1)})
    assert not recognize({"head.weight": torch.zeros(10, 4)})


def test_load_model_builds_the_network_of_every_listed_teacher():
    known = {teacher.network for teacher in ROBUST_TEACHERS}
    wide = {"wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-70-16", "wrn-28-10-swish", "wrn-70-16-swish"}
    assert known == wide | {"resnet18"}
    with torch.device("meta"):
        for network in known:
            load_model(network)
    assert len({(teacher.name, teacher.data) for teacher in ROBUST_TEACHERS}) == len(ROBUST_TEACHERS)
    assert all(teacher.autoattack < teacher.natural for teacher in ROBUST_TEACHERS)


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (2**62, 0, 3, 3), (16, 0, 2**62, 1), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("name", ["conv1.weight", "block1.layer.0.conv1.weight", "fc.weight"])
def test_a_tensor_without_elements_is_not_recognised(name, shape):
    """Otherwise its remaining sizes, which may be huge, would be the sizes of the network to build."""
    state = {key.removeprefix("module."): tensor for key, tensor in published().items()}
    assert recognize(state)
    assert name in state
    state[name] = torch.empty(shape[: state[name].dim()])
    assert recognize(state) == []


def test_a_network_above_the_size_limit_is_not_recognised():
    with torch.device("meta"):
        assert recognize(SmallCNN(999).state_dict())[0] == Recognized(name="cnn-999", num_classes=10, in_channels=3)
        for network in (SmallCNN(1_000), WideResNet(10, 200)):
            assert recognize(network.state_dict()) == []
