"""The settings of a training step, as frozen keyword-only dataclasses that check themselves.

Radii and step sizes are in pixel units: pixels lie in [0, 1], so the usual CIFAR radius is 8/255.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Norm = Literal["linf", "l2"]
Start = Literal["gaussian", "uniform", "natural"]
Mode = Literal["eager", "compiled", "graph", "auto"]
Layout = Literal["auto", "contiguous", "channels_last"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PolicyKind = Literal["exact", "refreshed", "linearized"]
Engine = Literal["auto", "resident", "dali", "torch"]
OnError = Literal["raise", "skip"]
OnNonfinite = Literal["stop", "skip"]
BatchNorm = Literal["local", "sync"]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_choice(name: str, value: object, choices: Any) -> None:
    """`choices`: a Literal."""
    *others, last = get_args(choices)
    require(value in (*others, last), f"{name} is {value!r}: choose {', '.join(others)} or {last}")


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """The set an adversarial image may come from: the ball of radius `epsilon` in `norm` around the natural image."""

    norm: Norm = "linf"
    epsilon: float = 8 / 255

    def __post_init__(self) -> None:
        require_choice("norm", self.norm, Norm)
        require(
            math.isfinite(self.epsilon) and self.epsilon >= 0,
            f"epsilon is {self.epsilon}: it must be a finite radius, 0 or more",
        )
        require(
            self.norm == "l2" or self.epsilon <= 1,
            f"epsilon is {self.epsilon} but pixels lie in [0, 1]: write {self.epsilon:g}/255 for a radius in 0..255",
        )


@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """The inner maximisation: `num_steps` projected steps of `step_size` inside `threat_model`."""

    threat_model: ThreatModel = field(default_factory=ThreatModel)
    step_size: float = 2 / 255
    num_steps: int = 10
    start: Start | None = None
    """Where the loop begins; None: the method's own start (see methods.py)."""
    student_eval: bool = True
    """Student in eval mode during the loop, so that batch-norm uses its running statistics."""
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        epsilon = self.threat_model.epsilon
        require(self.num_steps >= 1, f"num_steps is {self.num_steps}: at least one step is needed")
        require(
            math.isfinite(self.step_size) and self.step_size >= 0,
            f"step_size is {self.step_size}: it must be finite, 0 or more",
        )
        # Of several steps none has to be longer than the radius. One-step training takes 1.25 epsilon from a random
        # start, and a step of twice epsilon is as long as the ball is wide.
        limit, words = (2 * epsilon, "more than twice") if self.num_steps == 1 else (epsilon, "more than")
        require(
            epsilon == 0 or self.step_size <= limit,
            f"step_size {self.step_size:.4f} is {words} epsilon {epsilon:.4f}: are the two swapped? Else set "
            "inner.step_size to a quarter of epsilon, say",
        )
        if self.start is not None:
            require_choice("start", self.start, Start)
        require(self.lower < self.upper, f"lower {self.lower} is not below upper {self.upper}: swap them")


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The arithmetic of each network; pixels, first convolutions, losses and steps are fp32 whatever it says."""

    student: Precision = "fp32"
    teacher: Precision = "fp32"

    def __post_init__(self) -> None:
        for name, precision in (("student", self.student), ("teacher", self.teacher)):
            require_choice(f"precision.{name}", precision, Precision)


@dataclass(frozen=True, kw_only=True)
class TeacherPolicy:
    """How often the inner loop asks the teacher, and what stands in for it between (see teacher_policies.py).

    As text: exact, refreshed, refreshed(every=5), linearized(top=3,every=10).
    """

    kind: PolicyKind = "exact"
    every: int | None = None
    """Inner steps from one answer of the teacher to the next; None: as many as its measured error allows."""
    top: int = 3
    """Of `linearized`: so many of the teacher's most likely classes are expanded."""

    def __post_init__(self) -> None:
        require(
            self.kind in ("exact", "refreshed", "linearized"),
            f"teacher policy {self.kind!r} is unknown: choose exact, refreshed or linearized",
        )
        require(self.every is None or self.every >= 1, f"every is {self.every}: it must be 1 or more, or left out")
        require(self.top >= 1, f"top is {self.top}: it must be 1 or more")
        require(self.kind != "exact" or self.every is None, "policy exact asks in every step: leave out every")
        require(
            self.kind == "linearized" or self.top == TeacherPolicy.top,
            f"top belongs to linearized, not to {self.kind}: leave it out",
        )

    @classmethod
    def parse(cls, text: str) -> "TeacherPolicy":
        """The policy that `text` writes as KIND or KIND(every=INT,top=INT). Raises ValueError for any other text."""
        match = re.fullmatch(r"\s*([\w-]+)\s*(?:\(([^()]*)\))?\s*", text)
        parts = match[2].split(",") if match and match[2] else []
        settings = [re.fullmatch(r"\s*(every|top)\s*=\s*([0-9]+)\s*", part) for part in parts]
        numbers = {setting[1]: int(setting[2]) for setting in settings if setting}
        if match is None or len(numbers) < len(settings):
            raise ValueError(
                f"teacher policy {text!r} cannot be read: write exact, refreshed(every=5) or linearized(top=3)"
            )
        return cls(kind=match[1], **numbers)  # type: ignore[arg-type]

    def check(self, through_teacher: bool, method: str) -> None:
        """Raises ValueError where the inner loop of `method` does not go through the teacher."""
        require(
            self.kind == "exact" or through_teacher,
            f"teacher policy {self}: the inner loop of {method} does not go through the teacher; set "
            "teacher.policy=exact",
        )

    @property
    def is_adaptive(self) -> bool:
        return self.kind != "exact" and self.every is None

    def __str__(self) -> str:
        settings = [f"top={self.top}"] if self.kind == "linearized" else []
        settings += [f"every={self.every}"] if self.every is not None else []
        return f"{self.kind}({','.join(settings)})" if settings else self.kind
