"""The fast path computes what the network computes: every case against a plain loop on the network itself."""

import copy
import random
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, adaad_inner_loss, evaluate
from fastadaad.inner import folded_cache
from fastadaad.inner.folded_cache import Form, folded_copy

EPSILON, STEP_SIZE, NUM_STEPS = 0.1, 0.025, 5
INNER = InnerConfig(
    threat_model=ThreatModel(epsilon=EPSILON), step_size=STEP_SIZE, num_steps=NUM_STEPS, start="natural"
)


class Round(torch.autograd.Function):
    """Rounds to eighths; the gradient passes straight through."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return gradient


class Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Round.apply(x).flatten(1))


class PartlyWithoutGradient(nn.Module):
    """Normalises by a mean that no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            centre = 3 * x.flatten(1).sin()
        return self.last(x.flatten(1) * centre)


class Switched(nn.Module):
    """Convolution with two batch-norms, of which a Python attribute chooses one; and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.natural, self.adversarial = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 10)
        self.adv, self.temperature = False, 1.0
        self.settings = {"scale": [1.0]}
        with torch.no_grad():
            self.adversarial.running_mean.uniform_(-1, 1)
            self.adversarial.weight.uniform_(-2, 2)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.adversarial if self.adv else self.natural
        hidden = norm(self.conv(x)).relu().mean((2, 3))
        return self.last(hidden * self.settings["scale"][0]) / self.temperature


class Viewed(nn.Module):
    """Network of every tutorial: it flattens by view()."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, channels, 3, stride=4), nn.BatchNorm2d(channels)
        self.last = nn.Linear(channels * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.conv(x)).relu()
        return self.last(hidden.view(hidden.size(0), -1))


class Drawn(nn.Module):
    """Chooses one of two bodies by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([nn.Linear(784, 10), nn.Linear(784, 10)])

    def forward(self, x: Tensor) -> Tensor:
        return random.choice(list(self.bodies))(x.flatten(1))


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def batch(size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 1, 28, 28, generator=generator), torch.randint(10, (size,), generator=generator)


def plain_pgd(network: nn.Module, x: Tensor, labels: Tensor, num_steps: int = NUM_STEPS) -> Tensor:
    """PGD from the image itself, by autograd on a copy of the network in eval mode."""
    network, x_adv = copy.deepcopy(network).eval(), x.clone()
    for _ in range(num_steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(x_adv), labels, reduction="sum"), x_adv)
        x_adv = (x_adv.detach() + STEP_SIZE * gradient.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    return x_adv


def assert_same_search(maximizer: InnerMaximizer, network: nn.Module, x: Tensor, labels: Tensor) -> None:
    expected = plain_pgd(network, x, labels)
    assert (expected - x).abs().mean() > EPSILON / 3  # the plain loop gets away from the images
    assert (maximizer(x, labels) == expected).float().mean() > 0.99


@pytest.mark.parametrize("make", [Rounded, PartlyWithoutGradient])
def test_a_gradient_that_tracing_would_lose_is_kept(make):
    network, (x, labels) = made(make), batch()
    with pytest.warns(UserWarning, match="another pixel gradient; the inner loop runs it unfolded"):
        assert_same_search(InnerMaximizer(network, method="pgd-at", inner=INNER), network, x, labels)


class SwitchedOffBranch(nn.Module):
    """Residual network whose branch rounds its input and is scaled by 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.zeros(1)), nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(x + self.scale * Round.apply(x).sin())


def with_last_layer_of_zeros() -> nn.Module:
    network = Rounded()
    nn.init.zeros_(network.last.weight)
    return network


