"""Random networks: the search's pixel gradient is autograd's on the network itself, or the network runs unfolded."""

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastadaad import InnerConfig, InnerMaximizer
from fastadaad.inner.folding import fold

# More by hand: FASTADAAD_RANDOM_NETWORKS=2000.
NUM_NETWORKS = int(os.environ.get("FASTADAAD_RANDOM_NETWORKS", "100"))
CHANNELS, SIDE, NUM_CLASSES = 4, 8, 5
GRADIENT_ERROR = {"fp32": 0.02, "bf16": 0.6}


class Eighths(torch.autograd.Function):
    """Rounds to eighths; the gradient passes straight through."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return gradient


class Rounding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Eighths.apply(x)


class Detached(nn.Module):
    """Scales by a factor that no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            factor = 1 + x.abs().mean((1, 2, 3), keepdim=True)
        return x * factor


class Flagged(nn.Module):
    """Two batch-norms, of which an attribute chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.flag = norm(), norm(), bool(torch.rand(()) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x) if self.flag else self.first(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


class Shared(nn.Module):
    """One convolution that two batch-norms follow in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = conv(), nn.ModuleList([norm(), norm()])

    def forward(self, x: Tensor) -> Tensor:
        for each in self.norms:
            x = each(self.conv(x)).relu()
        return x


class Viewed(nn.Module):
    """Goes through the flat form and back, as view() allows in the contiguous layout alone."""

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * x.view(x.size(0), -1)).view(x.shape)


def conv() -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bool(torch.rand(()) > 0.5))


def norm() -> nn.Module:
    layer = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        for tensor in (layer.weight, layer.running_var):
            tensor.uniform_(0.5, 2)
        for tensor in (layer.bias, layer.running_mean):
            tensor.uniform_(-0.5, 0.5)
    return layer


LAYERS = {
    "conv": conv,
    "norm": norm,
    "relu": nn.ReLU,
    "pool": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "residual": Residual,
    "shared": Shared,
    "view": Viewed,
    "rounding": Rounding,
    "detached": Detached,
    "flagged": Flagged,
}


def network_of(names: list[str], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [LAYERS[name]() for name in names]
        head = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, NUM_CLASSES))
        return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), *body, head)


def own_gradient(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    network.eval()
    loss = nn.functional.cross_entropy(network(x), labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def assert_same_gradient(names: list[str], seed: int, precision: str) -> None:
    network = network_of(names, seed)
    generator = torch.Generator().manual_seed(seed)
    x, labels = torch.rand(4, 3, SIDE, SIDE, generator=generator), torch.arange(4) % NUM_CLASSES
    maximizer = InnerMaximizer(network, method="pgd-at", inner=InnerConfig(), precision=precision)
    if precision != "fp32" and fold(network, x[:2], dtype=torch.bfloat16)[1] is not None:
        with pytest.raises(ValueError, match="needs a folded network"):
            maximizer(x, labels)
        return
    with maximizer.networks(x) as networks:
        *_, (gradient,) = maximizer.new_search(networks, x, labels).pixel_gradients(x)
    expected = own_gradient(network, x, labels)
    assert (gradient - expected).norm() <= GRADIENT_ERROR[precision] * expected.norm()


def test_dead_relus_do_not_hide_a_lost_gradient():
    """The pixel gradient of this network is exactly 0 on the two images that its copy is compared on."""
    names, seed = ["rounding", "shared", "conv", "flagged"], 483
    x = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    gradient = own_gradient(network_of(names, seed), x, torch.arange(4))
    assert not gradient[:2].any()
    assert gradient.any()
    with pytest.warns(UserWarning, match="another pixel gradient; the inner loop runs it unfolded"):
        assert_same_gradient(names, seed, "fp32")


NETWORKS = st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=NUM_NETWORKS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(names=NETWORKS, seed=st.integers(0, 1000), precision=st.sampled_from(["fp32", "bf16"]))
def test_the_gradient_of_a_random_network_is_its_own(names, seed, precision):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of networks that run unfolded
        assert_same_gradient(names, seed, precision)


@pytest.mark.slow
@settings(
    max_examples=max(4, NUM_NETWORKS // 10), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(names=NETWORKS, seed=st.integers(0, 1000))
def test_a_compiled_search_on_a_random_network_ends_where_its_own_does(names, seed):
    network = network_of(names, seed)
    x, labels = torch.rand(4, 3, SIDE, SIDE), torch.arange(4) % NUM_CLASSES
    inner = InnerConfig(num_steps=2, start="natural")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"compile_options": {"backend": "aot_eager"}, "mode": "compiled"}
        compiled = InnerMaximizer(network, method="pgd-at", inner=inner, **options)(x, labels)
        own = InnerMaximizer(network, method="pgd-at", inner=inner, fold=False)(x, labels)
    torch._dynamo.reset()
    assert ((compiled - own).abs() < 1e-6).float().mean() > 0.97
