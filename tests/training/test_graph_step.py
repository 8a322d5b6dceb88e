"""Mode graph of the Distiller on the CPU: the recorder of recorded_graph.py replaces the CUDA graph."""

import copy
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from networks import NUM_CLASSES, images_and_labels, student_and_teacher, tiny_network
from recorded_graph import record_with_make_fx
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastadaad import Distiller, InnerConfig, ThreatModel, methods
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.inner import maximizer as inner_maximizer
from fastadaad.inner import search as inner_search
from fastadaad.methods.losses import pgd_at_loss
from fastadaad.run_config import OptimConfig
from fastadaad.runtime.cuda_graph import NUM_WARM_UP_RUNS, CapturedCall
from fastadaad.training import graph_step
from fastadaad.training.averaging import AveragedWeights
from fastadaad.training.capturable_optimizer import CapturableOptimizer
from fastadaad.training.optimizers import make_optimizer

INNER = InnerConfig(threat_model=ThreatModel(epsilon=8 / 255), step_size=2 / 255, num_steps=2)
NUM_STEPS, EPOCH = 12, 3
# make_fx cannot trace compiled functions.
NOT_COMPILED = {"disable": True}


class Recorded(CapturedCall):
    """CapturedCall with the recorder, which also counts the captures."""

    num_captures = 0

    def __init__(self, function, **arguments) -> None:
        super().__init__(function, **arguments, record=self.record)

    @classmethod
    def record(cls, *arguments):
        Recorded.num_captures += 1
        return record_with_make_fx(*arguments)


@pytest.fixture(autouse=True)
def graphs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(Recorded, "num_captures", 0)
    monkeypatch.setattr(graph_step, "CapturedCall", Recorded)
    monkeypatch.setattr(inner_maximizer, "CapturedCall", Recorded)
    monkeypatch.setattr(inner_maximizer, "resolve_mode", lambda mode, device_type: mode)


def sgd(network: nn.Module, **settings) -> torch.optim.SGD:
    settings = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "fused": True} | settings
    return torch.optim.SGD(network.parameters(), lr=1.0, **settings)


def schedule(step: int) -> float:
    """Learning rate that changes at every step and is exact in fp32, as its tensor is."""
    return (32 - step) / 1024


