"""The folded copy against float64 runs of its network, which stays unchanged; no weight is held twice."""

import copy
import operator
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from fastadaad.inner.folded_layers import patches_times_weight
from fastadaad.inner.folded_network import FoldedNetwork
from fastadaad.inner.folding import fold
from fastadaad.models import load_model
from tests.accuracy import assert_as_accurate_as_torch
from tests.networks import images_and_labels, tiny_network

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def trained(network: nn.Module) -> nn.Module:
    """Returns the network in train mode, with statistics, scales and shifts that differ from those of a fresh layer."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
        for _ in range(3):
            network(torch.rand(8, 3, 8, 8, generator=generator))
    return network


def logits_and_pixel_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = network(x)
    direction = torch.linspace(-1, 1, logits.shape[1], dtype=x.dtype).expand_as(logits)
    return logits.detach(), torch.autograd.grad(logits, x, direction)[0]


def assert_exact(network: nn.Module, x: Tensor, **options) -> FoldedNetwork:
    """Checks that logits and pixel gradients of the copy are as close to float64 as the network's in eval mode."""
    folded = FoldedNetwork(network, **options)
    plain = copy.deepcopy(network).eval()
    own = logits_and_pixel_gradient(plain, x)
    exact = logits_and_pixel_gradient(copy.deepcopy(plain).double(), x.double())
    for out, out_torch, ref64 in zip(logits_and_pixel_gradient(folded, x), own, exact, strict=True):
        assert_as_accurate_as_torch(out, out_torch, ref64)
    return folded


# The batch-norms whose input another layer reads too. Others are folded into the convolution before them, or into the
# last one of a sum.
PRE_ACTIVATION = {
    "preactresnet18": ["layer1.0.bn1", *(f"layer{stage}.1.bn1" for stage in (1, 2, 3, 4))],
    "wrn-10-1": ["block1.layer.0.bn1"],
    "wrn-16-1": ["block1.layer.0.bn1", *(f"block{stage}.layer.1.bn1" for stage in (1, 2, 3))],
}
NAMES = ["resnet18", "mobilenet-v2", "cnn-16", "rescnn-8", "timm/resnet10t", *PRE_ACTIVATION]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_networks_fold_exactly_and_only_pre_activation_norms_stay(name, layout):
    torch.manual_seed(0)
    network = trained(load_model(name, mean=0.4, std=0.3))
    folded = assert_exact(network, images_and_labels(4)[0], memory_format=LAYOUTS[layout])
    assert list(folded.unfolded) == PRE_ACTIVATION.get(name, [])
    called = [node.target for node in folded.body.graph.nodes if node.op == "call_function"]
    assert F.batch_norm not in called
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum("scale_and_shift" in str(target) for target in called) == len(folded.unfolded)


class Sum(nn.Module):
    """Batch-norm of the sum of a convolution and another tensor, made by a function of both."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.add = nn.BatchNorm2d(3), add

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.add(self.conv(x), self.other(x).sin()))).mean((2, 3))


FOLDED_SUMS = {
    "+": lambda conv, other: conv + other,
    "+, other first": lambda conv, other: other + conv,
    "+=": operator.iadd,
    "torch.add": torch.add,
    "one value per channel": lambda conv, other: conv + other.mean((2, 3), keepdim=True),
    "one value per pixel": lambda conv, other: conv + other.mean(1, keepdim=True),
}
OTHER_SUMS = {
    "scaled": lambda conv, other: torch.add(conv, other, alpha=0.5),
    "number": lambda conv, other: conv + 0.5 + 0 * other,
    "with itself": lambda conv, other: conv + conv,
    "read twice": lambda conv, other: (conv + other) + conv.cos(),
    "difference": lambda conv, other: conv - other,
}


@pytest.mark.parametrize("name", [*FOLDED_SUMS, *OTHER_SUMS])
def test_a_batch_norm_of_a_sum_is_folded_into_its_convolution(name):
    torch.manual_seed(0)
    network = trained(Sum((FOLDED_SUMS | OTHER_SUMS)[name]))
    folded = assert_exact(network, images_and_labels(4)[0])
    assert folded.unfolded == (() if name in FOLDED_SUMS else ("norm",))


def test_a_folded_sum_follows_the_network_and_copies_of_the_copy():
    torch.manual_seed(0)
    network, x = trained(Sum(torch.add)), images_and_labels(4)[0]
    folded = FoldedNetwork(network)
    copied = copy.deepcopy(folded)
    trained(network)  # moves the running statistics, scales and shifts
    with torch.no_grad():
        network.norm.weight.mul_(-2)
    for one in (folded, copied):
        assert not torch.allclose(one(x), copy.deepcopy(network).eval()(x), atol=1e-3)
        one.refresh()
        torch.testing.assert_close(one(x), copy.deepcopy(network).eval()(x))


class SharedConv(nn.Module):
    """One convolution called before each of two batch-norms, and one with an output for both of two batch-norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.conv(self.norms[0](self.conv(x)).relu())) + self.conv(x)
        z = self.other(y)
        return (self.norms[2](z) * self.norms[3](z)).mean((2, 3))


class ChainOfNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x))).mean((2, 3))


class ManyKinds(nn.Module):
    """Grouped, biased and non-affine pairs, a token and an integer buffer used directly, layers with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.register_buffer("order", torch.randperm(8))
        self.pairs = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=True),
            nn.BatchNorm2d(6, affine=False),
            nn.PReLU(6),
            nn.Conv2d(6, 8, 3, padding="same", padding_mode="circular"),
            nn.BatchNorm2d(8, eps=0.1),
            nn.ReLU(inplace=True),
        )
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.hidden, self.batch_norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        y = (self.pairs(x) * self.token)[:, self.order].flatten(2).transpose(1, 2)
        y = self.norm(y + self.attention(y, y, y)[0]).mean(1)
        return y if features else self.fc(self.batch_norm(self.hidden(y)))


@pytest.mark.parametrize(
    ("make", "unfolded"),
    [(SharedConv, {"norms.2", "norms.3"}), (ChainOfNorms, {"second"}), (ManyKinds, {"batch_norm"})],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_and_unusual_layers_are_right(make, unfolded, layout):
    torch.manual_seed(0)
    network = trained(make())
    folded = assert_exact(network, images_and_labels()[0], memory_format=LAYOUTS[layout])
    assert set(folded.unfolded) == unfolded


def disturb(network: nn.Module) -> None:
    """Changes all floating-point parameters and buffers in place."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape)).add_(0.1 * torch.rand(tensor.shape))


@pytest.mark.parametrize("make", [lambda: tiny_network(1), ManyKinds, SharedConv, lambda: load_model("wrn-10-1")])
def test_refresh_updates_every_tensor_in_place_and_no_parameter_remains(make):
    torch.manual_seed(0)
    network = trained(make())
    x = images_and_labels()[0]
    folded = FoldedNetwork(network, memory_format=torch.channels_last)
    addresses = [buffer.data_ptr() for buffer in folded.buffers()]
    before = {name: buffer.clone() for name, buffer in folded.named_buffers()}
    disturb(network)
    folded.refresh()
    assert [buffer.data_ptr() for buffer in folded.buffers()] == addresses
    assert not list(folded.parameters())
    assert not any(buffer.requires_grad for buffer in folded.buffers())
    assert set(folded.state_dict()) == set(before)
    still = [name for name, buffer in folded.named_buffers() if torch.equal(buffer, before[name])]
    assert still == [name for name in before if name.endswith(".order")]  # integers, which disturb() leaves out
    torch.testing.assert_close(folded(x), copy.deepcopy(network).eval()(x), rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_weights_are_held_once_and_have_the_layout():
    network = load_model("mobilenet-v2")
    folded = FoldedNetwork(network, memory_format=torch.channels_last)
    num_weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    assert sum(b.numel() for b in folded.buffers() if b.dim() in (2, 4)) == num_weights
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in folded.buffers() if b.dim() == 4)
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    assert not own & {buffer.data_ptr() for buffer in folded.buffers()}
    gray = FoldedNetwork(load_model("cnn-16", in_channels=1), memory_format=torch.channels_last)
    seen = seen_by_convolutions(gray, torch.rand(2, 1, 16, 16))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, *_ in seen)
    # One input channel fits both layouts; the strides show which one the convolution gets.
    assert seen[0][1].stride() == (9, 1, 3, 1)


def test_modes_and_tensors_of_the_network_stay_unchanged():
    network = trained(load_model("cnn-16"))
    network.features[1].eval()
    network.fc.weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    requires = [parameter.requires_grad for parameter in network.parameters()]
    folded, note = fold(network, torch.rand(2, 3, 16, 16))
    assert note is None
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == requires
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in folded.modules())


def seen_by_convolutions(folded: FoldedNetwork, x: Tensor) -> list[tuple]:
    """Returns the arguments of each convolution, in either of its two forms, in the copy's graph at x."""
    calls = []

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            if n.target in (F.conv2d, patches_times_weight):
                calls.append(self.fetch_args_kwargs_from_env(n)[0])
            return super().run_node(n)

    with torch.no_grad():
        Recorder(folded.body).run(x.contiguous(memory_format=folded.memory_format))
    return calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["cnn-16", "rescnn-8", "wrn-10-1", "timm/resnet10t"])
