"""Teacher policies against plain restatements by autograd, their passes through the teacher, and refused methods."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from plain import fraction_equal, inner_loop, kl_to_teacher, l2_step, linf_step, mean_kl
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, methods
from fastadaad.config import TeacherPolicy

NUM_CLASSES = 5
EPSILON, STEP_SIZE = {"linf": 16 / 255, "l2": 160 / 255}, {"linf": 4 / 255, "l2": 40 / 255}


def inner_config(norm: str = "linf", num_steps: int = 10) -> InnerConfig:
    threat_model = ThreatModel(norm=norm, epsilon=EPSILON[norm])
    return InnerConfig(threat_model=threat_model, step_size=STEP_SIZE[norm], num_steps=num_steps, start="natural")


def search(policy: str, *, method: str = "adaad", norm: str = "linf", num_steps: int = 10, **options) -> Tensor:
    """Returns x_adv of InnerMaximizer."""
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(
        student,
        teacher,
        method=method,
        inner=inner_config(norm, num_steps),
        teacher_policy=TeacherPolicy.parse(policy),
        **options,
    )
    return maximizer(*images_and_labels())


def kl_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="sum")


def gradient(value, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(value(x), x)[0]


def plain_refreshed(student: nn.Module, teacher: nn.Module, x: Tensor):
    """Returns x -> gradient, with the teacher's logits and its part of the gradient from the given point."""
    teacher_logits = teacher(x).detach()
    teacher_part = gradient(lambda x: kl_sum(student(x).detach(), teacher(x)), x)
    return lambda x: gradient(lambda x: kl_sum(student(x), teacher_logits), x) + teacher_part


def plain_linearized(student: nn.Module, teacher: nn.Module, x: Tensor, top: int):
    """Returns x -> gradient, with the teacher's most likely classes by its directional derivative at the point x."""
    expanded_at, logits = x, teacher(x).detach()
    is_top = logits >= logits.sort(dim=1, descending=True).values[:, [min(top, NUM_CLASSES) - 1]]

    def teacher_logits(x: Tensor) -> Tensor:
        _, change = torch.func.jvp(teacher, (expanded_at,), (x - expanded_at,))
        return logits + torch.where(is_top, change, 0.0)

    return partial(gradient, lambda x: kl_sum(student(x), teacher_logits(x)))


def plain_directional(student: nn.Module, teacher: nn.Module, x: Tensor):
    """Returns x -> gradient, with the teacher linear along the kl's gradient with respect to its logits at x."""
    expanded_at, logits = x, teacher(x).detach()
    direction = gradient(lambda logits: kl_sum(student(expanded_at).detach(), logits), logits)
    row = gradient(lambda x: (direction * teacher(x)).sum(), x)

    def teacher_logits(x: Tensor) -> Tensor:
        change = (row * (x - expanded_at)).sum(dim=(1, 2, 3)) / direction.square().sum(dim=1)
        return logits + direction * change[:, None]

    return partial(gradient, lambda x: kl_sum(student(x), teacher_logits(x)))


def plain_search(policy: str, *, norm: str = "linf", num_steps: int = 10) -> Tensor:
    """Returns x_adv of a loop that rebuilds the gradient function at every `every`-th step."""
    settings = TeacherPolicy.parse(policy)
    student, teacher = (network.eval().requires_grad_(False) for network in student_and_teacher())
    x_natural, _ = images_and_labels()
    x_adv, step_ = x_natural, {"linf": linf_step, "l2": l2_step}[norm]
    for step in range(num_steps):
        if step % settings.every == 0:
            if settings.kind == "refreshed":
                gradient_at = plain_refreshed(student, teacher, x_adv)
            elif settings.kind == "directional":
                gradient_at = plain_directional(student, teacher, x_adv)
            else:
                gradient_at = plain_linearized(student, teacher, x_adv, settings.top)
        x_adv = step_(x_adv, x_natural, gradient_at(x_adv), STEP_SIZE[norm], EPSILON[norm]).clamp(0, 1)
    return x_adv


def plain_exact(norm: str = "linf", num_steps: int = 10) -> Tensor:
    student, teacher = (network.eval() for network in student_and_teacher())
    x_natural, _ = images_and_labels()
    sizes = {"epsilon": EPSILON[norm], "step_size": STEP_SIZE[norm]}
    return inner_loop(kl_to_teacher(student, teacher), x_natural, x_natural, norm=norm, num_steps=num_steps, **sizes)


def assert_same_search(x_adv: Tensor, expected: Tensor) -> None:
    assert fraction_equal(x_adv, expected) >= 0.998
    networks = student_and_teacher()
    assert mean_kl(*networks, x_adv) == pytest.approx(mean_kl(*networks, expected), rel=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "policy", ["exact", "refreshed(every=1)", "directional(every=1)", f"linearized(top={NUM_CLASSES},every=1)"]
)
def test_a_policy_with_a_full_query_in_every_step_is_the_exact_search(policy, norm):
    assert_same_search(search(policy, norm=norm), plain_exact(norm))


