"""The inner maximisation against the plain loop, and its guarantees about networks and callers."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NUM_CLASSES, images_and_labels, student_and_teacher
from plain import cross_entropy, fraction_equal, inner_loop, kl_to_teacher, lengths, mean_kl
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad import InnerConfig, InnerMaximizer, ThreatModel
from fastadaad.inner.start import uniform_noise

EPSILON, STEP_SIZE, NUM_STEPS = 16 / 255, 4 / 255, 10


def inner_config(norm: str = "linf", **options) -> InnerConfig:
    scale = 1.0 if norm == "linf" else 10.0  # an l2 ball as large as the l-infinity one needs a larger radius
    defaults = {"step_size": scale * STEP_SIZE, "num_steps": NUM_STEPS}
    return InnerConfig(threat_model=ThreatModel(norm=norm, epsilon=scale * EPSILON), **(defaults | options))


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_point(start: str, x_natural: Tensor, epsilon: float) -> Tensor:
    """Draws the starts of the table of methods (uniform: in the l-infinity ball)."""
    if start == "natural":
        return x_natural
    if start in ("gaussian", "gaussian-clipped"):
        x_adv = x_natural + 0.001 * torch.randn(x_natural.shape, generator=seeded())
        return x_adv if start == "gaussian" else x_adv.clamp(0, 1)
    x_adv = x_natural + torch.empty_like(x_natural).uniform_(-epsilon, epsilon, generator=seeded())
    return x_adv if start == "uniform-unclipped" else x_adv.clamp(0, 1)


def state(network: nn.Module) -> dict:
    """Everything about a network that the loop must not change."""
    return {
        "weights": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradients": {name: parameter.grad for name, parameter in network.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        "modes": {name: module.training for name, module in network.named_modules()},
    }


def assert_same_state(network: nn.Module, before: dict) -> None:
    after = state(network)
    torch.testing.assert_close(after["weights"], before["weights"], rtol=0, atol=0)
    assert after["requires_grad"] == before["requires_grad"]
    assert after["modes"] == before["modes"]
    for name, gradient in after["gradients"].items():
        assert gradient is before["gradients"][name], name


def mixed_networks() -> tuple[nn.Module, nn.Module]:
    """Networks in train mode, each with a frozen batch-norm, a fixed parameter and an earlier gradient."""
    networks = student_and_teacher()
    for network in networks:
        network[1].eval()
        network[0].weight.requires_grad_(False)
        network[3].weight.grad = torch.ones_like(network[3].weight)
    return networks


CASES = [
    ("adaad", "linf", {}),
    ("adaad", "linf", {"start": "natural"}),
    ("adaad", "linf", {"start": "uniform"}),
    ("adaad", "linf", {"start": "uniform-unclipped"}),
    ("adaad", "linf", {"start": "gaussian-clipped"}),
    ("adaad", "linf", {"student_eval": False}),
    ("adaad", "linf", {"lower": 0.25, "upper": 0.75}),
    ("adaad", "l2", {}),
    ("pgd-at", "linf", {}),
    ("pgd-at", "linf", {"start": "gaussian"}),
    ("pgd-at", "l2", {"start": "natural"}),
]


@pytest.mark.parametrize(("method", "norm", "options"), CASES, ids=str)
def test_x_adv_equals_that_of_the_plain_loop(method, norm, options):
    student, teacher = student_and_teacher()
    student.train(not options.get("student_eval", True))
    plain_student, plain_teacher = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    x_natural, labels = images_and_labels()
    x_natural = x_natural.clamp(options.get("lower", 0), options.get("upper", 1))
    inner = inner_config(norm, **options)
    x_adv = InnerMaximizer(student, teacher, method=method, inner=inner)(x_natural, labels, generator=seeded())

    start = options.get("start", {"adaad": "gaussian", "pgd-at": "uniform"}[method])
    value = kl_to_teacher(plain_student, plain_teacher) if method == "adaad" else cross_entropy(plain_student, labels)
    expected = inner_loop(
        value,
        x_natural,
        start_point(start, x_natural, EPSILON),
        norm=norm,
        epsilon=inner.threat_model.epsilon,
        step_size=inner.step_size,
        num_steps=NUM_STEPS,
        lower=inner.lower,
        upper=inner.upper,
    )
    assert fraction_equal(x_adv, expected) >= 0.999
    reached, wanted = mean_kl(student, teacher, x_adv), mean_kl(student, teacher, expected)
    assert reached == pytest.approx(wanted, rel=1e-3)
    for buffer, expected_buffer in zip(student.buffers(), plain_student.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected_buffer, rtol=1e-5, atol=1e-6)


def test_the_gradient_goes_through_the_teacher():
    """The comparisons above would notice a loop that detaches the teacher: it reaches another point, and less kl."""
    student, teacher = (network.eval() for network in student_and_teacher())
    x_natural, _ = images_and_labels(64)

    def detached(x: Tensor) -> Tensor:
        return F.kl_div(student(x).log_softmax(1), teacher(x).softmax(1).detach(), reduction="sum")

    x_adv = InnerMaximizer(student, teacher, inner=inner_config(start="natural"))(x_natural)
    settings = {"norm": "linf", "step_size": STEP_SIZE, "num_steps": NUM_STEPS, "epsilon": EPSILON}
    without = inner_loop(detached, x_natural, x_natural, **settings)
    assert fraction_equal(x_adv, without) < 0.9
    assert mean_kl(student, teacher, x_adv) > 1.02 * mean_kl(student, teacher, without)


def count_passes(network: nn.Module, counts: Counter, name: str) -> None:
    network.register_forward_hook(lambda module, inputs, output: counts.update([f"{name} forward"]))
    network[-1].register_full_backward_hook(lambda module, grad_in, grad_out: counts.update([f"{name} backward"]))


def test_a_step_takes_one_forward_and_one_backward_of_each_network_it_needs():
    student, teacher = student_and_teacher()
    counts: Counter = Counter()
    count_passes(student, counts, "student")
    count_passes(teacher, counts, "teacher")
    x_natural, labels = images_and_labels()
    for method, names in (("adaad", ("student", "teacher")), ("pgd-at", ("student",))):
        maximizer = InnerMaximizer(student, teacher, method=method, inner=inner_config())
        maximizer(x_natural, labels)  # the first call evaluates one image, which shows the number of classes
        counts.clear()
        maximizer(x_natural, labels)
        assert counts == {f"{name} {way}": NUM_STEPS for name in names for way in ("forward", "backward")}


def saved_tensors(run) -> int:
    """Counts the tensors that autograd keeps for a backward pass during `run()`."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(None) or tensor, lambda tensor: tensor):
        run()
    return len(saved)


