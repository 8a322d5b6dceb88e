"""Fused operations of the training step; report() lists the backend of each of them."""

from .crop_flip import crop_flip
from .cross_entropy_grad import cross_entropy_grad
from .kl_grad import kl_grad
from .l2_step import l2_step_
from .linf_step import linf_step_
from .random_start import random_start_
from .registration import OpBackend, report

__all__ = [
    "OpBackend",
    "crop_flip",
    "cross_entropy_grad",
    "kl_grad",
    "l2_step_",
    "linf_step_",
    "random_start_",
    "report",
]