# Policy, number of steps.
CASES = [
    ("refreshed(every=2)", 4),
    ("refreshed(every=3)", 10),
    ("refreshed(every=8)", 10),
    ("refreshed(every=50)", 10),
    ("directional(every=3)", 10),
    ("directional(every=8)", 10),
    ("directional(every=50)", 7),
    ("linearized(top=1,every=3)", 7),
    ("linearized(top=2,every=10)", 10),
    ("linearized(top=3,every=4)", 10),
    ("linearized(top=5,every=10)", 3),
    ("linearized(top=9,every=10)", 10),
]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("policy", "num_steps"), CASES)
def test_x_adv_equals_that_of_the_plain_restatement(policy, num_steps, norm):
    expected = plain_search(policy, norm=norm, num_steps=num_steps)
    assert_same_search(search(policy, norm=norm, num_steps=num_steps), expected)


@pytest.mark.parametrize("policy", ["refreshed(every=3)", "linearized(top=2,every=5)"])
def test_adaiad_searches_as_adaad_under_a_policy_too(policy):
    assert_same_search(search(policy, method="adaiad"), plain_search(policy))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("policy", ["refreshed(every=3)", "directional(every=3)", "linearized(top=2,every=5)"])
def test_x_adv_equals_that_of_the_plain_restatement_in_compiled_steps(policy, norm):
    x_adv = search(policy, norm=norm, mode="compiled", compile_options={"backend": "aot_eager"})
    assert_same_search(x_adv, plain_search(policy, norm=norm))


def test_the_settings_differ_by_more_than_the_comparisons_above_tolerate():
    policies = [
        "exact",
        "refreshed(every=3)",
        "refreshed(every=8)",
        "directional(every=8)",
        "linearized(top=1,every=10)",
    ]
    policies += ["linearized(top=2,every=10)", "linearized(top=2,every=3)"]
    found = [search(policy) for policy in policies]
    for number, x_adv in enumerate(found):
        assert all(fraction_equal(x_adv, other) < 0.99 for other in found[:number]), policies[number]


# Position of the convolution's weight among the arguments of an operation, and the direction of the pass.
WEIGHT_OF = {
    torch.ops.aten.convolution.default: (1, "forward"),
    torch.ops.aten.convolution_backward.default: (2, "backward"),
}
# The second convolutions of the two tiny networks, by their weights.
OWNERS = {(12, 6, 3, 3): "student", (16, 8, 3, 3): "teacher"}


class PassCounts(TorchDispatchMode):
    """Counts the passes through each of the two tiny networks."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WEIGHT_OF:
            place, way = WEIGHT_OF[func]
            owner = OWNERS.get(tuple(args[place].shape))
            self.counts.update([f"{owner} {way}"] if owner else [])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("policy", "teacher_forwards", "teacher_backwards"),
    [
        ("exact", 10, 10),
        ("refreshed(every=1)", 10, 10),
        ("refreshed(every=3)", 4, 4),
        ("refreshed(every=8)", 2, 2),
        ("refreshed", 1, 1),
        ("directional(every=4)", 3, 3),
        ("linearized(top=3,every=5)", 2, 6),
        ("linearized(top=2)", 1, 2),
        ("linearized(top=99,every=10)", 1, NUM_CLASSES),
    ],
)
def test_the_number_of_passes_through_each_network(policy, teacher_forwards, teacher_backwards):
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, inner=inner_config(), teacher_policy=TeacherPolicy.parse(policy))
    x_natural, _ = images_and_labels()
    maximizer(x_natural)  # the first call folds the networks and compares the copies with them
    with PassCounts() as passes:
        maximizer(x_natural)
    assert passes.counts == {
        "student forward": 10,
        "student backward": 10,
        "teacher forward": teacher_forwards,
        "teacher backward": teacher_backwards,
    }


def test_measuring_the_error_of_a_policy_costs_no_extra_pass():
    student, teacher = student_and_teacher()
    policy = TeacherPolicy(kind="refreshed", every=10)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    distiller = Distiller(student, teacher, inner=inner_config(), optimizer=optimizer, teacher_policy=policy)
    batch = images_and_labels()
    distiller.step(*batch)
    with PassCounts() as passes:
        distiller.step(*batch)
    assert passes.counts["teacher forward"] == 1 + 1  # of the search, and of the outer loss
    assert passes.counts["teacher backward"] == 1
    assert distiller.read_teacher_error() is not None


@pytest.mark.parametrize("policy", ["refreshed(every=3)", "directional(every=3)", "linearized(top=2,every=3)"])
def test_a_policy_neither_waits_for_the_device_nor_leaves_a_graph(policy):
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, inner=inner_config(), teacher_policy=TeacherPolicy.parse(policy))
    x_natural, _ = images_and_labels()
    maximizer(x_natural)
    with HostSyncWatch() as watch:
        result = maximizer.search(x_natural)
    assert watch.seen == []
    assert not result.x_adv.requires_grad
    assert not result.teacher_logits_assumed.requires_grad


def test_the_interval_may_be_changed_between_searches():
    networks = student_and_teacher()
    adaptive = InnerMaximizer(*networks, inner=inner_config(), teacher_policy=TeacherPolicy(kind="refreshed"))
    assert adaptive.query_interval == 10
    x_natural, _ = images_and_labels()
    assert torch.equal(adaptive(x_natural), search("refreshed(every=10)"))
    adaptive.query_interval = 4
    assert torch.equal(adaptive(x_natural), search("refreshed(every=4)"))


def assumed_at_x_adv(policy: str, teacher: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the policy's approximation of T(x_adv), and T(x_adv)."""
    student, _ = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, inner=inner_config(), teacher_policy=TeacherPolicy.parse(policy))
    result = maximizer.search(images_and_labels()[0])
    with torch.no_grad():
        return result.teacher_logits_assumed, copy.deepcopy(teacher).eval()(result.x_adv)


