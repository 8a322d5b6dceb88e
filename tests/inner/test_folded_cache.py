"""Folded copies: they have the present weights, are shared between searches, and go when their networks go."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from networks import Branching, images_and_labels, student_and_teacher, tiny_network
from plain import fraction_equal, inner_loop, kl_to_teacher
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.inner import folded_cache
from fastadaad.inner.folded_cache import Form, folded_copy
from fastadaad.inner.folded_network import FoldedNetwork

SETTINGS = {"epsilon": 16 / 255, "step_size": 4 / 255, "num_steps": 5}
INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=5, start="natural")
COMPILED = {"mode": "compiled", "compile_options": {"backend": "aot_eager"}}
FP32 = Form(layout="contiguous")


def plain_x_adv(student: nn.Module, teacher: nn.Module, x_natural: Tensor) -> Tensor:
    """Searches by autograd through copies of the networks with their present weights."""
    networks = [copy.deepcopy(network).eval() for network in (student, teacher)]
    return inner_loop(kl_to_teacher(*networks), x_natural, x_natural, norm="linf", **SETTINGS)


def shift(network: nn.Module, amount: float = 0.05) -> None:
    """Updates all parameters in place, as an optimizer does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


def train_forward(network: nn.Module) -> None:
    """Changes the running statistics and nothing else."""
    network.train()
    with torch.no_grad():
        for _ in range(10):
            network(3 * torch.rand(32, 3, 8, 8))


def replace_parameter(network: nn.Module) -> None:
    network[3].weight = nn.Parameter(-network[3].weight.detach())


def replace_layer(network: nn.Module) -> None:
    network[0] = copy.deepcopy(tiny_network(7, channels=network[0].out_channels)[0])


def load(network: nn.Module) -> None:
    network.load_state_dict(tiny_network(9, channels=network[0].out_channels).state_dict())


def step_of_an_optimizer(network: nn.Module, **options) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(network.parameters(), lr=0.02, **options).step()
    network.zero_grad()


CHANGES = {
    "in place": shift,
    "under inference_mode": torch.inference_mode()(shift),
    "fused SGD": lambda network: step_of_an_optimizer(network, fused=True),
    "foreach SGD": lambda network: step_of_an_optimizer(network, foreach=True),
    "running statistics": train_forward,
    "load_state_dict": load,
    "a parameter replaced": replace_parameter,
    "a layer replaced": replace_layer,
}


@pytest.mark.parametrize("which", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_searches_is_seen(change, which):
    networks = student_and_teacher()
    x_natural, _ = images_and_labels(32)
    maximizer = InnerMaximizer(*networks, inner=INNER)
    before = maximizer(x_natural)
    CHANGES[change](networks[which])
    after = maximizer(x_natural)
    assert fraction_equal(before, after) < 0.99
    assert fraction_equal(after, plain_x_adv(*networks, x_natural)) >= 0.999


@pytest.mark.parametrize("change", ["in place", "running statistics", "a parameter replaced"])
def test_a_change_between_two_compiled_searches_is_seen(change):
    networks = student_and_teacher()
    x_natural, _ = images_and_labels(32)
    maximizer = InnerMaximizer(*networks, inner=INNER, **COMPILED)
    before = maximizer(x_natural)
    for network in networks:
        CHANGES[change](network)
    after = maximizer(x_natural)
    assert fraction_equal(before, after) < 0.99
    assert fraction_equal(after, plain_x_adv(*networks, x_natural)) >= 0.999


def test_the_copy_is_refreshed_at_every_call(monkeypatch):
    refreshed = []
    own_refresh = FoldedNetwork.refresh
    monkeypatch.setattr(FoldedNetwork, "refresh", lambda copied: refreshed.append(copied) or own_refresh(copied))
    network, (x, _) = tiny_network(1).requires_grad_(False), images_and_labels()
    copied = folded_copy(network, x, FP32)
    refreshed.clear()
    assert folded_copy(network, x, FP32) is copied
    assert folded_copy(network, x, FP32) is copied
    assert refreshed == [copied, copied]


@pytest.mark.parametrize("layers", [nn.Identity, lambda: nn.BatchNorm2d(6).eval()], ids=["no batch-norm", "frozen"])
def test_updates_of_a_fused_optimizer_are_seen_even_if_no_running_statistics_change(layers):
    """Fused optimizers do not update version counters."""
    student = nn.Sequential(nn.Conv2d(3, 6, 3), layers(), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))
    _, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2, fused=True)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=optimizer)
    x_natural, _ = images_and_labels(32)
    first = distiller.step(x_natural)
    x_adv = InnerMaximizer(student, teacher, inner=INNER)(x_natural)
    assert fraction_equal(first.x_adv, x_adv) < 0.99
    assert fraction_equal(x_adv, plain_x_adv(student, teacher, x_natural)) >= 0.999


