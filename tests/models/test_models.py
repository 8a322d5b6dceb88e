"""Networks against parameter counts derived on paper and forwards written with torch's functions."""

import pytest
import timm
import torch
from torch.nn import functional as F

from fastadaad.models import MODEL_NAMES, Normalize, SmallCNN, WideResNet, load_model


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def with_random_state(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Returns the model in eval mode and fp64; no weight and no batch-norm statistic has its initial value."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "std")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                fan_in = max(tensor[0].numel(), 1)
                tensor.normal_(0.1, fan_in**-0.5, generator=generator)
    return model


class Layers:
    """Applies torch's functions to the tensors of a state dict."""

    def __init__(self, model: torch.nn.Module):
        self.tensors = dict(model.state_dict())
        self.used = set()

    def get(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return self.tensors[name]

    def normalize(self, x):
        return (x - self.get("normalize.mean")) / self.get("normalize.std")

    def conv(self, name, x, stride=1, padding=1):
        return F.conv2d(x, self.get(f"{name}.weight"), stride=stride, padding=padding)

    def bn(self, name, x):
        """Returns (x - running_mean) / sqrt(running_var + 1e-5) * weight + bias."""
        mean, var, weight, bias = (
            self.get(f"{name}.{part}")[:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def classify(self, name, x):
        return x.flatten(2).sum(2) / x[0, 0].numel() @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def assert_all_used(self):
        assert {name for name in self.tensors if not name.endswith("num_batches_tracked")} == self.used


def images(channels: int, size: int) -> torch.Tensor:
    return torch.rand(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


NUM_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "preactresnet18": (2, 2, 2, 2)}


def basic_block(net: Layers, name: str, x, stride: int):
    out = net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x, stride))
    out = net.bn(f"{name}.bn2", net.conv(f"{name}.conv2", F.relu(out)))
    if out.shape != x.shape:
        x = net.bn(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", x, stride, padding=0))
    return F.relu(out + x)


def stage_blocks(name: str):
    """Yields prefix and stride of every block of a ResNet."""
    for stage, num_blocks in enumerate(NUM_BLOCKS[name], start=1):
        for block in range(num_blocks):
            yield f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1


@pytest.mark.parametrize(("name", "size"), [("resnet18", 16), ("resnet34", 16), ("resnet18", 64)])
def test_resnet_logits(name, size):
    model, x = with_random_state(load_model(name, num_classes=7)), images(3, size)
    net = Layers(model)
    out = F.relu(net.bn("bn1", net.conv("conv1", net.normalize(x))))
    for prefix, stride in stage_blocks(name):
        out = basic_block(net, prefix, out, stride)
    torch.testing.assert_close(model(x), net.classify("linear", out))
    net.assert_all_used()


def test_preactresnet18_logits():
    model, x = with_random_state(load_model("preactresnet18", num_classes=7, in_channels=2)), images(2, 16)
    net = Layers(model)
    out = net.conv("conv1", net.normalize(x))
    for name, stride in stage_blocks("preactresnet18"):
        activated = F.relu(net.bn(f"{name}.bn1", out))
        residual = net.conv(f"{name}.conv1", activated, stride)
        residual = net.conv(f"{name}.conv2", F.relu(net.bn(f"{name}.bn2", residual)))
        if residual.shape != out.shape:
            out = net.conv(f"{name}.shortcut.0", activated, stride, padding=0)
        out = out + residual
    torch.testing.assert_close(model(x), net.classify("linear", F.relu(net.bn("bn", out))))
    net.assert_all_used()


@pytest.mark.parametrize(("depth", "stages"), [(11, "1 1 2 2 2"), (16, "2 2 3 3 3")])
def test_vgg_logits(depth, stages):
    model, x = with_random_state(load_model(f"vgg{depth}", num_classes=7)), images(3, 32)
    net = Layers(model)
    out, layer = net.normalize(x), 0
    for num_convolutions in map(int, stages.split()):
        for _ in range(num_convolutions):
            name = f"features.{layer}"
            out = F.conv2d(out, net.get(f"{name}.weight"), net.get(f"{name}.bias"), padding=1)
            out, layer = F.relu(net.bn(f"features.{layer + 1}", out)), layer + 3
        out, layer = F.max_pool2d(out, 2), layer + 1
    assert out.shape[2:] == (1, 1)
    torch.testing.assert_close(model(x), net.classify("classifier", out))
    net.assert_all_used()


def test_rescnn_logits():
    model, x = with_random_state(load_model("rescnn-3", num_classes=7, in_channels=1)), images(1, 28)
    net = Layers(model)
    out = F.relu(net.bn("bn1", net.conv("conv1", net.normalize(x), 2)))
    out = basic_block(net, "block2", basic_block(net, "block1", out, 2), 1)
    torch.testing.assert_close(model(x), net.classify("fc", out))
    net.assert_all_used()


def test_mobilenet_v2_logits():
    """Expansion, channels, blocks and strides are those of the paper's table, except the strides lowered for CIFAR."""
    model, x = with_random_state(load_model("mobilenet-v2", num_classes=7)), images(3, 16)
    net = Layers(model)
    out, layer = F.relu(net.bn("bn1", net.conv("conv1", net.normalize(x)))), 0
    for t, c, n, s in (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(n):
            name, stride = f"layers.{layer}", s if block == 0 else 1
            wide = F.relu(net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", out, padding=0)))
            assert wide.shape[1] == t * out.shape[1]
            # Depthwise: one filter per channel.
            kernel = net.get(f"{name}.conv2.weight")
            wide = F.conv2d(wide, kernel, stride=stride, padding=1, groups=wide.shape[1])
            wide = F.relu(net.bn(f"{name}.bn2", wide))
            narrow = net.bn(f"{name}.bn3", net.conv(f"{name}.conv3", wide, padding=0))
            assert narrow.shape[1] == c
            if stride == 1 and narrow.shape != out.shape:
                out = net.bn(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", out, padding=0))
            out, layer = narrow + out if stride == 1 else narrow, layer + 1
    out = F.relu(net.bn("bn2", net.conv("conv2", out, padding=0)))
    torch.testing.assert_close(model(x), net.classify("linear", out))
    net.assert_all_used()


def test_a_timm_model_is_timms_own_after_the_normalisation():
    model = load_model("timm/resnet10t", num_classes=7, in_channels=2, mean=0.5, std=0.25).eval()
    own = timm.create_model("resnet10t", num_classes=7, in_chans=2).eval()
    own.load_state_dict(model.network.state_dict())
    x = images(2, 64).float()
    torch.testing.assert_close(model(x), own((x - 0.5) / 0.25))


@pytest.mark.parametrize(("depth", "width"), [(16, 2), (10, 1)])
def test_wide_resnet_logits(depth, width):
    model, x = with_random_state(WideResNet(depth, width, num_classes=7)), images(3, 16)
    net = Layers(model)
    out = net.conv("conv1", net.normalize(x))
    for stage in (1, 2, 3):
        for block in range((depth - 4) // 6):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            activated = F.relu(net.bn(f"{name}.bn1", out))
            residual = F.relu(net.bn(f"{name}.bn2", net.conv(f"{name}.conv1", activated, stride)))
            residual = net.conv(f"{name}.conv2", residual)
            if residual.shape[1] != out.shape[1]:
                out = net.conv(f"{name}.convShortcut", activated, stride, padding=0)
            out = out + residual
    torch.testing.assert_close(model(x), net.classify("fc", F.relu(net.bn("bn1", out))))
    net.assert_all_used()


@pytest.mark.parametrize(("name", "strides", "size"), [("cnn-6", (2, 2, 1), 28), ("cnn-6-s1", (1, 2, 2), 8)])
def test_small_cnn_logits(name, strides, size):
    model, x = with_random_state(load_model(name, num_classes=7, in_channels=1)), images(1, size)
    net = Layers(model)
    out = net.normalize(x)
    for layer, stride in enumerate(strides):
        out = F.relu(net.bn(f"features.{layer}.1", net.conv(f"features.{layer}.0", out, stride)))
    torch.testing.assert_close(model(x), net.classify("fc", out))
    net.assert_all_used()


@pytest.mark.parametrize(
    ("name", "known", "last_width"),
    [
        ("resnet18", 11_173_962, 512),
        ("resnet34", 21_282_122, 512),
        ("preactresnet18", 11_172_170, 512),
        ("mobilenet-v2", 2_296_922, 1280),
        ("vgg16", 14_728_266, 512),
    ],
)
def test_a_cifar_network_has_the_known_number_of_parameters(name, known, last_width):
    with torch.device("meta"):
        assert num_parameters(load_model(name)) == known
        assert num_parameters(load_model(name, num_classes=100)) == known + 90 * (last_width + 1)


def test_rescnn_has_the_derived_number_of_parameters():
    c = 8
    block1 = 9 * (2 * c * c + 4 * c * c) + 2 * c * c + 3 * 2 * 2 * c
    block2 = 9 * (8 * c * c + 16 * c * c) + 8 * c * c + 3 * 2 * 4 * c
    assert 9 * c + 2 * c + block1 + block2 + 10 * (4 * c + 1) == 18_626
    assert num_parameters(load_model("rescnn-8", in_channels=1)) == 18_626


@pytest.mark.parametrize(("depth", "width", "known"), [(16, 4, 2_748_890), (28, 10, 36_479_194), (34, 10, 46_160_474)])
def test_wide_resnet_has_the_known_number_of_parameters(depth, width, known):
    """A stage of n blocks from i to o channels has 3x3 convolutions, a 1x1 shortcut and two batch-norms per block."""
    num_blocks, total = (depth - 4) // 6, 3 * 16 * 9
    for i, o in ((16, 16 * width), (16 * width, 32 * width), (32 * width, 64 * width)):
        total += 9 * (i * o + (2 * num_blocks - 1) * o * o) + i * o + 2 * (i + (2 * num_blocks - 1) * o)
    total += 2 * 64 * width + 10 * (64 * width + 1)
    assert total == known
    with torch.device("meta"):
        assert num_parameters(WideResNet(depth, width)) == known


@pytest.mark.parametrize(("name", "known"), [("cnn-16", 24_058), ("cnn-16-s1", 24_058), ("cnn-72-s1", 471_106)])
def test_small_cnn_has_the_derived_number_of_parameters(name, known):
    c = int(name.split("-")[1])
    assert 9 * (c + 2 * c * c + 8 * c * c) + 2 * 7 * c + 10 * (4 * c + 1) == known
    assert num_parameters(load_model(name, in_channels=1)) == known


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_listed_name_is_a_model_for_its_images(name):
    with torch.device("meta"):
        model = load_model(name, num_classes=7, in_channels=2)
        size = 8 if name.endswith("-s1") else 32
        assert model(torch.empty(3, 2, size, size)).shape == (3, 7)
        assert model.training


def test_initial_weights_depend_on_the_global_seed():
    def first_convolution(seed):
        torch.manual_seed(seed)
        return load_model("wrn-10-1").conv1.weight

    assert torch.equal(first_convolution(1), first_convolution(1))
    assert not torch.equal(first_convolution(1), first_convolution(2))


def test_wide_resnet_starts_with_hes_scale_and_a_zero_bias():
    model = WideResNet(16, 4)
    weight = model.block3.layer[1].conv2.weight  # 256 -> 256 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not model.fc.bias.any()


def test_normalisation_is_inside_the_model_and_saved_with_it():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    normalize = Normalize(3, mean, std)
    x = images(3, 4).float()
    for channel in range(3):
        assert torch.equal(normalize(x)[:, channel], (x[:, channel] - torch.tensor(mean[channel])) / std[channel])
    assert load_model("cnn-4", mean=mean, std=std).state_dict()["normalize.std"].flatten().tolist() == list(std)


def test_one_number_normalises_every_channel_and_the_default_changes_nothing():
    x = images(3, 4).float()
    assert torch.equal(Normalize(3, 0.5, 0.25)(x), (x - 0.5) / 0.25)
    assert torch.equal(Normalize(3)(x), x)


def test_pixels_get_a_gradient():
    x = images(3, 16).float().requires_grad_()
    load_model("cnn-4")(x).square().sum().backward()
    assert x.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: load_model("ResNet19"), "model 'ResNet19' is unknown: did you mean resnet18 or"),
        (lambda: load_model("WRN-16-4-1"), "model 'WRN-16-4-1' is unknown: did you mean wrn-16-4"),
        (lambda: load_model("cnn17"), "model 'cnn17' is unknown: did you mean cnn-"),
        (lambda: load_model("cnn-16-s1x"), "model 'cnn-16-s1x' is unknown: did you mean cnn-16-s1"),
        (lambda: load_model("%"), f"model '%' is unknown: did you mean {' or '.join(MODEL_NAMES)}?"),
        (lambda: load_model("wrn-17-4"), "depth 17 is not 6n + 4 with n >= 1: choose 10, 16, 22, 28, 34, ..."),
        (lambda: load_model("wrn-4-4"), "depth 4 is not 6n + 4"),
        (lambda: load_model("wrn-16-0"), "width 0 is not positive: give at least 1"),
        (lambda: load_model("rescnn-0"), "channels 0 is not positive: give at least 1"),
        (lambda: load_model("timm/resnet_10t"), "model 'resnet_10t' is unknown to timm: did you mean "),
        (
            lambda: load_model("wrn-10-200"),
            "model wrn-10-200 has 2,960,090,074 parameters: choose one of",
        ),
        (lambda: load_model("cnn-1000"), "model 'cnn-1000' is unknown"),
        (lambda: load_model(f"wrn-{10**9}-1"), "model 'wrn-1000000000-1' is unknown"),
        (lambda: load_model("cnn-0"), "channels 0 is not positive: give at least 1"),
        (lambda: SmallCNN(4, mean=(0.1, 0.2)), "mean has 2 values: give one number, or one per channel (3)"),
        (lambda: SmallCNN(4, std=(0.1, 0.2)), "std has 2 values: give one number, or one per channel (3)"),
        (lambda: SmallCNN(4, std=0.0), "std 0.0 is not positive: give the standard deviation of the pixels"),
    ],
)
def test_mistakes_are_reported(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        build()
    assert str(caught.value).startswith(message)