def test_refreshed_assumes_the_logits_of_the_last_query():
    _, teacher = student_and_teacher()
    assumed, _ = assumed_at_x_adv("refreshed(every=10)", teacher)
    with torch.no_grad():
        at_natural = copy.deepcopy(teacher).eval()(images_and_labels()[0])
        before_the_last_step = copy.deepcopy(teacher).eval()(search("exact", num_steps=9))
    torch.testing.assert_close(assumed, at_natural, rtol=1e-4, atol=1e-4)
    assumed, _ = assumed_at_x_adv("refreshed(every=1)", teacher)
    # A step at a pixel whose gradient is within rounding of zero may go either way.
    assert (assumed - before_the_last_step).abs().max() < 0.02 * before_the_last_step.abs().max()


def test_directional_keeps_the_answer_of_a_teacher_with_two_classes_whose_logits_are_opposite():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one_logit = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))
        student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))

    class Opposite(nn.Module):
        """Linear teacher of two classes: every change of its logits lies along the gradient of any kl."""

        def __init__(self) -> None:
            super().__init__()
            self.one_logit = one_logit

        def forward(self, x: Tensor) -> Tensor:
            logit = self.one_logit(x)
            return torch.cat([logit, -logit], dim=1)

    teacher = Opposite()
    x_natural, _ = images_and_labels()
    found = InnerMaximizer(student, teacher, inner=inner_config(), teacher_policy="directional(every=10)").search(
        x_natural
    )
    with torch.no_grad():
        torch.testing.assert_close(found.teacher_logits_assumed, teacher(found.x_adv), rtol=1e-4, atol=1e-4)
    exact = InnerMaximizer(student, teacher, inner=inner_config())(x_natural)
    assert fraction_equal(found.x_adv, exact) > 0.99


def test_the_expansion_of_a_linear_teacher_is_exact_in_its_classes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, NUM_CLASSES))
    assumed, true = assumed_at_x_adv(f"linearized(top={NUM_CLASSES},every=10)", teacher)
    torch.testing.assert_close(assumed, true, rtol=1e-5, atol=1e-5)
    assumed, true = assumed_at_x_adv("linearized(top=2,every=10)", teacher)
    with torch.no_grad():
        at_natural = teacher(images_and_labels()[0])
    top = torch.zeros_like(at_natural, dtype=torch.bool).scatter(1, at_natural.topk(2, dim=1).indices, True)
    torch.testing.assert_close(assumed, torch.where(top, true, at_natural), rtol=1e-5, atol=1e-5)
    assert (assumed - true).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name in methods.METHODS if not methods.get(name).through_teacher])
def test_methods_whose_search_does_not_go_through_the_teacher_refuse_a_policy(name):
    for policy in (TeacherPolicy(kind="refreshed"), TeacherPolicy(kind="linearized", every=2)):
        with pytest.raises(ValueError, match=f"inner loop of {name} does not go.*teacher.policy=exact") as caught:
            InnerMaximizer(*student_and_teacher(), method=name, teacher_policy=policy)
        assert "\n" not in str(caught.value)
    InnerMaximizer(*student_and_teacher(), method=name, teacher_policy=TeacherPolicy())


def test_adaad_and_adaiad_with_additions_take_policies():
    through_teacher = [name for name in methods.METHODS if methods.get(name).through_teacher]
    assert {"adaad", "adaiad"} <= set(through_teacher)
    InnerMaximizer(*student_and_teacher(), method="adaad+igdm", teacher_policy=TeacherPolicy(kind="refreshed"))