def test_autograd_keeps_nothing_outside_the_networks_and_no_weight_gradient_exists():
    student, teacher = (network.eval() for network in student_and_teacher())
    x_natural, _ = images_and_labels()
    maximizer = InnerMaximizer(student, teacher, inner=inner_config())
    seen = []
    student.register_forward_hook(lambda module, *_: seen.extend(p.requires_grad for p in module.parameters()))
    teacher.register_forward_hook(lambda module, *_: seen.extend(p.requires_grad for p in module.parameters()))
    in_the_loop = saved_tensors(lambda: maximizer(x_natural))
    assert seen
    assert not any(seen)
    for network in (student, teacher):
        network.requires_grad_(False)
    x = x_natural.clone().requires_grad_()
    assert in_the_loop == NUM_STEPS * saved_tensors(lambda: [student(x), teacher(x)])


@pytest.mark.parametrize("method", ["adaad", "pgd-at"])
@pytest.mark.parametrize("student_eval", [True, False])
def test_networks_and_images_stay_unchanged(method, student_eval):
    student, teacher = mixed_networks()
    x_natural, labels = images_and_labels()
    given, before = x_natural.clone(), (state(student), state(teacher))
    if not student_eval:
        # The loop would update the running statistics, as the plain loop does: stop them here.
        student[4].momentum, student[4].num_batches_tracked = 0.0, None
        before[0]["weights"].pop("4.num_batches_tracked")
    seen = []
    student[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    student[4].register_forward_hook(lambda module, *_: seen.append(module.training))
    x_adv = InnerMaximizer(student, teacher, method=method, inner=inner_config(student_eval=student_eval))(
        x_natural, labels
    )
    assert set(seen) == ({False} if student_eval else {False, True})  # the frozen layer stays frozen
    assert_same_state(student, before[0])
    assert_same_state(teacher, before[1])
    assert torch.equal(x_natural, given)
    assert x_natural.grad is None
    assert not x_adv.requires_grad
    assert x_adv.data_ptr() != x_natural.data_ptr()


@pytest.mark.parametrize("broken", [0, 1], ids=["student", "teacher"])
def test_networks_are_restored_if_one_raises_in_the_middle(broken):
    networks = mixed_networks()
    before = [state(network) for network in networks]
    calls = Counter()

    def fail_in_the_third_step(module, inputs):
        calls.update(["forward"])
        if calls["forward"] == 3:
            raise RuntimeError("planted")

    networks[broken].register_forward_pre_hook(fail_in_the_third_step)
    with pytest.raises(RuntimeError, match="planted"):
        InnerMaximizer(*networks, inner=inner_config())(images_and_labels()[0])
    for network, expected in zip(networks, before, strict=True):
        assert_same_state(network, expected)


def test_one_network_may_be_both_student_and_teacher():
    student, _ = mixed_networks()
    before = state(student)
    x_natural, _ = images_and_labels()
    x_adv = InnerMaximizer(student, student, inner=inner_config(start="natural"))(x_natural)
    assert torch.equal(x_adv, x_natural)  # the kl of a network to itself is flat
    assert_same_state(student, before)


@pytest.mark.parametrize("method", ["adaad", "pgd-at"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_the_callers_grad_mode_makes_no_difference(method, context):
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, method=method, inner=inner_config())
    expected = maximizer(*images_and_labels(), generator=seeded())
    with context():
        assert torch.equal(maximizer(*images_and_labels(), generator=seeded()), expected)


def test_under_autocast_the_kl_reached_is_nearly_that_in_full_precision():
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, inner=inner_config())
    x_natural, _ = images_and_labels()
    in_full = mean_kl(student, teacher, maximizer(x_natural, generator=seeded()))
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = maximizer(x_natural, generator=seeded())
    assert x_adv.dtype == torch.float32
    assert mean_kl(student, teacher, x_adv) > 0.95 * in_full > 1.2 * mean_kl(student, teacher, x_natural)
    assert (x_adv - x_natural).abs().max() <= EPSILON + 1e-7


def test_channels_last_images_give_the_same_pixels_in_their_own_layout():
    student, teacher = student_and_teacher()
    maximizer = InnerMaximizer(student, teacher, inner=inner_config())
    x_natural, _ = images_and_labels()
    x_adv = maximizer(x_natural.to(memory_format=torch.channels_last), generator=seeded())
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert fraction_equal(x_adv, maximizer(x_natural, generator=seeded())) >= 0.999


def linear_classifier(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, NUM_CLASSES))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(["adaad", "pgd-at"]),
    norm=st.sampled_from(["linf", "l2"]),
    start=st.sampled_from(["gaussian", "uniform", "natural"]),
    epsilon=st.floats(0, 1),
    relative_step_size=st.floats(0, 1),
    num_steps=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_x_adv_never_leaves_the_ball_or_the_box(method, norm, start, epsilon, relative_step_size, num_steps, seed):
    inner = InnerConfig(
        threat_model=ThreatModel(norm=norm, epsilon=epsilon),
        step_size=(2 if num_steps == 1 else 1) * relative_step_size * epsilon,
        num_steps=num_steps,
        start=start,
    )
    x_natural, labels = images_and_labels(3, seed)
    networks = linear_classifier(1), linear_classifier(2)
    x_adv = InnerMaximizer(*networks, method=method, inner=inner)(x_natural, labels, generator=seeded(seed))
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    delta = x_adv - x_natural
    distance = delta.abs().max() if norm == "linf" else lengths(delta).max()
    assert distance <= epsilon * (1 + 1e-5) + 1e-7


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_epsilon_0_the_images_stay_unchanged(norm):
    x_natural, labels = images_and_labels()
    inner = InnerConfig(threat_model=ThreatModel(norm=norm, epsilon=0.0), start="natural", num_steps=2)
    for method in ("adaad", "pgd-at"):
        x_adv = InnerMaximizer(*student_and_teacher(), method=method, inner=inner)(x_natural, labels)
        assert torch.equal(x_adv, x_natural)


