"""Self-check of the operations: they pass, and every planted fault is detected."""

import pytest
import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.training.self_check import ops as self_check_ops
from fastadaad.training.self_check.ops import CASES, difference, failing_cases, reference


@pytest.mark.parametrize("op", CASES)
def test_the_operations_of_this_machine_pass(op):
    assert failing_cases(op, "cpu") == []


def test_every_operation_has_cases():
    assert {op.removesuffix("_") for op in CASES} == {row.op for row in ops.report()}


def changed(op: str, change):
    """Returns the operation, followed by change(arguments, *outputs); the output of an in-place one is its argument."""

    def run(*arguments):
        originals = tuple(argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments)
        outputs = getattr(torch.ops.fastadaad, op)(*arguments)
        change(
            originals, *((arguments[0],) if outputs is None else (outputs,) if isinstance(outputs, Tensor) else outputs)
        )
        return outputs

    return run


def off_in_last_class(arguments, kl, grad_student_logits, grad_teacher_logits):
    grad_student_logits[:, -1] += 1e-2


def off_in_one_of_many_classes(arguments, kl, grad_student_logits, grad_teacher_logits):
    if kl.dtype == grad_teacher_logits.dtype:
        grad_teacher_logits[:, 777:778] *= 1.01


def wrong_for_one_label(arguments, loss, grad_student_logits):
    grad_student_logits[arguments[1] == 9, 9:10] += 1


def nan_in_the_next_sample(arguments, *outputs):
    nan = arguments[0].isnan().flatten(1).any(1)
    outputs[0].masked_fill_(nan.roll(1).reshape(-1, *[1] * (outputs[0].dim() - 1)), torch.nan)


def nan_swallowed(arguments, *outputs):
    for output in outputs:
        output.nan_to_num_(nan=0.0)


def masked_class_is_nan(arguments, *outputs):
    outputs[1].masked_fill_(arguments[0] == -torch.inf, torch.nan)


def rounded_to_bfloat16(arguments, *outputs):
    if outputs[1].dtype == torch.float16:
        outputs[1].copy_(outputs[1].bfloat16())


def steps_where_the_gradient_is_zero(arguments, x_adv):
    x_adv += 1e-4 * (arguments[2] == 0)


def leaves_border(arguments, x_adv):
    x_adv += 1e-3 * (x_adv == 1)


def last_pixel_untouched(arguments, x_adv):
    if x_adv.numel() % 2:
        x_adv[-1, -1, -1, -1] = arguments[0][-1, -1, -1, -1]


def norm_of_whole_batch(arguments, x_adv):
    if len(x_adv) > 1:
        x_adv.copy_(arguments[0])
        flat = tuple(tensor.reshape(1, -1).clone() for tensor in (x_adv, *arguments[1:3]))
        torch.ops.fastadaad.l2_step_(*flat, *arguments[3:])
        x_adv.copy_(flat[0].reshape(x_adv.shape))


def one_of_255_levels(arguments, x_natural):
    x_natural += 0.002 * (x_natural == 200 / 255)


def mirrored_about_another_column(arguments, x_natural):
    x_natural[arguments[4]] = x_natural[arguments[4]].roll(1, dims=3)


