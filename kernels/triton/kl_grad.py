"""kl and its two logit gradients.

With p = softmax(s / temperature) of the student and q = softmax(t / temperature) of the teacher, for each row:

    kl         = sum_j q_j (log q_j - log p_j), by terms that do not cancel (kl_terms of fastadaad/ops/kl_grad.py)
    d kl / d s = (p - q) / temperature
    d kl / d t = q (log q - log p - kl) / temperature

A class that only the student masks (s = -inf, q > 0) makes the returned kl infinite. In d kl / d t, kl lacks the term
of this class, and its log-ratio is 0.
"""

import torch
import triton
import triton.language as tl

from .softmax import MAX_BLOCK_CLASSES, log_softmax, raise_peak, tile_for


@triton.jit
def _difference(teacher_log_probs, student_log_probs):
    """Difference of the log-probabilities, 0 for a class that either network masks; != (not >) lets a NaN through."""
    shared = (student_log_probs != -float("inf")) & (teacher_log_probs != -float("inf"))
    return tl.where(shared, teacher_log_probs - student_log_probs, 0.0)


@triton.jit
def _kl_terms(student_probs, teacher_probs, log_ratio):
    """Terms whose sum is kl, with p = 0 and log_ratio = 0 of a class that the student masks."""
    # d + e^-d - 1 for |d| < 0.25 by its series, which does not cancel.
    series = -1.0 / 5040
    series = series * log_ratio + 1.0 / 720
    series = series * log_ratio - 1.0 / 120
    series = series * log_ratio + 1.0 / 24
    series = series * log_ratio - 1.0 / 6
    series = series * log_ratio + 0.5
    near = (tl.abs(log_ratio) < 0.25) & (student_probs > 0) & (teacher_probs > 0)
    far_term = teacher_probs * log_ratio + (student_probs - teacher_probs)
    return tl.where(near, teacher_probs * (log_ratio * log_ratio * series), far_term)