def test_low_precision_begins_behind_the_first_convolution(name, dtype):
    torch.manual_seed(0)
    network = trained(load_model(name, mean=0.4, std=0.3))
    folded, note = fold(network, x := 0.9 + 0.1 * torch.rand(4, 3, 8, 8), dtype=dtype)
    assert note is None
    first, *others = seen_by_convolutions(folded, x)
    assert {argument.dtype for argument in first[:3] if argument is not None} == {torch.float32}
    assert {arg.dtype for call in others for arg in call[:3] if arg is not None} == {dtype}
    (moved,) = seen_by_convolutions(folded, x + 1e-6)[:1]
    torch.testing.assert_close(moved[0] - first[0], torch.full_like(x, 1e-6 / 0.3), rtol=0.2, atol=0)
    assert folded(x).dtype == torch.float32
    assert {buffer.dtype for buffer in folded.buffers()} == {torch.float32, dtype}
    with torch.no_grad():
        expected = copy.deepcopy(network).eval().double()(x.double())
        cast = copy.deepcopy(network).eval().to(dtype)(x.to(dtype))
        assert_as_accurate_as_torch(folded(x).to(dtype), cast, expected)


def test_fp32_has_no_casts():
    folded = FoldedNetwork(load_model("cnn-16"))
    assert not [node for node in folded.body.graph.nodes if "_cast" in str(node.target)]


class StemOfTwo(nn.Module):
    """Two convolutions on the pixels; the weight of the first and a buffer before it are used again later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("mean", torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x - self.mean).relu() + self.mean
        return (self.conv(y) + self.other(x) + x[:, :, : x.shape[2]]).mean((2, 3))


def test_low_precision_works_if_the_pixels_are_used_twice():
    network = StemOfTwo()
    x = torch.rand(4, 3, 8, 8)
    folded = FoldedNetwork(network, dtype=torch.bfloat16)
    assert [call[0].dtype for call in seen_by_convolutions(folded, x)] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
    torch.testing.assert_close(folded(x), network(x), rtol=0, atol=2e-2)


def pixel_gradient(folded: nn.Module, x: Tensor) -> Tensor:
    logits, pull_back = torch.func.vjp(folded, x)
    return pull_back(logits)[0]


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_compiled_copy_sees_a_refresh_without_compiling_again(dtype, precision):
    network = trained(load_model("wrn-10-1"))
    x = images_and_labels()[0]
    folded = FoldedNetwork(network, memory_format=torch.channels_last, dtype=dtype)
    compiled = torch.compile(pixel_gradient, fullgraph=True, backend="aot_eager")
    previous = compiled(folded, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            disturb(network)
            folded.refresh()
            grad_x = compiled(folded, x)
            expected = pixel_gradient(FoldedNetwork(network, dtype=dtype), x)
            assert (grad_x - expected).norm() <= precision * expected.norm()
            assert (grad_x - previous).norm() > 0.1 * previous.norm()
            previous = grad_x


def test_a_deep_copy_has_its_own_buffers_and_refreshes_from_the_same_network():
    network = tiny_network(1)
    x = images_and_labels()[0]
    folded = FoldedNetwork(network)
    other = copy.deepcopy(folded)
    assert torch.equal(other(x), folded(x))
    assert not {b.data_ptr() for b in other.buffers()} & {b.data_ptr() for b in folded.buffers()}
    before = folded(x)
    disturb(network)
    other.refresh()
    assert torch.equal(folded(x), before)
    folded.refresh()
    assert torch.equal(other(x), folded(x))
    assert not torch.allclose(before, folded(x))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Drawn(nn.Module):
    """Draws a number at each call, which tracing would freeze."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * random.random()


class ByBatch(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())


def test_the_reason_why_a_network_was_not_folded_is_one_line():
    x = images_and_labels()[0]
    for network, reason in (
        (Branches(), "symbolically traced variables"),
        (Drawn(), "the network draws random numbers"),
    ):
        result, note = fold(network, x)
        assert result is network
        assert note.startswith(f"batch-norm was not folded: {reason}")
        assert "\n" not in note


def test_batch_norm_without_running_statistics_uses_those_of_the_batch():
    network = ByBatch()
    x = images_and_labels()[0]
    folded, note = fold(network, x)
    assert note is None
    torch.testing.assert_close(folded(x[:3]), network.eval()(x[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("channels", "kernel", "options", "is_product"),
    [
        (1, 3, {"stride": 2, "padding": 1}, True),
        (3, 3, {"padding": 1, "bias": False}, True),
        (2, (1, 3), {"stride": (2, 1), "padding": (0, 1)}, True),
        (4, 1, {}, False),
        (3, 5, {"padding": 2}, False),
        (3, 3, {"groups": 3}, False),
        (1, 3, {"dilation": 2}, False),
        (1, 3, {"padding": "same"}, False),
    ],
)
def test_a_convolution_of_pixels_is_a_product_of_patches_on_the_cpu(
    channels, kernel, options, is_product, memory_format
):
    network = nn.Sequential(nn.Conv2d(channels, 6, kernel, **options), nn.ReLU(), nn.Flatten())
    folded = FoldedNetwork(network, memory_format=memory_format)
    targets = [node.target for node in folded.body.graph.nodes]
    assert (F.conv2d in targets) is not is_product
    x = torch.rand(3, channels, 9, 8, requires_grad=True)
    for ours, theirs in zip(logits_and_gradient(folded, x), logits_and_gradient(network, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    logits = network(x)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits.detach(), torch.autograd.grad(logits, x, weights)[0]
