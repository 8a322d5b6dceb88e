"""EMA and SWA of weights: values of torch's AveragedModel, its checkpoints, and no wait for the device."""

import copy

import pytest
import torch
from networks import tiny_network
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from bench.host_sync import HostSyncWatch
from fastadaad.training.averaging import AveragedWeights

DECAY, NUM_UPDATES = 0.9, 5


def torchs(network: nn.Module, ema_decay: float | None) -> AveragedModel:
    if ema_decay is None:
        return AveragedModel(network, avg_fn=get_swa_avg_fn(), use_buffers=True)
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)


def change(network: nn.Module, step: int) -> None:
    """Moves weights and running statistics, as a training step does."""
    generator = torch.Generator().manual_seed(step)
    network(torch.rand(8, 3, 8, 8, generator=generator))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def assert_equal(module: nn.Module, expected: nn.Module) -> None:
    wanted = expected.state_dict()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("ema_decay", [DECAY, None], ids=["EMA", "SWA"])
def test_the_average_is_torchs_bitwise(ema_decay):
    network = tiny_network(1).train()
    own, expected = AveragedWeights(network, ema_decay), torchs(network, ema_decay)
    for step in range(NUM_UPDATES):
        change(network, step)
        own.add(network)
        expected.update_parameters(network)
        assert_equal(own.module, expected.module)
    assert own.module[1].num_batches_tracked == network[1].num_batches_tracked == 1 + NUM_UPDATES
    assert not torch.equal(own.module[0].weight, network[0].weight)


@pytest.mark.parametrize("ema_decay", [DECAY, None], ids=["EMA", "SWA"])
def test_a_state_of_torchs_averaged_model_is_continued(ema_decay):
    network = tiny_network(1).train()
    expected = torchs(network, ema_decay)
    for step in range(2):
        change(network, step)
        expected.update_parameters(network)
    own = AveragedWeights(tiny_network(2), ema_decay)
    own.load_state_dict(copy.deepcopy(expected.state_dict()))
    assert own.num_averaged == 2
    assert set(own.state_dict()) == set(expected.state_dict())
    change(network, 2)
    own.add(network)
    expected.update_parameters(network)
    assert_equal(own.module, expected.module)
    assert own.state_dict()["n_averaged"] == expected.n_averaged == 3


def test_an_incomplete_state_is_refused():
    own = AveragedWeights(tiny_network(1))
    state = own.state_dict()
    del state["module.0.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        own.load_state_dict(state)


@pytest.mark.parametrize("ema_decay", [DECAY, None], ids=["EMA", "SWA"])
def test_an_update_reads_nothing_from_the_device(ema_decay):
    network = tiny_network(1)
    own, other = AveragedWeights(network, ema_decay), torchs(network, ema_decay)
    for update, waits in ((own.add, False), (other.update_parameters, True)):
        with HostSyncWatch() as watch:
            for _ in range(3):
                update(network)
        assert bool(watch.seen) is waits
