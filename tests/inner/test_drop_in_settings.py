"""Settings of the drop-in function: torch's switches for TF32, mode, precision and teacher policy."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn

from fastadaad import InnerConfig, InnerMaximizer, adaad_inner_loss
from fastadaad.inner import drop_in
from fastadaad.inner import maximizer as maximizer_module
from fastadaad.models import Normalize
from fastadaad.runtime.precision import fp32_switches, resolved, tensor_cores

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
SETTINGS = {"steps": 3, "random_init": False}
INNER = InnerConfig(num_steps=3, start="natural")


def older_names() -> list[bool | None]:
    found = []
    for backend in (MATMUL, CUDNN):
        try:
            found.append(backend.allow_tf32)
        except RuntimeError:  # torch refuses to read it after the newer name alone was set
            found.append(None)
    return found


def as_torch_sets_them() -> None:
    pass


def by_older_names() -> None:
    MATMUL.allow_tf32, CUDNN.allow_tf32 = True, False


def by_newer_names() -> None:
    MATMUL.fp32_precision = "tf32"
    CUDNN.conv.fp32_precision = "ieee"


class Watched(nn.Module):
    """Network that notes torch's switches at each forward pass, and fails if `fails` is True."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen, self.fails = network, [], False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("planted")
        self.seen.append((fp32_switches(), older_names()))
        return self.network(x)


def test_a_normalisation_before_the_networks_is_a_search_with_limits_per_channel():
    """The plain loop searches among normalised images, as programs do whose loaders normalise."""
    pair, (x_natural, _) = student_and_teacher(), images_and_labels()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    student, teacher = (nn.Sequential(Normalize(3, mean, std), network) for network in pair)
    x_adv = adaad_inner_loss(student, teacher, x_natural, step_size=0.02, steps=4, epsilon=0.06, random_init=False)

    normalize, per_channel = Normalize(3, mean, std).double(), torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
    natural = normalize(x_natural.double())
    lower, upper = (normalize(torch.full_like(natural, limit)) for limit in (0.0, 1.0))
    z = natural.clone()
    for _ in range(4):
        z.requires_grad_()
        p, q = (F.softmax(network.double().eval()(z), dim=1) for network in pair)
        (gradient,) = torch.autograd.grad((q * (q.log() - p.log())).sum(), z)
        z = (z.detach() + 0.02 / per_channel * gradient.sign()).clamp(
            natural - 0.06 / per_channel, natural + 0.06 / per_channel
        )
        z = torch.minimum(torch.maximum(z, lower), upper)
    assert (z - natural).abs().amax(dim=(0, 2, 3)).mul(per_channel.flatten()) == pytest.approx([0.06] * 3)
    same = (normalize(x_adv.double()) - z).abs() < 1e-5  # rounding turns the sign of a gradient near 0
    assert same.float().mean() > 0.999


@pytest.fixture
def gpu(monkeypatch):
    """The search sets torch's switches and takes tf32 as on a GPU; afterwards the switches are torch's own."""
    monkeypatch.setattr(
        maximizer_module,
        "resolved",
        lambda precision, device, **folds: resolved(precision, torch.device("cuda"), **folds),
    )
    monkeypatch.setattr(
        maximizer_module, "tensor_cores", lambda precision, device: tensor_cores(precision, torch.device("cuda"))
    )
    yield
    MATMUL.allow_tf32, CUDNN.allow_tf32 = False, True
    MATMUL.fp32_precision = "none"


@pytest.fixture(autouse=True)
def forget_the_last_search():
    yield
    drop_in._last.clear()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("program_sets", [as_torch_sets_them, by_older_names, by_newer_names])
@pytest.mark.parametrize(
    ("settings", "convolutions"), [({}, None), ({"precision": "fp32"}, False), ({"precision": "tf32"}, True)]
)
def test_the_drop_in_leaves_the_programs_switches_and_restores_those_that_it_sets(settings, convolutions, program_sets):
    student, teacher = student_and_teacher()
    student, (x_natural, _) = Watched(student), images_and_labels()
    program_sets()
    before = fp32_switches(), older_names()
    adaad_inner_loss(student, teacher.eval(), x_natural, fold=False, **settings, **SETTINGS)
    for inside in student.seen:
        assert inside == before if convolutions is None else inside[1] == [convolutions, convolutions]
    assert len(student.seen) >= 3
    assert fp32_switches() == before[0]
    student.fails = True
    with pytest.raises(RuntimeError, match="planted"):
        adaad_inner_loss(student, teacher, x_natural, fold=False, **settings, **SETTINGS)
    assert fp32_switches() == before[0]
    if None not in before[1]:
        assert older_names() == before[1]


@pytest.mark.parametrize(
    "settings", [{"precision": "bf16"}, {"teacher_policy": "refreshed(every=2)"}, {"mode": "eager"}], ids=str
)
def test_settings_of_the_drop_in_are_those_of_the_search(settings):
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    plain = adaad_inner_loss(student, teacher.eval(), x_natural, layout="contiguous", **SETTINGS)
    found = adaad_inner_loss(student, teacher, x_natural, layout="contiguous", **settings, **SETTINGS)
    expected = InnerMaximizer(
        student, teacher, inner=INNER, layout="contiguous", **{"precision": "fp32", "mode": "eager"} | settings
    )
    assert torch.equal(found, expected(x_natural))
    assert torch.equal(found, plain) is ("mode" in settings)


def test_a_compiled_search_is_kept_for_the_next_call_with_the_same_arguments(monkeypatch):
    made = []
    own = drop_in.InnerMaximizer
    monkeypatch.setattr(drop_in, "InnerMaximizer", lambda *given, **named: made.append(1) or own(*given, **named))
    monkeypatch.setattr(maximizer_module, "one_graph", lambda function, **options: function)
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    settings = {"mode": "compiled", "layout": "contiguous", **SETTINGS}
    first, again = (adaad_inner_loss(student, teacher.eval(), x_natural, **settings) for _ in range(2))
    assert torch.equal(first, again)
    assert len(made) == 1
    with torch.no_grad():
        student[0].weight.neg_()
    assert not torch.equal(adaad_inner_loss(student, teacher, x_natural, **settings), first)  # sees the new weights
    assert len(made) == 1
    adaad_inner_loss(student, teacher, x_natural, step_size=1 / 255, **settings)
    other, _ = student_and_teacher()
    adaad_inner_loss(other, teacher, x_natural, **settings)
    assert len(made) == 3
    gone = weakref.ref(student)
    del student
    gc.collect()
    assert gone() is None  # only the networks of the last call are kept
