"""Optimisers: LARS, LAMB and AdamW against their papers in float64, and torch's SGD in both implementations."""

import copy
import csv
import math

import pytest
import torch
from networks import images_and_labels, tiny_network
from rich.console import Console
from tiny_runs import tiny_run
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad.run_config import OptimConfig
from fastadaad.training.optimizers import LAMB, LARS, make_optimizer
from fastadaad.training.trainer import Trainer

NUM_STEPS = 5
SHAPES = [(4, 3, 3, 3), (5, 4), (7,), ()]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], steps=range(NUM_STEPS), rates=None) -> None:
    for step in steps:
        for parameter, gradient in zip(trained, gradients(step), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()


def norm(tensor: Tensor) -> float:
    return math.sqrt((tensor**2).sum().item())


def lars_of_the_paper(w: Tensor, given: list[Tensor], lr: float, m: float, decay: float, eta: float) -> Tensor:
    """Algorithm 1 of You et al., 2017, for one layer; eta is None for a layer that is not adapted."""
    v = torch.zeros_like(w)
    for g in given:
        local_rate = 1.0 if eta is None else eta * norm(w) / (norm(g) + decay * norm(w))
        v = m * v + lr * local_rate * (g + (0.0 if eta is None else decay) * w)
        w = w - v
    return w


def lamb_of_the_paper(
    w: Tensor, given: list[Tensor], lr: float, beta1: float, beta2: float, eps: float, decay: float, adapted: bool
) -> Tensor:
    """Algorithm 2 of You et al., 2020, for one layer."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(given, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        r = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        if adapted:
            r = r + decay * w
            r = norm(w) / norm(r) * r
        w = w - lr * r
    return w


def adamw_of_the_paper(w: Tensor, given: list[Tensor], lr: float, beta1: float, decay: float) -> Tensor:
    """Algorithm 2 of Loshchilov and Hutter, 2019, with the decay in units of the learning rate, as torch has it."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(given, start=1):
        m, v = beta1 * m + (1 - beta1) * g, 0.999 * v + 0.001 * g**2
        w = w - lr * ((m / (1 - beta1**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + decay * w)
    return w


def assert_equal(trained: list[nn.Parameter], expected: list[Tensor]) -> None:
    for parameter, wanted in zip(trained, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_lars_follows_its_paper(lr):
    trained = parameters()
    train(LARS(trained, lr=lr, momentum=0.8, weight_decay=0.1, trust_coefficient=0.02), trained)
    given = [[gradients(step)[i].double() for step in range(NUM_STEPS)] for i in range(len(SHAPES))]
    expected = [
        lars_of_the_paper(start.detach().double(), given[i], 0.5, 0.8, 0.1, 0.02 if start.dim() > 1 else None)
        for i, start in enumerate(parameters())
    ]
    assert_equal(trained, expected)


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05)], ids=["number", "tensor"])
def test_lamb_follows_its_paper(lr):
    trained = parameters()
    train(LAMB(trained, lr=lr, momentum=0.8, beta2=0.95, eps=1e-4, weight_decay=0.1), trained)
    given = [[gradients(step)[i].double() for step in range(NUM_STEPS)] for i in range(len(SHAPES))]
    expected = [
        lamb_of_the_paper(start.detach().double(), given[i], 0.05, 0.8, 0.95, 1e-4, 0.1, start.dim() > 1)
        for i, start in enumerate(parameters())
    ]
    assert_equal(trained, expected)


@pytest.mark.parametrize("optimizer_class", [LARS, LAMB])
def test_an_all_zero_layer_and_one_without_gradient_stay_finite(optimizer_class):
    trained = [nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))]
    optimizer = optimizer_class(trained, lr=0.1, weight_decay=0.0)
    trained[0].grad, trained[1].grad = torch.ones(3, 3), torch.zeros(3, 3)
    optimizer.step()
    assert (trained[0] < 0).all()  # it leaves zero
    assert torch.equal(trained[1], torch.ones(3, 3))
    assert torch.equal(trained[2], torch.ones(3, 3))
    assert trained[2] not in optimizer.state


@pytest.mark.parametrize("optimizer_class", [LARS, LAMB])
def test_a_saved_and_loaded_optimiser_continues_bitwise(optimizer_class):
    trained, rates = parameters(), [0.3, 0.2, 0.1, 0.05, 0.02]
    train(optimizer_class(trained, lr=1.0), trained, rates=rates)

    first = parameters()
    optimizer = optimizer_class(first, lr=1.0)
    train(optimizer, first, range(2), rates)
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    second = optimizer_class(resumed, lr=1.0)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, resumed, range(2, NUM_STEPS), rates)
    assert all(torch.equal(a, b) for a, b in zip(resumed, trained, strict=True))


