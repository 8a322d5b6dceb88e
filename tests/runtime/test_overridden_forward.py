"""Modules run another forward inside the context, and their own one before and after."""

import pytest
import torch
from torch import Tensor, nn

from fastadaad.runtime.overridden_forward import overridden_forward


def doubled(layer: nn.Linear, x: Tensor) -> Tensor:
    return 2 * nn.Linear.forward(layer, x)


def test_the_modules_leave_the_context_as_they_entered_it():
    network, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(2, 3)
    attributes = set(vars(network[0]))
    expected = network[1](2 * network[0](x))

    def run_and_fail() -> None:
        with overridden_forward([network[0]], doubled):
            assert torch.equal(network(x), expected)
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run_and_fail()
    assert set(vars(network[0])) == attributes
    assert torch.equal(network(x), network[1](network[0](x)))


def test_a_forward_that_another_library_has_set_is_restored():
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    layer.forward = lambda x: x + 1
    with overridden_forward([layer], doubled):
        assert torch.equal(layer(x), 2 * nn.Linear.forward(layer, x))
    assert torch.equal(layer(x), x + 1)