@triton.jit
def _kl_grad_kernel(
    student_logits_ptr,  # [B, N], any strides
    teacher_logits_ptr,  # [B, N], any strides
    kl_ptr,  # [B] fp32
    grad_student_logits_ptr,  # [B, N] contiguous
    grad_teacher_logits_ptr,  # [B, N] contiguous
    num_rows,
    num_classes,
    student_row_stride,
    student_class_stride,
    teacher_row_stride,
    teacher_class_stride,
    inverse_temperature,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Each program handles BLOCK_ROWS whole rows; every input is read once and every output written once."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    classes = tl.arange(0, BLOCK_CLASSES)[None, :].to(tl.int64)
    inside = (rows < num_rows) & (classes < num_classes)
    student_ptrs = student_logits_ptr + rows * student_row_stride + classes * student_class_stride
    teacher_ptrs = teacher_logits_ptr + rows * teacher_row_stride + classes * teacher_class_stride
    student_logits = tl.load(student_ptrs, mask=inside, other=-float("inf")).to(tl.float32)
    teacher_logits = tl.load(teacher_ptrs, mask=inside, other=-float("inf")).to(tl.float32)

    student_log_probs = log_softmax(student_logits, inverse_temperature)
    teacher_log_probs = log_softmax(teacher_logits, inverse_temperature)
    student_probs = tl.exp(student_log_probs)
    teacher_probs = tl.exp(teacher_log_probs)

    log_ratio = _difference(teacher_log_probs, student_log_probs)
    mean_log_ratio = tl.sum(teacher_probs * log_ratio, axis=1, keep_dims=True)
    unmasked_probs = tl.where(student_log_probs == -float("inf"), 0.0, student_probs)
    kl = tl.sum(_kl_terms(unmasked_probs, teacher_probs, log_ratio), axis=1, keep_dims=True)
    lost = tl.sum(tl.where(student_log_probs == -float("inf"), teacher_probs, 0.0), axis=1, keep_dims=True)

    grads = rows * num_classes + classes
    grad_student_logits = (student_probs - teacher_probs) * inverse_temperature
    grad_teacher_logits = teacher_probs * (log_ratio - mean_log_ratio) * inverse_temperature
    tl.store(grad_student_logits_ptr + grads, grad_student_logits, mask=inside)
    tl.store(grad_teacher_logits_ptr + grads, grad_teacher_logits, mask=inside)
    tl.store(kl_ptr + rows, tl.where(lost > 0, float("inf"), kl), mask=rows < num_rows)


@triton.jit
def _kl_grad_looped_kernel(
    student_logits_ptr,  # [B, N], any strides
    teacher_logits_ptr,  # [B, N], any strides
    kl_ptr,  # [B] fp32
    grad_student_logits_ptr,  # [B, N] contiguous
    grad_teacher_logits_ptr,  # [B, N] contiguous
    num_classes,
    student_row_stride,
    student_class_stride,
    teacher_row_stride,
    teacher_class_stride,
    inverse_temperature,
    BLOCK_CLASSES: tl.constexpr,
):
    """Each program handles one row in two passes over its blocks (statistics, gradients); each input is read twice.

    The first pass keeps sums relative to the largest logits so far and rescales them when a larger logit comes (online
    softmax): sum e^t over all classes, sum e^t over the classes that only the student masks, and sum e^t (t - s) over
    the other classes.
    """
    row = tl.program_id(0).to(tl.int64)
    student_logits_ptr += row * student_row_stride
    teacher_logits_ptr += row * teacher_row_stride
    student_peak = -3.0e38  # finite, so that a block of masked classes does not make NaN
    teacher_peak = -3.0e38
    student_sum = 0.0
    teacher_sum = 0.0
    lost_sum = 0.0
    gap_sum = 0.0
    for start in range(0, num_classes, BLOCK_CLASSES):
        classes = start + tl.arange(0, BLOCK_CLASSES).to(tl.int64)
        inside = classes < num_classes
        student = tl.load(student_logits_ptr + classes * student_class_stride, mask=inside, other=-float("inf"))
        teacher = tl.load(teacher_logits_ptr + classes * teacher_class_stride, mask=inside, other=-float("inf"))
        student_peak, student_rise, student_shifted = raise_peak(
            student_peak, student.to(tl.float32), inverse_temperature
        )
        teacher_peak, teacher_rise, teacher_shifted = raise_peak(
            teacher_peak, teacher.to(tl.float32), inverse_temperature
        )

        weight = tl.exp(teacher_shifted)
        decay = tl.exp(-teacher_rise)
        kept_sum = teacher_sum - lost_sum
        gap_sum += tl.where(kept_sum > 0, kept_sum * (student_rise - teacher_rise), 0.0)
        gap_sum = gap_sum * decay + tl.sum(weight * _difference(teacher_shifted, student_shifted))
        lost_sum = lost_sum * decay + tl.sum(tl.where(student_shifted == -float("inf"), weight, 0.0))
        teacher_sum = teacher_sum * decay + tl.sum(weight)
        student_sum = student_sum * tl.exp(-student_rise) + tl.sum(tl.exp(student_shifted))

    student_log_sum = tl.log(student_sum)
    teacher_log_sum = tl.log(teacher_sum)
    mean_log_ratio = (gap_sum + (teacher_sum - lost_sum) * (student_log_sum - teacher_log_sum)) / teacher_sum
    kl = 0.0
    for start in range(0, num_classes, BLOCK_CLASSES):
        classes = start + tl.arange(0, BLOCK_CLASSES).to(tl.int64)
        inside = classes < num_classes
        student = tl.load(student_logits_ptr + classes * student_class_stride, mask=inside, other=-float("inf"))
        teacher = tl.load(teacher_logits_ptr + classes * teacher_class_stride, mask=inside, other=-float("inf"))
        student_log_probs = (student.to(tl.float32) - student_peak) * inverse_temperature - student_log_sum
        teacher_log_probs = (teacher.to(tl.float32) - teacher_peak) * inverse_temperature - teacher_log_sum
        teacher_probs = tl.exp(teacher_log_probs)
        log_ratio = _difference(teacher_log_probs, student_log_probs)
        student_probs = tl.exp(student_log_probs)
        unmasked_probs = tl.where(student_log_probs == -float("inf"), 0.0, student_probs)
        kl += tl.sum(_kl_terms(unmasked_probs, teacher_probs, log_ratio))
        grad_student_logits = (student_probs - teacher_probs) * inverse_temperature
        grad_teacher_logits = teacher_probs * (log_ratio - mean_log_ratio) * inverse_temperature
        tl.store(grad_student_logits_ptr + row * num_classes + classes, grad_student_logits, mask=inside)
        tl.store(grad_teacher_logits_ptr + row * num_classes + classes, grad_teacher_logits, mask=inside)
    tl.store(kl_ptr + row, tl.where(lost_sum > 0, float("inf"), kl))


def kl_grad(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns kl [B] fp32 and its gradients, contiguous [B, N] in the dtype of their logits; any strides."""
    num_rows, num_classes = student_logits.shape
    kl = torch.empty(num_rows, dtype=torch.float32, device=student_logits.device)
    grad_student_logits = torch.empty_like(student_logits, memory_format=torch.contiguous_format)
    grad_teacher_logits = torch.empty_like(teacher_logits, memory_format=torch.contiguous_format)
    outputs = kl, grad_student_logits, grad_teacher_logits
    if num_rows == 0:
        return outputs
    tensors = student_logits, teacher_logits, *outputs
    scalars = num_classes, *student_logits.stride(), *teacher_logits.stride(), 1.0 / temperature
    block_rows, block_classes, num_warps = tile_for(num_classes)
    with torch.cuda.device_of(student_logits):
        if num_classes <= MAX_BLOCK_CLASSES:
            grid = (triton.cdiv(num_rows, block_rows),)
            _kl_grad_kernel[grid](*tensors, num_rows, *scalars, block_rows, block_classes, num_warps=num_warps)
        else:
            _kl_grad_looped_kernel[(num_rows,)](*tensors, *scalars, block_classes, num_warps=num_warps)
    return outputs
