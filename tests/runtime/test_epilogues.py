"""Fused convolutions in compiled graphs, against the uncompiled network."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadaad.inner.folded_network import FoldedNetwork
from fastadaad.models import load_model
from fastadaad.runtime.compile import PRESETS, preset_options
from fastadaad.runtime.epilogues import FuseEpilogues, convolution_relu, with_epilogues, worth_fusing
from tests.networks import images_and_labels


class Recorded(FuseEpilogues):
    """Pass that fuses everything, and records the arguments of each fused convolution."""

    def __init__(self) -> None:
        self.fused = []
        super().__init__(accept=lambda *arguments: self.fused.append(arguments) or True)

    def uuid(self) -> None:
        return None  # each test compiles


def compiled(function, fusing: FuseEpilogues):
    options = {"post_grad_custom_pre_pass": fusing}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_fused", "num_sums"), [("resnet18", 16, 8), ("wrn-10-1", 6, 3)])
def test_the_pixel_gradient_of_a_fused_step_is_that_of_the_network(name, num_fused, num_sums):
    torch.manual_seed(0)
    network = FoldedNetwork(load_model(name).eval(), memory_format=torch.channels_last)
    x, fusing = images_and_labels(2)[0], Recorded()

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, pull_back = torch.func.vjp(network, x)
        return logits, pull_back(logits.cos())[0]

    expected = step(x)
    torch.testing.assert_close(compiled(step, fusing)(x), expected, rtol=1e-4, atol=1e-6)
    assert len(fusing.fused) == num_fused
    assert sum(other is not None for _, _, _, other, *_ in fusing.fused) == num_sums


class Cases(nn.Module):
    """Convolutions that may be fused or not, by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x)
        if self.name == "two sums of convolutions":
            return F.relu(out + self.second(x))
        if self.name == "another reader":
            return F.relu(out) + out
        if self.name == "another layer in between":
            return F.relu(out.sin())
        if self.name == "another shape":
            return F.relu(out + self.second(x).mean((2, 3), keepdim=True))
        return F.relu(out)


CASES = {
    "plain": 1,
    "two sums of convolutions": 1,
    "another reader": 0,
    "another layer in between": 0,
    "another shape": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_only_what_nothing_else_reads_is_fused(name):
    torch.manual_seed(0)
    network, x, fusing = Cases(name), images_and_labels(2)[0], Recorded()
    with torch.no_grad():
        torch.testing.assert_close(compiled(network, fusing)(x), network(x))
    assert len(fusing.fused) == CASES[name]


def test_the_reference_is_relu_of_the_sum():
    x, weight, bias = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    shape = [2, 2], [1, 1], [1, 1], 1
    out = F.conv2d(x, weight, bias, 2, 1)
    other = torch.randn_like(out)
    torch.testing.assert_close(convolution_relu(x, weight, bias, None, *shape), F.relu(out))
    torch.testing.assert_close(convolution_relu(x, weight, bias, other, *shape), F.relu(out + other))
    operation = torch.ops.fastadaad.convolution_relu
    torch.testing.assert_close(operation(x, weight, bias, other, *shape), F.relu(out + other))


def test_nothing_is_fused_on_the_cpu_by_default():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    assert not worth_fusing(x, weight, None, None, [1, 1], [1, 1], [1, 1], 1)


@pytest.mark.parametrize("options", [{"mode": "max-autotune"}, {"backend": "eager"}])
def test_the_callers_own_mode_or_backend_stays(options):
    assert with_epilogues(options) == options


def test_the_callers_own_options_are_kept():
    options = with_epilogues({"options": {"max_autotune": True}, "dynamic": False})
    assert options["dynamic"] is False
    assert options["options"]["max_autotune"] is True
    assert isinstance(options["options"]["post_grad_custom_pre_pass"], FuseEpilogues)


def test_the_pass_and_a_preset_are_combined():
    options = with_epilogues(preset_options("long"))
    assert options["options"].items() > PRESETS["long"].items()
    assert isinstance(options["options"]["post_grad_custom_pre_pass"], FuseEpilogues)
    assert "post_grad_custom_pre_pass" not in PRESETS["long"]
