"""Options of all methods in one checked dataclass; each row of methods/table.py names the fields that it reads."""

from dataclasses import dataclass, fields
from typing import Literal

from fastadaad.config import check_numbers, require, require_choice

KLReduction = Literal["batchmean", "mean"]
# A forward pass of the student in train mode; natural-introspective: at x_natural, from introspection_begin on.
Pass = Literal["natural", "adversarial", "opposite", "natural-introspective"]

_FRACTIONS = ("adversarial_weight", "teacher_weight")
_POSITIVE = ("temperature", "renyi_order", "entropy_scale", "loss_scale")
_NOT_NEGATIVE = (
    "robustness_weight",
    "introspection_begin",
    "introspection_power",
    "igdm_weight",
    "igdm_ramp_epochs",
    "natural_weight",
)


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options that the methods leave to the user. A row of methods/table.py changes a default if its paper does."""

    kl_reduction: KLReduction = "batchmean"
    """`mean` divides by batch size and classes, as the AdaAD authors' CIFAR-10 program does."""
    adversarial_weight: float = 1.0
    """lambda: weight of the kl at x_adv; the kl at x_natural has weight 1 - lambda."""
    clean_statistics: bool = True
    """Run the student on x_natural in train mode even if the loss ignores it: batch-norm sees clean images too."""
    statistics: tuple[Pass, ...] = ()
    """Passes of the student in train mode, in order, which batch-norm's running statistics see; with any row.

    Such as (natural, adversarial, natural). The loss takes the first pass at each point, the others change the
    statistics alone. Default: the passes that the loss needs, x_natural first, and those of clean_statistics.
    """
    loss_scale: float = 1.0
    """Factor of the whole loss, with any row; at plain SGD it acts like a factor of the learning rate."""
    teacher_weight: float = 1.0
    """a: weight of the teacher's and the introspective term; the label term has weight 1 - a."""
    temperature: float = 30.0
    """tau: temperature of both softmaxes in the teacher's term, which is multiplied by tau^2."""
    robustness_weight: float = 6.0
    """beta of TRADES and LBGAT, lambda of MART: weight of the kl between the student at x_adv and at x_natural."""
    introspection_begin: int = 60
    """First epoch with the introspection term (papers: 60 of 200)."""
    introspection_power: float = 0.1
    """b: the teacher is trusted with weight w = (its probability of the label at x_adv)^b."""
    introspective_teacher_term: bool = False
    """Multiply the teacher's term by w, as the papers write and their programs do not do."""
    igdm_weight: float = 1.0
    """a of IGDM: 1 on CIFAR-10, 10 on CIFAR-100 and Tiny-ImageNet."""
    igdm_ramp_epochs: int = 200
    """Number of epochs over which the weight of IGDM rises from 0, usually all; 0: full weight from the start."""
    entropy_scale: float = 5.0
    """Scale of SAAD's image weights: multiplies the teacher's entropy above the smallest entropy of the batch."""
    renyi_order: float = 1.0
    """gamma: order of the Renyi entropy of SAAD; 1 is Shannon's entropy."""
    natural_weight: float = 0.0
    """beta of SAAD: weight of the kl at x_natural, largest if the teacher is certain at x_adv."""

    def __post_init__(self) -> None:
        self._set_statistics()
        for field in fields(self):
            value, kind = getattr(self, field.name), _kind(field.default)
            require(_kind(value) == kind, f"{field.name} is {value!r}: give {kind}")
        check_numbers(self)
        for name in _FRACTIONS:
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}: it must lie in [0, 1]")
        for name in _NOT_NEGATIVE:
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in _POSITIVE:
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: it must be positive")
        require_choice("kl_reduction", self.kl_reduction, KLReduction)

    def _set_statistics(self) -> None:
        """Converts `statistics` from a list or from text, natural,adversarial, and checks it."""
        given: object = self.statistics
        if isinstance(given, str):
            given = [part.strip(" \"'") for part in given.strip("[]").split(",") if part.strip()]
        require(isinstance(given, list | tuple), f"statistics is {given!r}: give a list such as [natural,adversarial]")
        for name in given:  # type: ignore[attr-defined]
            require_choice("a pass of statistics", name, Pass)
        object.__setattr__(self, "statistics", tuple(given))  # type: ignore[arg-type]
        require(
            self.clean_statistics or not self.statistics,
            "statistics lists all passes and clean_statistics=false leaves one out: set clean_statistics=true",
        )

    def introspects(self, epoch: int) -> bool:
        """Returns True if the introspection term is active in `epoch`."""
        return epoch >= self.introspection_begin

    def igdm_weight_in(self, epoch: int) -> float:
        """Returns the weight of IGDM's term in `epoch`, a ramp up to igdm_weight."""
        ramp = min((epoch + 1) / self.igdm_ramp_epochs, 1.0) if self.igdm_ramp_epochs else 1.0
        return self.igdm_weight * ramp


def _kind(value: object) -> str | None:
    if isinstance(value, tuple):
        return "a list"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a string" if isinstance(value, str) else None
