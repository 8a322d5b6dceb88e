"""NaN and inf planted in each tensor of a step: detected with the right step and name, without a host sync."""

from dataclasses import replace

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from recorded_graph import assert_replayable
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig, ThreatModel, methods
from fastadaad.config import PrecisionConfig
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.training import nonfinite
from fastadaad.training.nonfinite import LIKELY_CAUSES, TENSORS, NonFiniteCounters, NonFiniteError, find_nonfinite

INNER = InnerConfig(num_steps=2, start="natural")
CPU = torch.device("cpu")
MODES = {"eager": {}, "compiled": {"mode": "compiled", "compile_options": {"backend": "aot_eager"}}}
ALL_METHODS = [*methods.METHODS, "adaad+igdm"]
BAD_STEP = 3


def distiller(student: nn.Module, teacher: nn.Module | None, **settings) -> Distiller:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, fused=True)
    return Distiller(student, teacher, **{"inner": INNER, "optimizer": optimizer} | settings)


def loss_with(base: str, addition) -> methods.Method:
    """Returns the row `base` with addition(batch) added to its loss in epoch BAD_STEP."""
    row = methods.get(base).resolved()

    def loss(batch, options):
        value = row.loss(batch, options)
        return value + addition(batch) if batch.epoch == BAD_STEP else value

    return replace(row, loss=loss, epoch_keys=None)


def infinite(batch) -> Tensor:
    return torch.log(0 * batch.x_natural.sum()).neg()


def of_infinite_slope(batch) -> Tensor:
    """Returns 0 through a root with an infinite derivative."""
    return (0 * batch.student_logits_adv).abs().sqrt().sum()


@torch.no_grad()
def write(value: float, tensor: Tensor) -> None:
    tensor.view(-1)[1] = value


# Change before step BAD_STEP, method, and beginning of the error.
PLANTED = {
    "image": (lambda batch, student, teacher: write(torch.nan, batch[0]), "adaad", "x_natural: the data"),
    "infinite image": (lambda batch, student, teacher: write(-torch.inf, batch[0]), "trades", "x_natural: the data"),
    "teacher": (
        lambda batch, student, teacher: write(torch.inf, teacher[-1].weight),
        "adaad",
        "the teacher's logits while x_natural and the student's logits are finite: the teacher's weights or precision",
    ),
    "student": (
        lambda batch, student, teacher: write(torch.nan, student[0].weight),
        "adaad",
        "the student's logits while x_natural is finite: its weights have diverged",
    ),
    "loss": (None, loss_with("adaad", infinite), "the loss while x_natural and all logits are finite"),
    "gradients": (None, loss_with("pgd-at", of_infinite_slope), "the gradients while the loss is finite"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_value_is_found_at_its_step_and_named(what, mode):
    torch._dynamo.reset()
    plant, method, expected = PLANTED[what]
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, method=method, **MODES[mode])
    for step in range(1, BAD_STEP + 3):
        batch = images_and_labels(seed=step)
        if plant is not None and step == BAD_STEP:
            plant(batch, student, teacher)
        training.step(*batch, epoch=step)
        if step < BAD_STEP:
            training.check_finite()
    with pytest.raises(NonFiniteError, match=f"^step {BAD_STEP}: NaN or inf in {expected}") as raised:
        training.check_finite()
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert training.read_skipped() == 0


@pytest.mark.filterwarnings("ignore:.*batch-norm was not folded")  # folding compares logits, which are NaN
@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("name", ALL_METHODS)
def test_a_non_finite_network_spoils_the_update_of_every_method(name, which):
    """Although x_adv stays finite in the search, as the sign of a NaN gradient is 0."""
    student, teacher = student_and_teacher()
    write(torch.nan, {"student": student, "teacher": teacher}[which][0].weight)
    training = distiller(student, teacher, method=name, on_nonfinite="skip")
    result = training.step(*images_and_labels(), epoch=1000)
    assert result.x_adv.isfinite().all()
    assert training.read_skipped() == (which == "student" or training.method.needs_teacher)


@pytest.mark.filterwarnings("ignore:.*batch-norm was not folded")
def test_a_non_finite_l2_search_makes_both_networks_non_finite():
    student, teacher = student_and_teacher()
    write(torch.nan, student[0].weight)
    inner = InnerConfig(threat_model=ThreatModel(norm="l2", epsilon=0.5), step_size=0.1, num_steps=2)
    training = distiller(student, teacher, inner=inner)
    training.step(*images_and_labels())
    with pytest.raises(NonFiniteError, match="step 1: NaN or inf in the student's and the teacher's logits while"):
        training.check_finite()


def test_an_image_is_found_in_the_last_micro_batch():
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, micro_batch=4)
    x_natural, labels = images_and_labels(10)
    write(torch.nan, x_natural[9])
    training.step(x_natural, labels)
    with pytest.raises(NonFiniteError, match="step 1: NaN or inf in x_natural"):
        training.check_finite()