def train_away_from_zero(network: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("make", [with_last_layer_of_zeros, SwitchedOffBranch])
def test_weights_of_zero_do_not_hide_a_lost_gradient(make):
    network, (x, labels) = made(make), batch()
    maximizer = InnerMaximizer(network, method="pgd-at", inner=INNER)
    with pytest.warns(UserWarning, match="another pixel gradient; the inner loop runs it unfolded"):
        maximizer(x, labels)
    train_away_from_zero(network)
    assert_same_search(maximizer, network, x, labels)


@pytest.mark.filterwarnings("ignore:.*another pixel gradient")
def test_evaluate_attacks_a_quantised_network_as_a_plain_loop_does():
    network, (x, labels) = made(Rounded), batch(64)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    threat_model = ThreatModel(epsilon=EPSILON)
    natural, robust = evaluate(network, (x, labels), ("natural", "fgsm"), threat_model=threat_model)
    attacked = (x + EPSILON * (plain_pgd(network, x, labels, 1) - x).sign()).clamp(0, 1)
    expected = (network(attacked).argmax(1) == labels).float().mean().item()
    assert natural.accuracy > 0.9
    assert robust.accuracy == pytest.approx(expected, abs=1e-6)
    assert robust.accuracy < natural.accuracy - 0.3


def by_data(network: nn.Module, other: nn.Module) -> None:
    for parameter, source in zip(network.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(source.data)


def by_moving_average(network: nn.Module, other: nn.Module) -> None:
    for parameter, source in zip(network.parameters(), other.parameters(), strict=True):
        parameter.data.mul_(0.1).add_(source.data, alpha=0.9)


def by_vector(network: nn.Module, other: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(other.parameters()).detach()
    nn.utils.vector_to_parameters(vector, network.parameters())


def by_new_data(network: nn.Module, other: nn.Module) -> None:
    for parameter, source in zip(network.parameters(), other.parameters(), strict=True):
        parameter.data = source.data.clone()


def by_new_parameters(network: nn.Module, other: nn.Module) -> None:
    network.last.weight = nn.Parameter(other.last.weight.detach().clone())


def by_fused_adam(network: nn.Module, other: nn.Module) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.3, fused=True)
    for parameter, source in zip(network.parameters(), other.parameters(), strict=True):
        parameter.grad = source.detach().clone()
    optimizer.step()


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(
    "change", [by_data, by_moving_average, by_vector, by_new_data, by_new_parameters, by_fused_adam]
)
def test_changed_weights_are_attacked(change, requires_grad):
    """Also those of a frozen network, whose version counters do not count such changes."""
    network, other, (x, labels) = made(Viewed), made(Viewed, seed=1), batch()
    network.requires_grad_(requires_grad)
    maximizer = InnerMaximizer(network, method="pgd-at", inner=INNER)
    assert_same_search(maximizer, network, x, labels)
    before = maximizer(x, labels)
    change(network, other)
    assert_same_search(maximizer, network, x, labels)
    assert (maximizer(x, labels) == before).float().mean() < 0.99
    threat_model = ThreatModel(epsilon=EPSILON)
    results = [
        evaluate(each, (x, labels), "pgd10", threat_model=threat_model) for each in (network, copy.deepcopy(network))
    ]
    assert results[0][0].accuracy == results[1][0].accuracy


@pytest.mark.parametrize("update", [by_data, by_moving_average])
def test_a_teacher_that_is_updated_through_data_is_queried_with_its_new_weights(update):
    """As a mean teacher is; in the search and in the outer loss."""
    student, teacher, other, (x, _) = made(Viewed), made(Viewed, 1), made(Viewed, 2), batch()
    teacher.eval().requires_grad_(False)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=torch.optim.SGD(student.parameters(), lr=0.0))
    distiller.step(x)
    update(teacher, other)
    fresh_student, fresh_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    changed = distiller.step(x, generator=generators[0])
    optimizer = torch.optim.SGD(fresh_student.parameters(), lr=0.0)
    expected = Distiller(fresh_student, fresh_teacher, inner=INNER, optimizer=optimizer).step(
        x, generator=generators[1]
    )
    assert torch.equal(changed.x_adv, expected.x_adv)
    assert changed.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_an_evaluation_between_steps_sees_the_trained_weights(precision, mode):
    """By a fused optimizer, without batch-norm, with copies in several forms."""
    student = made(lambda: nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)))
    teacher, (x, _) = made(Viewed, 1).eval(), batch(32)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, fused=True)
    options = {"backend": "aot_eager"} if mode == "compiled" else None
    distiller = Distiller(
        student, teacher, inner=INNER, optimizer=optimizer, precision=precision, mode=mode, compile_options=options
    )
    for _ in range(3):
        distiller.step(x)
        threat_model = ThreatModel(epsilon=EPSILON)
        own, fresh = (
            evaluate(each, (x, teacher(x).argmax(1)), "pgd10", threat_model=threat_model)[0].accuracy
            for each in (student, copy.deepcopy(student))
        )
        assert own == fresh


def test_weights_that_are_frozen_around_the_attack_are_not_stale():
    student, teacher, (x, _) = made(Viewed), made(Viewed, 1).eval(), batch()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, fused=True)
    maximizer = InnerMaximizer(student, teacher, inner=INNER)
    for _ in range(3):
        student.requires_grad_(False)
        x_adv = maximizer(x)
        expected = InnerMaximizer(copy.deepcopy(student), copy.deepcopy(teacher), inner=INNER)(x)
        assert torch.equal(x_adv, expected)
        student.requires_grad_(True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(x_adv), teacher(x).argmax(1)).backward()
        optimizer.step()


def choose_adversarial(network: Switched) -> None:
    network.adv = True


def cool(network: Switched) -> None:
    network.temperature = -0.5


def rescale(network: Switched) -> None:
    network.settings["scale"][0] = -2.0


def replace_layer(network: Switched) -> None:
    network.natural = nn.InstanceNorm2d(6)


