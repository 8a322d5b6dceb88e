"""What the methods leave to the user, in one checked dataclass; each row of methods.py names the fields it reads."""

from dataclasses import dataclass, fields
from typing import Literal

KLReduction = Literal["batchmean", "mean"]

_NOT_NEGATIVE = (
    "robustness_weight",
    "introspection_begin",
    "introspection_power",
    "igdm_weight",
    "igdm_ramp_epochs",
    "natural_weight",
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _kind(value: object) -> str | None:
    """In words, what an option with this default takes."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else None


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The defaults are those of most methods; a row of methods.py changes them where its paper does."""

    kl_reduction: KLReduction = "batchmean"
    """mean divides by batch and classes, as the AdaAD authors' CIFAR-10 program does."""
    adversarial_weight: float = 1.0
    """lambda: weight of the kl at x_adv; 1 - lambda is that of the kl at x_natural."""
    clean_statistics: bool = True
    """Run the student on x_natural in train mode even where the loss ignores it: batch-norm sees clean images too."""
    teacher_weight: float = 1.0
    """a: weight of what the student learns from the teacher and itself; 1 - a is that of the labels."""
    temperature: float = 30.0
    """tau of the softmax of both networks in the teacher's term, which is multiplied by tau^2."""
    robustness_weight: float = 6.0
    """beta of TRADES: weight of the kl between the student at x_adv and at x_natural."""
    introspection_begin: int = 60
    """First epoch in which the student listens to itself where the teacher errs; 60 of the papers' 200."""
    introspection_power: float = 0.1
    """b: the teacher is trusted with w = (its probability of the label at x_adv)^b."""
    introspective_teacher_term: bool = False
    """Weight the teacher's term by w, as the papers say and their programs do not."""
    igdm_weight: float = 1.0
    """a of IGDM: 1 on CIFAR-10, 10 on CIFAR-100 and Tiny-ImageNet."""
    igdm_ramp_epochs: int = 200
    """Epochs over which that weight rises from 0: as many as the run has; 0: it is there from the start."""
    entropy_scale: float = 5.0
    """Of SAAD: what the teacher's entropy above the batch's least is multiplied by to weight an image."""
    renyi_order: float = 1.0
    """gamma: order of that entropy; 1 is Shannon's."""
    natural_weight: float = 0.0
    """beta of SAAD: weight of the kl at x_natural, most where the teacher is certain at x_adv."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _require(_kind(value) == _kind(field.default), f"{field.name} is {value!r}: give {_kind(field.default)}")
        for name in ("adversarial_weight", "teacher_weight"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} is {value}: it must lie in [0, 1]")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}: it must be 0 or more")
        for name in ("temperature", "renyi_order", "entropy_scale"):
            value = getattr(self, name)
            _require(value > 0, f"{name} is {value}: it must be positive")
        _require(
            self.kl_reduction in ("batchmean", "mean"),
            f"kl_reduction is {self.kl_reduction!r}: choose batchmean or mean",
        )
