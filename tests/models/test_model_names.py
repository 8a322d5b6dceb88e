"""Other programs' spellings of networks and arguments build the same network as ours."""

import pytest
import torch

from fastadaad.models import MODEL_NAMES, canonical_name, create_model, load_model
from fastadaad.models.weights_writing import save_weights

# Name -> its number of parameters for ten classes, and spellings.
SPELLINGS = {
    "wrn-28-10": (36_479_194, "WideResNet-28-10 WRN-28-10 wideresnet28_10 wrn_28_10 wide_resnet_28_10 WRN28-10"),
    "wrn-34-10": (46_160_474, "WideResNet-34-10 WRN-34-10 wideresnet34_10 wrn_34_10"),
    "resnet18": (11_173_962, "ResNet18 resnet-18 ResNet-18 resnet_18 RESNET18"),
    "resnet34": (21_282_122, "ResNet34 resnet-34"),
    "mobilenet-v2": (2_296_922, "MobileNetV2 mobilenet_v2 mobilenet_V2 MobileNet-V2 mobilenetv2"),
    "vgg16": (14_728_266, "VGG16 vgg-16"),
    "preactresnet18": (11_172_170, "PreActResNet18 preact-resnet18 PreActResNet-18 preact_resnet18"),
}
CASES = [(name, number, spelling) for name, (number, list_) in SPELLINGS.items() for spelling in list_.split()]


@pytest.mark.parametrize(("name", "num_parameters", "spelling"), CASES)
def test_spellings_of_one_network_build_one_network(name, num_parameters, spelling):
    assert canonical_name(spelling) == name
    with torch.device("meta"):
        model, ours = load_model(spelling), load_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    shapes = [{key: tensor.shape for key, tensor in network.state_dict().items()} for network in (model, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "name", [*MODEL_NAMES, "wrn-10-1", "cnn-6", "cnn-6-s1", "timm/resnet18", "timm/ResNet_18", "x"]
)
def test_our_names_and_unknown_names_are_unchanged(name):
    assert canonical_name(name) == name


@pytest.mark.parametrize("build", [load_model, create_model])
def test_in_chans_sets_the_channels_of_the_images(build):
    model = build("cnn-4", num_classes=7, in_chans=2)
    assert model.features[0][0].weight.shape == (4, 2, 3, 3)
    assert model(torch.rand(3, 2, 16, 16)).shape == (3, 7)


def test_create_model_is_load_model(tmp_path):
    torch.manual_seed(0)
    expected = load_model("wrn-10-1", num_classes=7)
    torch.manual_seed(0)
    model = create_model("wrn-10-1", pretrained=False, num_classes=7, in_chans=3, checkpoint_path="")
    save_weights(tmp_path / "w.safetensors", model)
    read = create_model("WRN-10-1", num_classes=7, checkpoint_path=tmp_path / "w.safetensors")
    for network in (model, read):
        assert network.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: load_model("cnn-4", in_channels=3, in_chans=3),
            "in_channels is 3 and in_chans 3: they mean the same, give one of them",
        ),
        (
            lambda: create_model("resnet18", pretrained=True),
            "pretrained=True, but fastadaad downloads no weights: `fastadaad teachers` lists files to fetch, "
            "load_model reads one with checkpoint=FILE and create_model with checkpoint_path=FILE",
        ),
        (lambda: load_model("cnn-4", in_chans=0), "in_channels is 0: it must be 1 or more"),
        (lambda: load_model("wide_resnet50_2"), "depth 50 is not 6n + 4 with n >= 1: choose 10, 16, 22, 28, 34, ..."),
    ],
)
def test_mistakes_get_one_line(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        build()
    assert str(caught.value) == message
