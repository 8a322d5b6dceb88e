"""Capture on a CUDA device: replays equal eager calls without host syncs, and two streams compute what one does."""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from plain import fraction_equal, kl_to_teacher
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, ThreatModel, methods, ops
from fastadaad.config import TeacherPolicy
from fastadaad.inner import policy_probe
from fastadaad.inner.maximizer import MAX_CAPTURES, InnerMaximizer
from fastadaad.runtime import machine_cache
from fastadaad.runtime.cuda_graph import NUM_WARM_UP_RUNS, CapturedCall, run_on_two_streams
from fastadaad.runtime.precision import STRICT_FP32, tensor_cores
from fastadaad.training.averaging import AveragedWeights
from fastadaad.training.capturable_optimizer import CapturableOptimizer
from fastadaad.training.self_check_result import SECTION, SelfCheckResult

NUM_STEPS = 12
EPOCH = 6
INNER = InnerConfig(threat_model=ThreatModel(epsilon=8 / 255), step_size=2 / 255, num_steps=3)
DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def reproducible(monkeypatch):
    """Makes convolutions use the same algorithm in every run, and in fp32 without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with tensor_cores(STRICT_FP32, DEVICE):  # pytest cannot restore torch's switches for TF32
        yield


@contextmanager
def host_sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def networks_on_gpu() -> tuple[nn.Module, nn.Module]:
    student, teacher = student_and_teacher()
    return student.to(DEVICE), teacher.to(DEVICE)


def batch_on_gpu(batch_size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    x_natural, labels = images_and_labels(batch_size, seed)
    return x_natural.to(DEVICE), labels.to(DEVICE)


def schedule(step: int) -> float:
    return (32 - step) / 1024  # exact in fp32


fused_sgd = partial(torch.optim.SGD, lr=1.0, momentum=0.9, fused=True)


class Training:
    """Training in one mode, with a learning rate that changes at each step."""

    def __init__(
        self,
        mode: str,
        method: str | methods.Method,
        make_optimizer: Callable = fused_sgd,
        ema_decay: float | None = None,
        **options,
    ) -> None:
        self.student, teacher = networks_on_gpu()
        self.averaged = AveragedWeights(self.student, ema_decay) if ema_decay else None
        self.optimizer = make_optimizer(self.student.parameters())
        self.generator = torch.Generator(DEVICE).manual_seed(0)
        self.distiller = Distiller(
            self.student,
            teacher,
            method=method,
            inner=INNER,
            optimizer=self.optimizer,
            mode=mode,
            averaged=self.averaged,
            **{"precision": "fp32"} | options,
        )
        self.updates_by_python = 0
        self.optimizer.register_step_post_hook(self.count_update)

    def count_update(self, *_: object) -> None:
        self.updates_by_python += 1

    def step(self, step: int, batch_size: int = 16, guard: Callable = host_sync_is_an_error) -> tuple[Tensor, Tensor]:
        self.optimizer.param_groups[0]["lr"] = schedule(step)
        batch = batch_on_gpu(batch_size, seed=step)
        with guard():
            result = self.distiller.step(*batch, epoch=step // EPOCH, generator=self.generator)
        return result.loss.clone(), result.x_adv.clone()


@contextmanager
def unguarded() -> Iterator[None]:
    yield


def assert_same_training(
    method: str | methods.Method, last_batch_size: int = 16, **options
) -> tuple[Training, Training]:
    """Compares mode graph with eager; not bitwise, as some kernels of torch add in any order.

    A gradient near 0 may then change its sign, and with it a pixel of x_adv.
    """
    graph, eager = (Training(mode, method, **options) for mode in ("graph", "eager"))
    assert graph.distiller.mode == "graph"
    before = copy.deepcopy(eager.student)
    for step in range(NUM_STEPS):
        # The first step of a batch size or of an epoch may capture or compile, which synchronises with the host.
        guard = host_sync_is_an_error if step >= 5 and step % EPOCH else unguarded
        batch_size = last_batch_size if step % 5 == 4 else 16
        (loss, x_adv), (expected_loss, expected_x_adv) = (
            training.step(step, batch_size, guard) for training in (graph, eager)
        )
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-3, abs=1e-4), f"step {step}"
        assert fraction_equal(x_adv, expected_x_adv) >= 0.99, f"step {step}"
    for (name, tensor), wanted, first in zip(
        graph.student.state_dict().items(),
        eager.student.state_dict().values(),
        before.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(tensor, wanted, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(wanted, first), name
    return graph, eager


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_graph_mode_trains_as_eager_mode_without_host_syncs(method):
    graph, _ = assert_same_training(method)
    assert graph.updates_by_python < NUM_STEPS  # saad is captured again for each epoch of IGDM's ramp


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_captured_step_clips_its_gradient_without_host_syncs(precision):
    awp_gamma = 0.01 if precision == "fp32" else 0.0
    graph, _ = assert_same_training("adaad", grad_clip=0.05, awp_gamma=awp_gamma, precision=precision)
    assert graph.updates_by_python == NUM_WARM_UP_RUNS + 1


def test_a_running_average_is_part_of_the_captured_step():
    graph, eager = assert_same_training("adaad", ema_decay=0.75)
    assert graph.averaged.num_averaged == eager.averaged.num_averaged == NUM_STEPS
    assert graph.updates_by_python == 2 * (NUM_WARM_UP_RUNS + 1)  # the first step has nothing to average with
    for tensor, wanted in zip(graph.averaged.tensors, eager.averaged.tensors, strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.equal(eager.averaged.module[0].weight, eager.student[0].weight)


def test_the_eager_step_is_captured_on_two_streams():
    graph, _ = assert_same_training("adaad", compile_options={"disable": True})
    assert graph.updates_by_python == NUM_WARM_UP_RUNS + 1


def test_introspection_is_captured_when_it_begins():
    graph, _ = assert_same_training(methods.get("adaiad", introspection_begin=1))
    assert graph.updates_by_python == 2 * (NUM_WARM_UP_RUNS + 1)


def test_an_optimizer_that_reads_its_rate_on_the_host_leaves_only_the_inner_loop_captured():
    with pytest.warns(UserWarning, match="captures the inner loop and not the whole step"):
        graph, _ = assert_same_training("adaad", make_optimizer=partial(fused_sgd, fused=False))
    assert graph.updates_by_python == NUM_STEPS


def trained_weight(kind: type, settings: dict, *, first: float, captured: bool) -> Tensor:
    """Trains one weight for NUM_STEPS steps on inputs that grow from `first` by less than 1."""
    weight = nn.Parameter(torch.linspace(-1, 1, 1000, device=DEVICE))
    optimizer = kind([weight], lr=1.0, **settings)
    capturable = CapturableOptimizer(optimizer) if captured else None

    def train(x: Tensor, optimizer=capturable or optimizer) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (weight.sin() * x).square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step = CapturedCall(train, state=capturable.state) if capturable else train
    for number in range(NUM_STEPS):
        optimizer.param_groups[0]["lr"] = schedule(number)
        if capturable:
            capturable.refresh()
        step(torch.full((1000,), first + number / NUM_STEPS, device=DEVICE))
    return weight.detach()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"foreach": False}),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adagrad, {"fused": True}),
    ],
)
def test_a_captured_step_of_other_optimizers_equals_the_eager_step(kind, settings):
    weights = [trained_weight(kind, settings, first=1.0, captured=captured) for captured in (True, False)]
    # Of weights up to 1: with `capturable` torch's Adam computes its corrections in fp32, otherwise in float64.
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_replays_accumulate_the_error_of_a_teacher_policy():
    policy = TeacherPolicy(kind="refreshed", every=2)
    graph, eager = assert_same_training("adaad", teacher_policy=policy)
    error, expected = (training.distiller.read_teacher_error() for training in (graph, eager))
    assert error.logit_error == pytest.approx(expected.logit_error, rel=1e-2)
    assert error.kl_error == pytest.approx(expected.kl_error, rel=5e-2)


def test_a_probe_between_replays_changes_no_step(monkeypatch):
    monkeypatch.setattr(policy_probe, "INTERVAL", EPOCH + 1)  # it waits for the host, as the first step of an epoch may
    graph, eager = assert_same_training("adaad", teacher_policy="directional(every=3)")
    assert graph.distiller.policy_share == pytest.approx(eager.distiller.policy_share, rel=1e-2)


def test_the_default_precision_is_bf16_on_tensor_cores():
    training, plain = (
        Training("eager", "adaad", **options) for options in ({"precision": "auto"}, {"precision": "fp32"})
    )
    expected = "bf16" if torch.cuda.get_device_capability(DEVICE) >= (8, 0) else "fp32"
    assert (training.distiller.precision.student, training.distiller.precision.teacher) == (expected, expected)
    losses = []
    for one in (training, plain):
        loss, x_adv = one.step(0, guard=unguarded)
        assert x_adv.dtype == loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.fixture
def self_check_says(tmp_path, monkeypatch) -> Callable[..., None]:
    """Stores a result of the self-check as that of this machine."""
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path))

    def store(**result) -> None:
        known = {"passed": (), "failures": {}, "not_run": {}} | result
        check = SelfCheckResult(**known, device="cuda", seconds=0.0)
        machine_cache.store(SECTION, machine_cache.machine_key(DEVICE), asdict(check))

    return store


def mode_in_use(**options) -> str:
    student, teacher = networks_on_gpu()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, fused=True)
    if options.pop("hook", False):
        optimizer.register_step_post_hook(lambda *_: None)
    return Distiller(student, teacher, optimizer=optimizer, **options).mode


def test_mode_auto_is_graph_once_captured_steps_passed_the_self_check(self_check_says):
    assert mode_in_use() == "compiled"
    self_check_says(failures={"captured": "step 1"})
    assert mode_in_use() == "compiled"
    self_check_says(passed=("compiled", "captured"))
    assert mode_in_use() == "graph"
    assert mode_in_use(hook=True) == "compiled"  # a replay would leave the user's hook out
    assert mode_in_use(inner={"student_eval": False}) == "eager"


def test_a_hook_that_comes_later_is_run_although_auto_chose_a_graph(self_check_says):
    self_check_says(passed=("compiled", "captured"))
    student, teacher = networks_on_gpu()
    optimizer, calls = torch.optim.SGD(student.parameters(), lr=0.1, fused=True), []
    distiller = Distiller(student, teacher, inner=INNER, optimizer=optimizer)
    distiller.step(*batch_on_gpu())
    assert distiller.mode == "graph"
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    for _ in range(2):
        distiller.step(*batch_on_gpu())
    assert calls == ["hook", "hook"]


def test_results_of_a_captured_step_survive_the_next_step():
    training = Training("graph", "adaad")
    result = training.distiller.step(*batch_on_gpu(seed=0))
    loss, x_adv = result.loss.clone(), result.x_adv.clone()
    training.distiller.step(*batch_on_gpu(seed=1))
    assert torch.equal(result.loss, loss)
    assert torch.equal(result.x_adv, x_adv)


def test_a_loss_that_is_kept_from_before_does_not_break_the_capture():
    training = Training("graph", "adaad")
    kept = training.student(batch_on_gpu()[0]).sum()  # its graph holds nodes of the default stream
    before = [parameter.detach().clone() for parameter in training.student.parameters()]
    training.distiller.step(*batch_on_gpu())
    assert kept.requires_grad
    assert not any(map(torch.equal, before, training.student.parameters()))


def test_captures_of_a_search_are_bounded():
    student, teacher = networks_on_gpu()
    maximizer = InnerMaximizer(student, teacher, inner=INNER, mode="graph")
    reserved = []
    for seed in range(2 * MAX_CAPTURES):
        maximizer(batch_on_gpu()[0], generator=torch.Generator(DEVICE).manual_seed(seed))
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[MAX_CAPTURES - 1 :] == [reserved[-1]] * (MAX_CAPTURES + 1)
    assert reserved[0] < reserved[-1]


def test_a_smaller_batch_runs_uncaptured_and_warns_once():
    with pytest.warns(UserWarning, match="drop the last") as warned:
        assert_same_training("adaad", last_batch_size=5)
    assert sum("drop the last" in str(warning.message) for warning in warned) == 1


def test_a_replay_draws_the_random_numbers_of_an_eager_call():
    draws, generator = [], torch.Generator(DEVICE).manual_seed(7)

    def draw(x: Tensor) -> Tensor:
        return x + torch.empty_like(x).normal_(generator=generator) + torch.empty_like(x).uniform_(generator=generator)

    captured, x = CapturedCall(draw, generators=[generator]), torch.zeros(1000, device=DEVICE)
    for function in (captured, draw):
        generator.manual_seed(7)
        draws.append([function(x).clone() for _ in range(3)])
    assert all(map(torch.equal, *draws))
    assert not torch.equal(draws[0][0], draws[0][1])


def test_a_captured_optimizer_step_equals_the_eager_step_bitwise():
    settings = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "fused": True}
    weights = [trained_weight(torch.optim.SGD, settings, first=0.0, captured=captured) for captured in (True, False)]
    assert torch.equal(*weights)


def frozen_networks() -> tuple[nn.Module, nn.Module]:
    student, teacher = networks_on_gpu()
    return student.eval().requires_grad_(False), teacher.eval().requires_grad_(False)


def plain_gradient(student: nn.Module, teacher: nn.Module, x_adv: Tensor) -> Tensor:
    x_adv = x_adv.detach().requires_grad_()
    return torch.autograd.grad(kl_to_teacher(student, teacher)(x_adv), x_adv)[0]


def gradient_on_two_streams(student: nn.Module, teacher: nn.Module, x_adv: Tensor) -> Tensor:
    x_adv = x_adv.detach().requires_grad_()
    logits = run_on_two_streams(x_adv.device, lambda: student(x_adv), lambda: teacher(x_adv))
    _, *gradients = ops.kl_grad(*(logit.detach() for logit in logits))
    return torch.autograd.grad(logits, x_adv, gradients)[0]


@pytest.mark.parametrize("captured", [False, True])
def test_two_streams_compute_what_one_stream_computes(captured):
    networks = frozen_networks()
    function = partial(gradient_on_two_streams, *networks)
    if captured:
        function = CapturedCall(function)
    for seed in range(NUM_STEPS):
        x_adv, _ = batch_on_gpu(64, seed)
        torch.testing.assert_close(function(x_adv), plain_gradient(*networks, x_adv), rtol=1e-4, atol=1e-6)


def gradient_by_vjp(student: nn.Module, teacher: nn.Module, x_adv: Tensor) -> Tensor:
    logits, pull_back = torch.func.vjp(lambda x: (student(x), teacher(x)), x_adv)
    _, *gradients = ops.kl_grad(*logits)
    return pull_back(tuple(gradients))[0]


def test_a_compiled_function_can_be_captured():
    networks = frozen_networks()
    compiled = torch.compile(gradient_by_vjp, fullgraph=True)
    captured = CapturedCall(partial(compiled, *networks))
    for seed in range(3):
        x_adv, _ = batch_on_gpu(seed=seed)
        networks[0][0].weight.mul_(0.9)
        torch.testing.assert_close(captured(x_adv), plain_gradient(*networks, x_adv), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ema_decay", [0.9, None], ids=["EMA", "SWA"])
def test_averaging_the_weights_does_not_wait_for_the_device(ema_decay):
    student, _ = networks_on_gpu()
    averaged = AveragedWeights(student, ema_decay)
    with host_sync_is_an_error():
        for _ in range(3):
            averaged.add(student)
            with torch.no_grad():
                student[0].weight.mul_(0.5)
    assert averaged.num_averaged == 3
    weight = averaged.module[0].weight / student[0].weight  # the student's is 1/8 of the first one
    expected = 0.9 * (0.9 + 0.1 / 2) + 0.1 / 4 if ema_decay else (1 + 1 / 2 + 1 / 4) / 3
    torch.testing.assert_close(weight, torch.full_like(weight, 8 * expected))