def test_searches_share_a_copy_and_other_forms_and_shapes_have_their_own():
    network, (x, _) = tiny_network(1), images_and_labels()
    copied = folded_copy(network, x, FP32)
    assert folded_copy(network, x[:3], FP32) is copied
    assert folded_copy(network, x, Form(layout="contiguous")) is copied
    others = [
        folded_copy(network, x, Form(layout="channels_last")),
        folded_copy(network, x, Form(precision="bf16", layout="contiguous")),
        folded_copy(network, torch.rand(2, 3, 12, 12), FP32),
        folded_copy(copy.deepcopy(network), x, FP32),
    ]
    assert len({id(each) for each in [copied, *others]}) == 5


def test_several_maximizers_fold_a_network_once(monkeypatch):
    folded = []
    own_fold = folded_cache._fold
    monkeypatch.setattr(folded_cache, "_fold", lambda *arguments: folded.append(arguments) or own_fold(*arguments))
    student, teacher = student_and_teacher()
    batch = images_and_labels()
    for method in ("adaad", "pgd-at", "adaad"):
        InnerMaximizer(student, teacher, method=method, inner=INNER)(*batch)
    assert len(folded) == 2


@pytest.mark.parametrize("wrap", [lambda network: network, Branching], ids=["folded", "unfolded"])
@pytest.mark.filterwarnings("ignore:Branching")
def test_a_deleted_network_is_freed(wrap):
    networks = [wrap(network) for network in student_and_teacher()]
    x_natural, _ = images_and_labels()
    InnerMaximizer(*networks, inner=INNER)(x_natural)
    kept = [weakref.ref(network) for network in networks]
    kept += [weakref.ref(folded_copy(network, x_natural, Form())) for network in networks]
    kept += [weakref.ref(next(network.parameters())) for network in networks]
    del networks
    gc.collect()
    assert [reference() is None for reference in kept] == [True] * 6


def test_networks_whose_steps_were_compiled_are_freed():
    networks = list(student_and_teacher())
    maximizer = InnerMaximizer(*networks, inner=INNER, **COMPILED)
    maximizer(images_and_labels()[0])
    kept = [weakref.ref(network) for network in networks] + [weakref.ref(networks[0][0].weight)]
    del networks, maximizer
    gc.collect()
    assert [reference() is None for reference in kept] == [True] * 3


def add_hook(network: nn.Module, seen: list) -> None:
    network[1].register_forward_hook(lambda *_: seen.append(1))


def test_a_network_with_hooks_runs_unfolded_with_one_warning_and_the_right_numbers():
    student, teacher = student_and_teacher()
    seen: list = []
    add_hook(teacher, seen)
    x_natural, _ = images_and_labels(32)
    maximizer = InnerMaximizer(student, teacher, inner=INNER)
    with pytest.warns(UserWarning, match="Sequential: batch-norm was not folded: the network has hooks") as caught:
        x_adv = [maximizer(x_natural), maximizer(x_natural)]
    assert len(caught) == 1
    assert len(seen) == 1 + 2 * INNER.num_steps  # the first call determines the classes too
    assert torch.equal(*x_adv)
    assert fraction_equal(x_adv[0], plain_x_adv(student, teacher, x_natural)) >= 0.999


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_that_is_added_later_runs_and_a_removed_one_is_forgotten(kind):
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    maximizer = InnerMaximizer(student, teacher, inner=INNER)
    expected, seen = maximizer(x_natural), []
    hook = getattr(student[3], f"register_{kind}_hook")(lambda *_: seen.append(1) and None)
    with pytest.warns(UserWarning, match="has hooks"):
        assert fraction_equal(maximizer(x_natural), expected) >= 0.999
    assert len(seen) == INNER.num_steps
    hook.remove()
    assert torch.equal(maximizer(x_natural), expected)
    assert len(seen) == INNER.num_steps