def darker_below_the_cutout(arguments, x_natural):
    if len(arguments) > 6 and arguments[6]:
        for image, (row, column) in zip(x_natural, arguments[7].tolist(), strict=True):
            image[:, row - arguments[6] // 2 + arguments[6] :, column] *= 0.5


FAULTS = [
    ("kl_grad", off_in_last_class),
    ("kl_grad", off_in_one_of_many_classes),
    ("kl_grad", nan_in_the_next_sample),
    ("kl_grad", nan_swallowed),
    ("kl_grad", masked_class_is_nan),
    ("kl_grad", rounded_to_bfloat16),
    ("cross_entropy_grad", wrong_for_one_label),
    ("cross_entropy_grad", nan_in_the_next_sample),
    ("cross_entropy_grad", masked_class_is_nan),
    ("cross_entropy_grad", rounded_to_bfloat16),
    ("linf_step_", steps_where_the_gradient_is_zero),
    ("linf_step_", nan_in_the_next_sample),
    ("linf_step_", nan_swallowed),
    ("linf_step_", leaves_border),
    ("linf_step_", last_pixel_untouched),
    ("l2_step_", norm_of_whole_batch),
    ("l2_step_", nan_in_the_next_sample),
    ("l2_step_", nan_swallowed),
    ("random_start_", leaves_border),
    ("random_start_", last_pixel_untouched),
    ("random_start_", nan_in_the_next_sample),
    ("crop_flip", one_of_255_levels),
    ("crop_flip", mirrored_about_another_column),
    ("crop_flip", darker_below_the_cutout),
]


@pytest.mark.parametrize(("op", "fault"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_fault_is_detected(op, fault):
    failing = failing_cases(op, "cpu", changed(op, fault))
    assert failing
    assert all("\n" not in line and ": " in line for line in failing)


@pytest.mark.parametrize("classes", self_check_ops.NUM_CLASSES[1:])
def test_an_error_in_any_class_is_detected(classes):
    """A factor of 1.01 in one class of one gradient, for each class."""
    cases = dict(CASES["kl_grad"](torch.Generator()))
    arguments = cases[f"every class in turn [37, {classes}] torch.float32"]
    expected = reference("kl_grad")(*arguments)
    for output in range(1, 3):
        for index in range(classes):
            wrong = expected[output].clone()
            wrong[:, index] *= 1.01
            assert difference(wrong, expected[output]), (output, index)


@pytest.mark.parametrize("op", CASES)
def test_a_kernel_that_reads_strided_memory_as_if_it_were_contiguous_is_detected(op):
    def run(*arguments):
        if op == "crop_flip":
            images = arguments[0]
            plain = images.as_strided(images.shape, torch.empty(images.shape).stride())
            return reference(op)(plain, *arguments[1:])
        index = 2 if op.endswith("_") else 0
        plain = arguments[index].as_strided(arguments[index].shape, torch.empty(arguments[index].shape).stride())
        return reference(op)(*arguments[:index], plain, *arguments[index + 1 :])

    assert failing_cases(op, "cpu", run)


def test_a_kernel_that_computes_in_half_precision_is_detected():
    def run(student_logits, labels):
        probs = student_logits.softmax(1)
        loss = torch.nn.functional.cross_entropy(student_logits, labels, reduction="none").float()
        return loss, probs - torch.nn.functional.one_hot(labels, probs.shape[1]).to(probs.dtype)

    failing = failing_cases("cross_entropy_grad", "cpu", run)
    assert any("float16" in line for line in failing)
    assert any("bfloat16" in line for line in failing)


def test_a_kernel_that_raises_has_failed_in_each_case_with_its_message():
    def run(*arguments):
        raise RuntimeError("no kernel image\nis available")

    failing = failing_cases("crop_flip", "cpu", run)
    assert len(failing) == len(list(CASES["crop_flip"](torch.Generator())))
    assert all("no kernel image is available" in line for line in failing)


@pytest.mark.parametrize(
    ("output", "expected", "differs"),
    [
        ([1.0, torch.nan], [1.0, torch.nan], False),
        ([torch.nan, 1.0], [1.0, torch.nan], True),
        ([1.0, 0.0], [1.0, torch.nan], True),
        ([torch.inf, 0.0], [torch.inf, 0.0], False),
        ([-torch.inf, 0.0], [torch.inf, 0.0], True),
        ([1e30, 0.0], [torch.inf, 0.0], True),
        ([1.0, 1e-6], [1.0, 0.0], False),
        ([1.0, 1e-4], [1.0, 0.0], True),
        ([1.0], [1.0, 0.0], True),
        ([], [], False),
    ],
)
def test_difference(output, expected, differs):
    assert bool(difference(torch.tensor(output), torch.tensor(expected))) == differs


def test_difference_names_place_and_size():
    expected = torch.zeros(3, 4)
    output = expected.clone()
    output[1, 2], output[2, 2] = 0.5, 0.25
    assert difference(output, expected) == "0.5 instead of 0 at [1, 2], max error 0.5, 2 of 12 values wrong"
    assert "torch.float16 instead of" in difference(output.half(), expected)