@pytest.mark.parametrize("change", [choose_adversarial, cool, rescale, replace_layer])
def test_an_attribute_that_changes_forward_is_seen(change):
    network, (x, labels) = made(Switched), batch()
    maximizer = InnerMaximizer(network, method="pgd-at", inner=INNER)
    assert_same_search(maximizer, network, x, labels)
    before = maximizer(x, labels)
    change(network)
    assert_same_search(maximizer, network, x, labels)
    assert (maximizer(x, labels) == before).float().mean() < 0.95


def test_a_network_that_switches_back_and_forth_keeps_a_copy_for_each_state(monkeypatch):
    network, (x, labels) = made(Switched), batch()
    maximizer, folds = InnerMaximizer(network, method="pgd-at", inner=INNER), []
    own = folded_cache._fold
    monkeypatch.setattr(folded_cache, "_fold", lambda *given: folds.append(given) or own(*given))
    for turn in range(6):
        network.adv = bool(turn % 2)
        assert_same_search(maximizer, network, x, labels)
    assert len(folds) == 2


def test_a_network_whose_attributes_change_at_every_call_runs_unfolded_with_one_warning():
    network, (x, labels) = made(Viewed), batch()
    maximizer = InnerMaximizer(network, method="pgd-at", inner=INNER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(folded_cache.MAX_MISSES + 4):
            network.num_calls = call
            assert_same_search(maximizer, network, x, labels)
    assert ["change all the time" in str(warning.message) for warning in caught] == [True]


def test_a_network_that_draws_is_not_frozen_at_its_first_choice():
    network, (x, _) = made(Drawn), batch(4)
    with pytest.warns(UserWarning, match="draws random numbers"):
        result = folded_copy(network, x, Form())
    assert result is network


@pytest.mark.parametrize("layout", ["auto", "contiguous"])
def test_a_network_that_flattens_by_view_is_searched(layout):
    student, teacher, (x, labels) = made(Viewed), made(Viewed, 1).eval(), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_search(InnerMaximizer(student, method="pgd-at", inner=INNER, layout=layout), student, x, labels)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        Distiller(student, teacher, inner=INNER, optimizer=optimizer, layout=layout).step(x)
        x_adv = adaad_inner_loss(student, teacher, x, layout=layout)
        evaluate(student, (x, labels), ("pgd5", "cw2"), layout=layout)
    assert (x_adv - x).abs().max() == pytest.approx(8 / 255, abs=1e-6)


def test_a_layout_that_the_network_cannot_have_runs_it_unfolded():
    network, (x, labels) = made(Viewed), batch()
    maximizer = InnerMaximizer(network, method="pgd-at", inner=INNER, layout="channels_last")
    with pytest.warns(UserWarning, match=r"view.*runs it unfolded"):
        assert_same_search(maximizer, network, x, labels)


def test_fold_false_runs_the_networks_themselves():
    student, teacher, (x, labels) = made(Viewed), made(Viewed, 1).eval(), batch()
    maximizer = InnerMaximizer(student, teacher, inner=INNER, fold=False)
    with maximizer.networks(x) as networks:
        assert networks == (student, teacher)
    assert_same_search(InnerMaximizer(student, method="pgd-at", inner=INNER, fold=False), student, x, labels)
    with pytest.raises(ValueError, match="precision bf16 needs a folded network, and fold is False"):
        InnerMaximizer(student, teacher, inner=INNER, fold=False, precision="bf16")(x)
    fast, own = (evaluate(student, (x, labels), ("pgd5", "cw2"), fold=fold) for fold in (True, False))
    assert [result.accuracy for result in fast] == [result.accuracy for result in own]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    assert Distiller(student, teacher, inner=INNER, optimizer=optimizer, fold=False).step(x).loss.isfinite()
    adaad_inner_loss(student, teacher, x, fold=False)


def test_threads_that_search_for_the_first_time_at_once_do_not_break_modules():
    x, labels = batch(4)
    networks = [made(Switched, seed) for seed in range(8)]
    expected = [plain_pgd(network, x, labels) for network in networks]
    found: list[Tensor | None] = [None] * len(networks)
    barrier = threading.Barrier(len(networks), timeout=60)
    call = nn.Module.__call__

    def search(index: int) -> None:
        barrier.wait()
        for _ in range(3):
            networks[index].num_searches = random.random()  # folded again each time
            found[index] = InnerMaximizer(networks[index], method="pgd-at", inner=INNER)(x, labels)

    threads = [threading.Thread(target=search, args=(index,)) for index in range(len(networks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert nn.Module.__call__ is call
    for x_adv, plain in zip(found, expected, strict=True):
        assert x_adv is not None
        assert (x_adv == plain).float().mean() > 0.99