def test_an_empty_batch_gives_an_empty_batch():
    for method in ("adaad", "pgd-at"):
        maximizer = InnerMaximizer(*student_and_teacher(), method=method, inner=inner_config())
        assert maximizer(*images_and_labels(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(("method", "norm"), [("adaad", "linf"), ("pgd-at", "l2")])
def test_the_loop_never_waits_for_the_device(method, norm):
    maximizer = InnerMaximizer(*student_and_teacher(), method=method, inner=inner_config(norm))
    batch = images_and_labels()
    maximizer(*batch)  # the first call folds the networks and compares the copies with them
    with HostSyncWatch() as watch:
        maximizer(*batch)
    assert watch.seen == []


def test_the_watch_sees_each_kind_of_host_synchronisation():
    x = torch.ones(3)
    offences = {
        "item": lambda: x[0].item(),
        "if": lambda: bool(x[0] > 0),
        "mask": lambda: x[x > 0],
        "assignment under a mask": lambda: x.__setitem__(x > 0, torch.zeros(3)),
        "nonzero": lambda: x.nonzero(),
        "equal": lambda: torch.equal(x, x + 1),
    }
    for name, offence in offences.items():
        with HostSyncWatch() as watch:
            offence()
        assert len(watch.seen) == 1, name


def test_uniform_noise_fills_the_unit_ball_evenly():
    x = torch.empty(4000, 1, 2, 2)
    linf = uniform_noise(x, ThreatModel(norm="linf"), seeded())
    assert linf.abs().max() <= 1
    assert linf.mean().abs() < 0.02
    assert linf.square().mean().item() == pytest.approx(1 / 3, rel=0.02)
    l2 = uniform_noise(x, ThreatModel(norm="l2"), seeded())
    radius = lengths(l2).flatten()
    assert radius.max() <= 1 + 1e-6
    # In 4 dimensions half of the ball's volume lies within radius 0.5 ** (1/4).
    assert (radius < 0.5**0.25).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert l2.mean(0).abs().max() < 0.03


def test_the_compiled_step_equals_the_eager_one():
    student, teacher = student_and_teacher()
    x_natural, labels = images_and_labels()
    for method, norm in (("adaad", "linf"), ("pgd-at", "l2")):
        arguments = {"method": method, "inner": inner_config(norm)}
        eager = InnerMaximizer(student, teacher, **arguments)
        options = {"backend": "aot_eager"}
        compiled = InnerMaximizer(student, teacher, **arguments, mode="compiled", compile_options=options)
        expected = eager(x_natural, labels, generator=seeded())
        assert fraction_equal(compiled(x_natural, labels, generator=seeded()), expected) >= 0.999


def test_mistakes_are_named():
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    with pytest.raises(ValueError, match="teacher is None: method adaad needs one"):
        InnerMaximizer(student)
    with pytest.raises(ValueError, match="unknown method 'adad'"):
        InnerMaximizer(student, teacher, method="adad")
    with pytest.raises(ValueError, match="mode is 'fast': choose eager, compiled, graph or auto"):
        InnerMaximizer(student, teacher, mode="fast")
    with pytest.raises(ValueError, match=r"student_eval is False.*mode=auto"):
        InnerMaximizer(student, teacher, mode="compiled", inner=inner_config(student_eval=False))
    with pytest.raises(ValueError, match="labels are missing"):
        InnerMaximizer(student, method="pgd-at")(x_natural)
    with pytest.raises(ValueError, match=r"float64.*float32"):
        InnerMaximizer(student, teacher)(x_natural.double())
    with pytest.raises(ValueError, match="swapped"):
        InnerMaximizer(student, teacher, inner={"step_size": 8 / 255, "epsilon": 2 / 255})
    assert InnerMaximizer(student, teacher, mode="auto").mode == "eager"
