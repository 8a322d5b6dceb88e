"""Batch-norm over several ranks against torch's own over the whole batch."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.sync_batch_norm import check_sync, synced_batch_norm

SETTINGS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 1e-2}]


class Halves(ProcessGroup):
    """Two ranks with equal shards, in one process: each sum is doubled."""

    def all_reduce(self, tensor):
        return tensor.mul_(2)


def norm_and_copy(**settings) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    norm, copy = (nn.BatchNorm2d(5, **settings) for _ in range(2))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    copy.load_state_dict(norm.state_dict())
    return norm, copy


def outputs(forward: Callable, norm: nn.Module, x: torch.Tensor, cotangent: torch.Tensor) -> list[torch.Tensor]:
    """Returns the output of three passes, the gradients of the last one, and the buffers of the layer."""
    for _ in range(3):
        x = x.detach().requires_grad_()
        y = forward(x)
    gradients = torch.autograd.grad(y, [x, *norm.parameters()], cotangent)
    return [y.detach(), *gradients, *norm.buffers()]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_one_rank_computes_what_torch_computes(settings):
    norm, own = norm_and_copy(**settings)
    x, cotangent = (
        100 + torch.randn(7, 5, 3, 4),
        torch.randn(7, 5, 3, 4),
    )  # sums of squares would lose the variance beside this mean
    expected = outputs(norm, norm, x, cotangent)
    network = nn.Sequential(own)
    with synced_batch_norm(network, ProcessGroup()):
        found = outputs(own, own, x, cotangent)
    for value, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_equal_shards_are_the_batch_twice(settings):
    """Gradients too: each rank backpropagates its half of a loss over both shards."""
    norm, own = norm_and_copy(**settings)
    x, cotangent = torch.randn(6, 5, 3, 4), torch.randn(6, 5, 3, 4)
    whole = outputs(norm, norm, torch.cat([x, x]), torch.cat([cotangent, cotangent]))
    with synced_batch_norm(nn.Sequential(own), Halves()):
        shard = outputs(own, own, x, cotangent)
    num_parameters = len(list(norm.parameters()))
    for index, (value, other) in enumerate(zip(whole, shard, strict=True)):
        if index < 2:  # y and the gradient of x: the rows of the first shard
            torch.testing.assert_close(other, value[:6], rtol=1e-4, atol=1e-5)
        elif index < 2 + num_parameters:  # summed by the exchange of gradients
            torch.testing.assert_close(2 * other, value, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5)


def test_a_layer_in_eval_mode_and_the_network_afterwards_are_unchanged():
    norm, own = norm_and_copy()
    x = torch.randn(4, 5, 3, 3)
    own.eval()
    with synced_batch_norm(nn.Sequential(own), Halves()):
        assert torch.equal(own(x), norm.eval()(x))
    assert type(own) is nn.BatchNorm2d
    assert set(vars(own)) == set(vars(norm))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_compiled_pass_equals_an_eager_one_and_compiles_once(settings):
    torch._dynamo.reset()
    eager, own = norm_and_copy(**settings)
    x, cotangent = torch.randn(6, 5, 3, 4), torch.randn(6, 5, 3, 4)
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    for step in range(3):
        process_group = Halves()
        with synced_batch_norm(eager, process_group):
            expected = outputs(eager, eager, x, cotangent)
        stance = "fail_on_recompile" if step else "default"
        with synced_batch_norm(own, process_group), torch.compiler.set_stance(stance):
            found = outputs(compiled, own, x, cotangent)
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_another_kind_of_batch_norm_is_refused():
    check_sync(nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3)))
    with pytest.raises(ValueError, match="the student has BatchNorm1d: set batch_norm=local"):
        check_sync(nn.Sequential(nn.BatchNorm1d(3)))