def test_classes_that_the_teacher_masks_are_fine():
    student, teacher = student_and_teacher()
    write(-torch.inf, teacher[-1].bias)
    training = distiller(student, teacher)
    assert training.step(*images_and_labels()).loss.isfinite()
    training.check_finite()


def test_the_finding_of_awps_first_pass_is_the_cause_and_not_the_one_of_its_second():
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, method=loss_with("adaad", of_infinite_slope), awp_gamma=0.01)
    training.step(*images_and_labels(), epoch=BAD_STEP)
    with pytest.raises(NonFiniteError, match="step 1: NaN or inf in the gradients while the loss is finite"):
        training.check_finite()


def test_a_gradient_of_awps_first_pass_counts_even_if_the_second_is_finite():
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, awp_gamma=0.01)
    passes = []

    def spoil_the_first(gradient: Tensor) -> Tensor:
        passes.append(gradient)
        return gradient * (torch.inf if len(passes) == 1 else 1)

    student[-1].bias.register_hook(spoil_the_first)  # biases are not perturbed
    assert training.step(*images_and_labels()).loss.isfinite()
    assert len(passes) == 2
    with pytest.raises(NonFiniteError, match="step 1: NaN or inf in the gradients"):
        training.check_finite()


def test_infinite_gradients_are_usual_in_fp16_and_an_infinite_loss_is_not():
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, precision=PrecisionConfig(student="fp16"))
    hook = student[-1].weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    training.step(*images_and_labels())
    training.check_finite()
    hook.remove()
    x_natural, labels = images_and_labels()
    write(torch.nan, x_natural)
    training.step(x_natural, labels)
    with pytest.raises(NonFiniteError, match="step 2: NaN or inf in x_natural"):
        training.check_finite()


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_gradients_that_are_infinite_at_any_scale_of_fp16_end_it(on_nonfinite):
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, precision=PrecisionConfig(student="fp16"), on_nonfinite=on_nonfinite)
    student[-1].weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    batch = images_and_labels()
    for _ in range(30):
        training.step(*batch)
    training.check_finite()  # from 2^16 to 2^-14
    training.step(*batch)
    with pytest.raises(NonFiniteError, match=r"fp16's scale has fallen to 3e-05.*; set precision\.student=bf16"):
        training.check_finite()


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("awp_gamma", [0.0, 0.01])
def test_a_step_does_not_make_the_host_wait(on_nonfinite, awp_gamma):
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, on_nonfinite=on_nonfinite, awp_gamma=awp_gamma)
    batch = images_and_labels()
    training.step(*batch)
    write(torch.nan, batch[0])
    with HostSyncWatch() as watch:
        training.step(*batch)
    assert watch.seen == []
    assert training.read_skipped() == (on_nonfinite == "skip")


def counters_after(*found: tuple[str, ...], on_nonfinite="stop") -> NonFiniteCounters:
    """Returns the counters after steps with these findings."""
    counters = NonFiniteCounters(on_nonfinite, CPU)
    for names in found:
        counters.add(torch.tensor([name in names for name in TENSORS]))
    return counters


ALL_BUT_THE_IMAGES = TENSORS[1:]