@pytest.mark.parametrize("optimizer_class", [LARS, LAMB])
def test_a_step_does_not_make_the_host_wait(optimizer_class):
    trained = parameters()
    optimizer = optimizer_class(trained, lr=torch.tensor(0.1))
    with HostSyncWatch() as watch:
        train(optimizer, trained)
    assert watch.seen == []


def optim_config(**changes) -> OptimConfig:
    return OptimConfig(epochs=1, learning_rate=0.1, **changes)


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_sgd_on_the_cpu_equals_foreach_sgd(nesterov):
    networks = [tiny_network(1), tiny_network(1)]
    kernels = []
    for network, backend in zip(networks, ("auto", "foreach"), strict=True):
        optimizer = make_optimizer(network, optim_config(optimizer_backend=backend, nesterov=nesterov))
        kernels.append({name: optimizer.defaults[name] for name in ("fused", "foreach")})
        for seed in range(NUM_STEPS):
            x, labels = images_and_labels(seed=seed)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.param_groups[0]["lr"] = torch.tensor(0.1 / (1 + seed))
            optimizer.step()
    assert kernels == [{"fused": True, "foreach": None}, {"fused": None, "foreach": True}]
    for parameter, wanted in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=1e-5)


def test_loaded_momentum_gets_the_layout_of_its_weight():
    """A file holds contiguous tensors, which torch's fused SGD on the CPU would add to the wrong weights."""

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        x, labels = images_and_labels()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()

    network = tiny_network(1).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, optim_config())
    step(network, optimizer)
    resumed, saved = copy.deepcopy(network), copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    second = make_optimizer(resumed, optim_config())
    second.load_state_dict(saved)
    step(network, optimizer)
    step(resumed, second)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize(("backend", "kernel"), [("auto", "fused"), ("foreach", "foreach")])
def test_adam_of_a_run_adds_the_decay_to_the_gradient(backend, kernel):
    """Adam in float64 by its paper's algorithm 1, on g + d w."""
    network = nn.ParameterList(parameters())
    optim = optim_config(optimizer="adam", momentum=0.8, weight_decay=0.1, optimizer_backend=backend)
    optimizer = make_optimizer(network, optim)
    assert optimizer.defaults[kernel] is True
    train(optimizer, list(network), rates=[0.1] * NUM_STEPS)
    expected = []
    for i, start in enumerate(parameters()):
        w = start.detach().double()
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for step in range(NUM_STEPS):
            g = gradients(step)[i].double() + 0.1 * w
            m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g * g
            corrected = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            w = w - 0.1 * corrected[0] / (corrected[1].sqrt() + 1e-8)
        expected.append(w)
    assert_equal(list(network), expected)


@pytest.mark.parametrize(("backend", "kernel"), [("auto", "fused"), ("foreach", "foreach")])
def test_adamw_of_a_run_follows_its_paper(backend, kernel):
    network = nn.ParameterList(parameters())
    optim = optim_config(optimizer="adamw", momentum=0.8, weight_decay=0.1, optimizer_backend=backend)
    optimizer = make_optimizer(network, optim)
    assert optimizer.defaults[kernel] is True
    train(optimizer, list(network), rates=[0.1] * NUM_STEPS)
    given = [[gradients(step)[i].double() for step in range(NUM_STEPS)] for i in range(len(SHAPES))]
    starts = [start.detach().double() for start in parameters()]
    assert_equal(list(network), [adamw_of_the_paper(w, given[i], 0.1, 0.8, 0.1) for i, w in enumerate(starts)])


@pytest.mark.parametrize(("name", "optimizer_class"), [("sgd", torch.optim.SGD), ("lars", LARS), ("lamb", LAMB)])
def test_a_run_gets_the_optimiser_that_it_names(name, optimizer_class):
    optimizer = make_optimizer(tiny_network(1), optim_config(optimizer=name, momentum=0.7, weight_decay=0.01))
    assert type(optimizer) is optimizer_class
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (
        0.1,
        0.7,
        0.01,
    )


@pytest.mark.parametrize(
    ("name", "rate"), [("sgd", 0.1), ("adam", 0.01), ("adamw", 0.01), ("lars", 1.0), ("lamb", 0.01)]
)
def test_a_run_learns_with_each_optimiser_and_its_scaled_rate(name, rate, tmp_path):
    optim = OptimConfig(
        epochs=3,
        optimizer=name,
        learning_rate=rate / 2,
        base_batch_size=32,
        micro_batch=48,
        schedule="constant",
        warmup=0.2,
    )
    run = Trainer(tiny_run(optim=optim), tmp_path, Console(quiet=True))  # batches of 64
    run.train()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["learning_rate"]) == pytest.approx(rate)
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[2] < losses[0] - 0.05
