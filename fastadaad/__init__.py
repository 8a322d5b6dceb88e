"""fastadaad: robust students from robust teachers, by adversarial distillation at speed."""

from fastadaad import methods, ops
from fastadaad.config import InnerConfig, ThreatModel
from fastadaad.inner.maximizer import InnerMaximizer, adaad_inner_loss
from fastadaad.models import load_model
from fastadaad.training.distiller import Distiller, StepResult
from fastadaad.training.nonfinite import NonFiniteError

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "InnerConfig",
    "InnerMaximizer",
    "NonFiniteError",
    "StepResult",
    "ThreatModel",
    "adaad_inner_loss",
    "load_model",
    "methods",
    "ops",
]
