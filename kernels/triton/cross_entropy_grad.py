"""Cross-entropy of each row and its logit gradient.

With p = softmax(s) and label y:  loss = -log p_y,  d loss / d s = p - onehot(y).
"""

import torch
import triton
import triton.language as tl

from .softmax import MAX_BLOCK_CLASSES, log_softmax, raise_peak, tile_for


@triton.jit
def _cross_entropy_grad_kernel(
    student_logits_ptr,  # [B, N], any strides
    labels_ptr,  # [B] int64
    loss_ptr,  # [B] fp32
    grad_student_logits_ptr,  # [B, N] contiguous
    num_rows,
    num_classes,
    row_stride,
    class_stride,
    label_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Each program handles BLOCK_ROWS whole rows; every input is read once and every output written once."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    labels = tl.load(labels_ptr + rows * label_stride, mask=rows < num_rows, other=0)[:, None]
    rows = rows[:, None]
    classes = tl.arange(0, BLOCK_CLASSES)[None, :].to(tl.int64)
    inside = (rows < num_rows) & (classes < num_classes)
    student_ptrs = student_logits_ptr + rows * row_stride + classes * class_stride
    student_logits = tl.load(student_ptrs, mask=inside, other=-float("inf")).to(tl.float32)

    log_probs = log_softmax(student_logits, 1.0)
    is_label = classes == labels
    loss = -tl.sum(tl.where(is_label, log_probs, 0.0), axis=1, keep_dims=True)
    grad = tl.exp(log_probs) - is_label.to(tl.float32)
    tl.store(grad_student_logits_ptr + rows * num_classes + classes, grad, mask=inside)
    tl.store(loss_ptr + rows, loss, mask=rows < num_rows)


@triton.jit
def _cross_entropy_grad_looped_kernel(
    student_logits_ptr,  # [B, N], any strides
    labels_ptr,  # [B] int64
    loss_ptr,  # [B] fp32
    grad_student_logits_ptr,  # [B, N] contiguous
    num_classes,
    row_stride,
    class_stride,
    label_stride,
    BLOCK_CLASSES: tl.constexpr,
):
    """Each program handles one row in two passes over its blocks (online softmax, gradients); reads logits twice."""
    row = tl.program_id(0).to(tl.int64)
    student_logits_ptr += row * row_stride
    label = tl.load(labels_ptr + row * label_stride)
    peak = -3.0e38  # finite, so that a block of masked classes does not make NaN
    exp_sum = 0.0
    label_logit = 0.0
    for start in range(0, num_classes, BLOCK_CLASSES):
        classes = start + tl.arange(0, BLOCK_CLASSES).to(tl.int64)
        ptrs = student_logits_ptr + classes * class_stride
        logits = tl.load(ptrs, mask=classes < num_classes, other=-float("inf")).to(tl.float32)
        peak, rise, shifted = raise_peak(peak, logits, 1.0)
        exp_sum = exp_sum * tl.exp(-rise) + tl.sum(tl.exp(shifted))
        label_logit += tl.sum(tl.where(classes == label, logits, 0.0))

    log_sum = tl.log(exp_sum)
    tl.store(loss_ptr + row, log_sum - (label_logit - peak))
    for start in range(0, num_classes, BLOCK_CLASSES):
        classes = start + tl.arange(0, BLOCK_CLASSES).to(tl.int64)
        inside = classes < num_classes
        logits = tl.load(student_logits_ptr + classes * class_stride, mask=inside, other=-float("inf")).to(tl.float32)
        grad = tl.exp((logits - peak) - log_sum) - (classes == label).to(tl.float32)
        tl.store(grad_student_logits_ptr + row * num_classes + classes, grad, mask=inside)


def cross_entropy_grad(student_logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns loss [B] fp32 and contiguous grad_student_logits [B, N] of student_logits [B, N] and labels [B]."""
    num_rows, num_classes = student_logits.shape
    loss = torch.empty(num_rows, dtype=torch.float32, device=student_logits.device)
    grad_student_logits = torch.empty_like(student_logits, memory_format=torch.contiguous_format)
    if num_rows == 0:
        return loss, grad_student_logits
    tensors = student_logits, labels, loss, grad_student_logits
    scalars = num_classes, *student_logits.stride(), labels.stride(0)
    block_rows, block_classes, num_warps = tile_for(num_classes)
    with torch.cuda.device_of(student_logits):
        if num_classes <= MAX_BLOCK_CLASSES:
            grid = (triton.cdiv(num_rows, block_rows),)
            _cross_entropy_grad_kernel[grid](
                *tensors, num_rows, *scalars, block_rows, block_classes, num_warps=num_warps
            )
        else:
            _cross_entropy_grad_looped_kernel[(num_rows,)](*tensors, *scalars, block_classes, num_warps=num_warps)
    return loss, grad_student_logits
