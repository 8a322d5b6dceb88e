"""Faults that the program has to detect."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastadaad.ops import registration
from fastadaad.training.self_check import ops as self_check_ops


@contextmanager
def wrong_kl_grad() -> Iterator[None]:
    """Registers a CPU kernel of kl_grad that is wrong for the last class."""

    def kernel(student_logits, teacher_logits, temperature):
        kl, *gradients = self_check_ops.reference("kl_grad")(student_logits, teacher_logits, temperature)
        gradients[0][:, -1] += 1e-2
        return kl, *gradients

    library = torch.library.Library("fastadaad", "IMPL", "CPU")
    library.impl("kl_grad", kernel, allow_override=True)
    try:
        yield
    finally:
        registration.switch_on("cpu")
        library._destroy()