@pytest.mark.parametrize("policy", ["exact", "refreshed(every=2)", "linearized(every=2)"])
def test_an_untraceable_teacher_gives_the_same_search_and_warns_once(policy):
    student, teacher = student_and_teacher()
    options = {"inner": INNER, "teacher_policy": TeacherPolicy.parse(policy)}
    x_natural, _ = images_and_labels(32)
    expected = InnerMaximizer(student, teacher, **options)(x_natural)
    maximizer = InnerMaximizer(student, Branching(teacher), **options)
    with pytest.warns(
        UserWarning, match="Branching: batch-norm was not folded: .*; the inner loop runs it unfolded"
    ) as caught:
        x_adv = [maximizer(x_natural), maximizer(x_natural)]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert fraction_equal(x_adv[0], expected) >= 0.999


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_refused_for_a_network_that_cannot_be_folded(precision):
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, Branching(teacher), inner=INNER, precision=PrecisionConfig(teacher=precision))
    with pytest.raises(ValueError, match=rf"precision {precision} needs a folded network, and .*: set it to fp32") as e:
        maximizer(images_and_labels()[0])
    assert "\n" not in str(e.value)


def facts(network: nn.Module) -> list:
    modules = [(name, module.training) for name, module in network.named_modules()]
    return modules + [(name, p.requires_grad, p.grad, p._version) for name, p in network.named_parameters()]


@pytest.mark.parametrize("method", ["adaad", "rslad", "pgd-at"])
@pytest.mark.filterwarnings("ignore:Branching")
def test_modes_requires_grad_gradients_and_version_counters_stay_unchanged(method):
    student, teacher = student_and_teacher()
    for network in (student, teacher):
        network[1].eval()
        network[0].weight.requires_grad_(False)
        network[3].weight.grad = torch.ones_like(network[3].weight)
    for networks in ((student, teacher), (Branching(student), Branching(teacher))):
        before = [facts(network) for network in networks]
        InnerMaximizer(*networks, method=method, inner=INNER)(*images_and_labels())
        assert [facts(network) for network in networks] == before


def test_a_copy_stays_in_eval_mode_and_has_no_parameters_whatever_the_mode_of_the_student():
    student = tiny_network(1)
    x, _ = images_and_labels()
    copied = folded_copy(student, x, FP32)
    student.train()
    assert folded_copy(student, x, FP32) is copied
    assert not any(module.training for module in copied.modules())
    assert list(copied.parameters()) == []


@pytest.mark.parametrize("policy", ["exact", "refreshed(every=2)", "linearized(every=2)"])
def test_both_layouts_give_the_same_x_adv(policy):
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels(32)
    found = [
        InnerMaximizer(student, teacher, inner=INNER, layout=layout, teacher_policy=TeacherPolicy.parse(policy))(
            x_natural
        )
        for layout in ("contiguous", "channels_last")
    ]
    assert fraction_equal(*found) >= 0.999
    assert fraction_equal(found[0], x_natural) < 0.2


@pytest.mark.parametrize("stored", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layout_auto_is_the_stored_one_and_looked_up_once(monkeypatch, stored):
    calls = []

    def choose(network, x, build, *, precision, compiled):
        calls.append((network, tuple(x.shape), build(stored).memory_format, precision, compiled))
        return stored

    monkeypatch.setattr(folded_cache, "choose_memory_format", choose)
    network, (x, _) = tiny_network(1), images_and_labels()
    form = Form(precision="bf16", compiled=True)
    copied = folded_copy(network, x, form)
    assert folded_copy(network, x, form) is copied
    assert copied.memory_format == stored
    weight = next(buffer for buffer in copied.buffers() if buffer.dim() == 4)
    assert weight.is_contiguous(memory_format=stored)
    assert calls == [(network, (16, 3, 8, 8), stored, "bf16", True)]


def test_a_given_layout_is_not_measured(monkeypatch):
    monkeypatch.setattr(folded_cache, "choose_memory_format", lambda *_, **__: pytest.fail("measured"))
    x, _ = images_and_labels()
    assert folded_copy(tiny_network(1), x, Form(layout="channels_last")).memory_format == torch.channels_last


def test_a_training_step_folds_neither_network_again(monkeypatch):
    folded = []
    own_fold = folded_cache._fold
    monkeypatch.setattr(folded_cache, "_fold", lambda *arguments: folded.append(arguments) or own_fold(*arguments))
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    distiller = Distiller(student, teacher, inner=INNER, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            result = distiller.step(*images_and_labels(seed=seed))
            expected = copy.deepcopy(student)
    assert len(folded) == 2
    x_natural, _ = images_and_labels(seed=3)
    result = distiller.step(x_natural)
    assert fraction_equal(result.x_adv, plain_x_adv(expected, teacher, x_natural)) >= 0.999