class Training:
    """NUM_STEPS steps in 4 epochs, with another learning rate at each step."""

    def __init__(
        self, mode: str, method: str | methods.Method, make_optimizer=sgd, ema_decay: float | None = None, **options
    ) -> None:
        self.student, self.teacher = student_and_teacher()
        self.averaged = AveragedWeights(self.student, ema_decay) if ema_decay else None
        self.optimizer = make_optimizer(self.student)
        self.generator = torch.Generator().manual_seed(0)
        self.distiller = Distiller(
            self.student,
            self.teacher,
            method=method,
            inner=INNER,
            optimizer=self.optimizer,
            mode=mode,
            compile_options=NOT_COMPILED,
            layout="contiguous",  # a measured one may differ between the modes, and with it the rounding
            averaged=self.averaged,
            **options,
        )

    def step(self, step: int, batch_size: int = 16) -> list[Tensor]:
        self.optimizer.param_groups[0]["lr"] = schedule(step)
        batch = images_and_labels(batch_size, seed=step)
        result = self.distiller.step(*batch, epoch=step // EPOCH, generator=self.generator)
        return [result.loss.clone(), result.x_adv.clone()]


def assert_same_training(graph: Training, eager: Training, last_batch_size: int = 16, between=lambda *_: None) -> None:
    """Compares two trainings step by step; `between(training, step)` is called before each step."""
    first = copy.deepcopy(eager.student)
    for step in range(NUM_STEPS):
        for training in (graph, eager):
            between(training, step)
        batch_size = last_batch_size if step % EPOCH == EPOCH - 1 else 16
        results = zip(graph.step(step, batch_size), eager.step(step, batch_size), strict=True)
        assert all(torch.equal(result, wanted) for result, wanted in results), f"step {step}"
    assert_same_students(graph, eager)
    assert not torch.equal(first[0].weight, eager.student[0].weight)


def assert_same_students(graph: Training, eager: Training) -> None:
    expected = eager.student.state_dict()
    for name, tensor in graph.student.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def both(*arguments, **options) -> tuple[Training, Training]:
    return Training("graph", *arguments, **options), Training("eager", *arguments, **options)


# Captures in 4 epochs: one before and one from introspection_begin on, and one for each weight of IGDM's term.
CAPTURES = {
    "adaad": ({}, 1),
    "adaiad": ({"introspection_begin": 2}, 2),
    "pgd-at": ({}, 1),
    "trades": ({}, 1),
    "rslad": ({}, 1),
    "saad": ({"igdm_ramp_epochs": 3}, 3),
    "adaad+igdm": ({"igdm_ramp_epochs": 2}, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURES)
def test_captured_steps_train_as_eager_ones(name):
    options, num_captures = CAPTURES[name]
    graph, eager = both(methods.get(name, **options))
    updates = []
    graph.optimizer.register_step_post_hook(lambda *_: updates.append("by Python"))
    assert_same_training(graph, eager)
    assert Recorded.num_captures == num_captures
    assert len(updates) == num_captures * (NUM_WARM_UP_RUNS + 1)  # the rest are replays


def test_a_running_average_is_part_of_the_captured_step(monkeypatch):
    by_python = []
    accumulate = AveragedWeights.accumulate
    monkeypatch.setattr(
        AveragedWeights, "accumulate", lambda self, network: by_python.append(self) or accumulate(self, network)
    )
    graph, eager = both("adaad", ema_decay=0.75)
    expected = AveragedModel(eager.student, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    for step in range(NUM_STEPS):
        graph.step(step)
        eager.step(step)
        expected.update_parameters(eager.student)
        for averaged in (graph.averaged, eager.averaged):
            for name, tensor in averaged.module.state_dict().items():
                wanted = expected.module if tensor.is_floating_point() else eager.student
                assert torch.equal(tensor, wanted.state_dict()[name]), (step, name)
    assert graph.averaged.num_averaged == NUM_STEPS
    assert by_python.count(eager.averaged) == NUM_STEPS
    # The first step has nothing to average with, and is captured by itself; the rest are replays.
    assert Recorded.num_captures == 2
    assert by_python.count(graph.averaged) == 2 * (NUM_WARM_UP_RUNS + 1)


def test_captured_steps_take_label_distributions(monkeypatch):
    hard = images_and_labels

    def soft(batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        x_natural, labels = hard(batch_size, seed)
        return x_natural, 0.8 * torch.eye(NUM_CLASSES)[labels] + 0.2 / NUM_CLASSES

    graph, eager = both("pgd-at")
    monkeypatch.setitem(globals(), "images_and_labels", soft)
    assert_same_training(graph, eager)
    assert Recorded.num_captures == 1


def test_a_smaller_batch_runs_uncaptured_with_one_warning():
    with pytest.warns(UserWarning, match=r"called with \[5, 3, 8, 8\].*drop the last") as warned:
        assert_same_training(*both("adaad"), last_batch_size=5)
    assert len(warned) == 1
    assert Recorded.num_captures == 1


@pytest.mark.slow
def test_a_smaller_batch_with_other_values_does_not_become_the_captured_one():
    """The interval changes before step 2, the last batch of an epoch; the smaller batch must use it too."""

    def change_interval(training: Training, step: int) -> None:
        if step == 2:
            training.distiller.maximizer.query_interval = 1

    graph, eager = both("adaad", teacher_policy=TeacherPolicy(kind="refreshed", every=2))
    with pytest.warns(UserWarning, match=r"captured for inputs \[16,.*drop the last") as warned:
        assert_same_training(graph, eager, last_batch_size=5, between=change_interval)
    assert all("captured for inputs [16," in str(warning.message) for warning in warned)
    assert Recorded.num_captures == 2


@pytest.mark.slow
def test_awp_is_captured_with_and_without():
    assert_same_training(*both("adaad", awp_gamma=0.01, awp_begin=2))
    assert Recorded.num_captures == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refreshed", "directional", "linearized"])
def test_replays_sum_the_error_of_the_teacher_policy(kind):
    graph, eager = both("adaad", teacher_policy=TeacherPolicy(kind=kind, every=2))
    assert_same_training(graph, eager)
    error = eager.distiller.read_teacher_error()
    assert graph.distiller.read_teacher_error() == error
    assert error.logit_error > 0
    assert graph.distiller.read_teacher_error() is None
    graph.step(0)
    assert graph.distiller.read_teacher_error() is not None


@pytest.mark.slow
def test_a_new_adaptive_interval_is_captured_again():
    graph, eager = both("adaad", teacher_policy=TeacherPolicy(kind="refreshed"))
    for training in (graph, eager):
        training.distiller.maximizer.query_interval = 2
    assert_same_training(graph, eager)

    def query_always(training: Training, step: int) -> None:
        training.distiller.maximizer.query_interval = 1

    captures = Recorded.num_captures
    assert_same_training(graph, eager, between=query_always)
    assert Recorded.num_captures == captures + 1


class ForgetsTheRate(CapturableOptimizer):
    def refresh(self) -> None:
        pass


def test_a_frozen_learning_rate_is_detected(monkeypatch):
    """Shows that the comparison can fail."""
    monkeypatch.setattr(graph_step, "CapturableOptimizer", ForgetsTheRate)
    with pytest.raises(AssertionError, match="step 2"):
        assert_same_training(*both("pgd-at"))


@pytest.mark.slow
def test_the_epoch_is_frozen_only_if_a_row_denies_to_read_it():
    def loss(batch, options):
        return pgd_at_loss(batch, options) * (batch.epoch + 1)

    row = methods.Method(
        name="rising", objective="objectives.CROSS_ENTROPY", start="uniform", loss=loss, needs_teacher=False
    )
    assert_same_training(*both(row))
    assert Recorded.num_captures == 4
    with pytest.raises(AssertionError, match="step 3"):
        assert_same_training(*both(replace(row, epoch_keys=())))


def load_an_optimizer(training: Training, step: int) -> None:
    if step == 7:
        training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))


def freeze_batch_norm(training: Training, step: int) -> None:
    if step == 7:
        training.student[1].eval()


def fix_a_weight(training: Training, step: int) -> None:
    if step == 7:
        training.student[3].weight.requires_grad_(False)
        training.student[3].weight.grad = None


def change_momentum(training: Training, step: int) -> None:
    training.optimizer.param_groups[0]["momentum"] = 0.5 if step >= 7 else 0.9


def other_generator(training: Training, step: int) -> None:
    if step == 7:
        training.generator = torch.Generator().manual_seed(1)


def replace_a_teacher_weight(training: Training, step: int) -> None:
    if step == 7:
        training.teacher[0].weight = nn.Parameter(0.5 * training.teacher[0].weight.detach())


@pytest.mark.slow
@pytest.mark.parametrize(
    "between",
    [
        load_an_optimizer,
        freeze_batch_norm,
        fix_a_weight,
        change_momentum,
        other_generator,
        replace_a_teacher_weight,
    ],
)
def test_a_change_that_a_graph_would_freeze_is_captured_again(between):
    assert_same_training(*both("adaad"), between=between)
    assert Recorded.num_captures == 2


def write_weights(training: Training, step: int) -> None:
    if step == 7:
        with torch.no_grad():
            training.student[0].weight.mul_(0.9)
            training.teacher[0].weight.mul_(0.9)


def leave_in_eval_mode(training: Training, step: int) -> None:
    training.student.eval()


def keep_statistics(training: Training, step: int) -> None:
    """Only the fused optimiser changes the student then, which torch's version counters do not show."""
    for index in (1, 4):
        training.student[index].eval()


@pytest.mark.parametrize("between", [write_weights, leave_in_eval_mode, keep_statistics])
def test_a_change_in_place_needs_no_capture(between):
    assert_same_training(*both("adaad"), between=between)
    assert Recorded.num_captures == 1


def test_a_step_in_micro_batches_is_captured():
    assert_same_training(*both("adaad", micro_batch=6))
    assert Recorded.num_captures == 1


def fp16_scales(training: Training) -> list[float]:
    """Trains in fp16 from a scale at which the first updates are infinite; returns the scale after each step."""
    training.distiller.scaler.load_state_dict(training.distiller.scaler.state_dict() | {"scale": 2.0**26})
    scales = []
    for step in range(NUM_STEPS):
        training.step(step)
        scales.append(training.distiller.scaler.get_scale())
    return scales


def test_a_step_in_fp16_is_captured_with_the_updates_that_it_skips():
    graph, eager = both("adaad", precision=PrecisionConfig(student="fp16", teacher="fp32"))
    scales = fp16_scales(graph)
    assert scales == fp16_scales(eager)
    assert scales[0] > scales[-1]  # updates were skipped
    assert_same_students(graph, eager)
    assert Recorded.num_captures == 1


def test_a_step_that_a_graph_cannot_hold_captures_its_inner_loop_with_a_warning():
    options = {"make_optimizer": partial(sgd, fused=False, foreach=True)}
    message = "SGD without fused=True reads its learning rate"
    with pytest.warns(UserWarning, match=f"captures the inner loop and not the whole step: {message}") as warned:
        graph = Training("graph", "adaad", **options)
    eager = Training("eager", "adaad", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_training(graph, eager)
    assert len(warned) == 1
    assert Recorded.num_captures == 1


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"grad_clip": 0.05}], ids=str)
def test_captured_steps_train_by_adamw_and_clipped_as_eager_ones(settings):
    optim = OptimConfig(epochs=1, **settings)
    graph, eager = both("adaad", lambda network: make_optimizer(network, optim), grad_clip=optim.grad_clip)
    assert_same_training(graph, eager)
    assert Recorded.num_captures == 1