@pytest.mark.parametrize(
    ("found", "step", "cause"),
    [
        ([(), TENSORS], 2, "x_natural"),
        ([("loss", "gradients"), TENSORS], 1, "the loss while"),
        ([(), (), ALL_BUT_THE_IMAGES], 3, "the student's and the teacher's logits"),
        ([("teacher_logits", "loss", "gradients"), ALL_BUT_THE_IMAGES], 1, "the teacher's logits"),
        ([("student_logits", "loss", "gradients"), TENSORS], 1, "the student's logits"),
        ([("gradients",), ("student_logits", "loss", "gradients")], 1, "the gradients"),
    ],
)
def test_the_cause_is_what_was_found_earliest(found, step, cause):
    with pytest.raises(NonFiniteError, match=f"^step {step}: NaN or inf in {cause}"):
        counters_after(*found).check(ProcessGroup())


def test_every_cause_has_a_remedy_and_every_tensor_a_cause():
    assert all(text.count(";") == 1 and "\n" not in text for _, text in LIKELY_CAUSES)
    assert {names[0] for names, _ in LIKELY_CAUSES} == set(TENSORS)


def test_a_finite_step_clears_the_findings_before_it():
    bad = ("loss", "gradients")
    counters = counters_after((), bad, bad, (), bad, on_nonfinite="skip")
    counters.check(ProcessGroup())
    assert counters.read_skipped() == 3
    assert counters.counts[:3].tolist() == [5, 3, 1]


def test_too_many_in_a_row_stop_the_run_and_the_error_describes_this_row(monkeypatch):
    monkeypatch.setattr(nonfinite, "MAX_SKIPPED_IN_A_ROW", 3)
    bad, teacher = ("loss",), ("teacher_logits", "loss", "gradients")
    counters = counters_after(bad, bad, (), teacher, teacher, on_nonfinite="skip")
    counters.check(ProcessGroup())
    counters.add(torch.tensor([name in teacher for name in TENSORS]))
    message = "^3 updates in a row were skipped, since step 4: NaN or inf in the teacher's logits while"
    with pytest.raises(NonFiniteError, match=message):
        counters.check(ProcessGroup())


def test_an_unknown_policy_is_refused():
    student, teacher = student_and_teacher()
    with pytest.raises(ValueError, match="on_nonfinite is 'ignore': choose stop or skip"):
        distiller(student, teacher, on_nonfinite="ignore")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(len(TENSORS)))
def test_each_value_is_found_in_each_tensor_alone(place, value):
    x_natural, loss = torch.rand(2, 3, 4, 4), torch.rand(())
    logits = {"student_logits_adv": torch.randn(2, 5), "teacher_logits_natural": torch.randn(2, 5)}
    gradients = [torch.randn(3, 3), torch.randn(7)]
    tensors = (x_natural, *logits.values(), loss, gradients[1])
    tensors[place].view(-1)[-1] = value
    found = find_nonfinite([torch.rand(2, 3, 4, 4), x_natural], [logits], loss, gradients)
    masks_a_class = value == -torch.inf and "logits" in TENSORS[place]
    assert found.tolist() == [index == place and not masks_a_class for index in range(len(TENSORS))]


def test_large_numbers_and_empty_batches_are_finite():
    logits = {"student_logits_adv": torch.empty(0, 5)}
    found = find_nonfinite([torch.empty(0, 3, 4, 4)], [logits], torch.tensor(3e38), [torch.full((4,), 1e18)])
    assert not found.any()


def test_the_counters_can_be_captured():
    counters = NonFiniteCounters("stop", CPU)
    x_natural, loss = torch.rand(2, 3, 4, 4), torch.rand(())
    logits = {"student_logits_adv": torch.randn(2, 5), "teacher_logits_adv": torch.randn(2, 5)}
    gradients = [torch.randn(3, 3), torch.randn(7)]

    def count() -> Tensor:
        return counters.add(find_nonfinite([x_natural], [logits], loss, gradients))

    static = [x_natural, loss, *logits.values(), *gradients, counters.counts]
    tensors = (gradients[0], loss, logits["teacher_logits_adv"], x_natural)
    changes = [lambda tensor=tensor: tensor.view(-1)[:1].fill_(torch.inf) for tensor in tensors]
    assert_replayable(count, static, changes=changes)