def test_a_student_in_fp16_with_an_unfused_optimizer_captures_its_inner_loop():
    make_optimizer = partial(torch.optim.AdamW, capturable=True)
    with pytest.warns(UserWarning, match="not the whole step: in fp16 the host decides about each update of AdamW"):
        Training("graph", "adaad", lambda network: make_optimizer(network.parameters()), precision="fp16")


def test_student_and_teacher_of_an_uncompiled_step_run_on_two_streams(monkeypatch):
    """Counts forward and backward pairs; tests/gpu checks the streams themselves."""
    pairs = []

    def run_on_two_streams(device, on_current, on_side):
        pairs.append((on_current.func, on_side.func))
        return on_current(), on_side()

    monkeypatch.setattr(inner_search, "run_on_two_streams", run_on_two_streams)
    student, teacher = tiny_network(1), tiny_network(2)
    x_natural, labels = images_and_labels()
    maximizer = partial(inner_maximizer.InnerMaximizer, student, teacher, inner=INNER, mode="eager")
    two, one = maximizer(method="adaad"), maximizer(method="pgd-at")
    two(x_natural)
    assert len(pairs) == 2 * INNER.num_steps
    one(x_natural, labels)
    assert len(pairs) == 2 * INNER.num_steps
    maximizer(mode="compiled", compile_options={"backend": "aot_eager"})(x_natural)
    assert len(pairs) == 2 * INNER.num_steps


def break_the_teacher(training: Training, step: int) -> None:
    """Makes one weight of the teacher infinite in steps 2, 7 and 8."""
    weight = training.teacher[-1].weight
    if step == 0:
        training.finite_weight = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = torch.inf if step in (2, 7, 8) else training.finite_weight


@pytest.mark.parametrize("options", [{}, {"awp_gamma": 0.01}, {"teacher_policy": TeacherPolicy(kind="refreshed")}])
def test_replays_skip_the_updates_that_eager_steps_skip(options):
    graph, eager = both("adaad", on_nonfinite="skip", **options)
    students = []
    for step in range(12):
        for training in (graph, eager):
            break_the_teacher(training, step)
            training.step(step)
        assert_same_students(graph, eager)
        assert torch.equal(graph.distiller._teacher_error.sums, eager.distiller._teacher_error.sums)
        students.append(copy.deepcopy(graph.student.state_dict()))
    assert Recorded.num_captures == 1
    for step in range(1, 12):
        same = [torch.equal(tensor, students[step - 1][name]) for name, tensor in students[step].items()]
        assert all(same) if step in (2, 7, 8) else not any(same), step
    assert [training.distiller.read_skipped() for training in (graph, eager)] == [3, 3]


@pytest.mark.parametrize("first_step", [0, 2])
def test_replays_find_what_eager_steps_find(first_step):
    graph, eager = both("adaad")
    for step in range(first_step, 5):
        for training in (graph, eager):
            training.distiller.check_finite()
            if step == 4:
                with torch.no_grad():
                    training.teacher[-1].weight[0, 0] = torch.inf
            training.step(step)
    for training in (graph, eager):
        with pytest.raises(ValueError, match=f"^step {5 - first_step}: NaN or inf in the teacher's logits while"):
            training.distiller.check_finite()
    assert torch.equal(graph.distiller._nonfinite.counts, eager.distiller._nonfinite.counts)
