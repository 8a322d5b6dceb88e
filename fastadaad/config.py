"""Settings of a training step, as frozen keyword-only dataclasses that check themselves.

Radii and step sizes are in pixel units: pixels lie in [0, 1], so the usual CIFAR radius is 8/255. A radius or a step
size may be written as a string, `"8/255"`.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_type_hints

Norm = Literal["linf", "l2"]
Start = Literal["gaussian", "gaussian-clipped", "uniform", "uniform-unclipped", "natural"]
Mode = Literal["eager", "compiled", "graph", "auto"]
Layout = Literal["auto", "contiguous", "channels_last"]
CompilePreset = Literal["default", "long"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
PolicyKind = Literal["exact", "refreshed", "directional", "linearized"]
Engine = Literal["auto", "resident", "dali", "torch"]
AutoAugment = Literal["randaugment", "trivialaugment"]
OnError = Literal["raise", "skip"]
OnNonfinite = Literal["stop", "skip"]
BatchNorm = Literal["local", "sync"]
TrackerName = Literal["wandb", "mlflow"]
# Weights at which the update's gradient is taken: see training/awp.py.
AwpForm = Literal["awp", "sam", "asam"]


Class = TypeVar("Class", bound=type)

_NUMBER = r"\s*((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless `value` is one of `choices`, a Literal."""
    *others, last = get_args(choices)
    require(value in (*others, last), f"{name} is {value!r}: choose {', '.join(others)} or {last}")


def require_integer(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless `value` is an integer, `least` or more."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)  # of numpy too
    require(is_integer, f"{name} is {value!r}: it must be an integer")
    require(value >= least, f"{name} is {value}: it must be {least} or more")


def require_finite(
    name: str, value: Any, requirement: str, *, least: float = -math.inf, above: float = -math.inf
) -> None:
    """Raises ValueError, which ends in `requirement`, unless `value` is a finite number >= `least` and > `above`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    fits = is_number and math.isfinite(value) and value >= least and value > above
    require(fits, f"{name} is {value!r}: it must be {requirement}")


def check_grad_clip(grad_clip: float | None) -> None:
    """Raises ValueError unless the largest norm of a gradient is None or a finite number above 0."""
    if grad_clip is not None:
        require_finite("grad_clip", grad_clip, "finite and above 0, such as 1.0; leave it out to clip nothing", above=0)


def check_numbers(settings: Any) -> None:
    """Raises ValueError unless each field of a dataclass that is a float is finite, and each int an integer.

    A field may be None, or a tuple of numbers, if its type says so. Ranges are left to the class.
    """
    for name, (hint, example) in _number_fields(type(settings)).items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            if hint is float:
                require_finite(name, number, f"a finite number{example}")
            else:
                is_integer = isinstance(number, Integral) and not isinstance(number, bool)
                require(is_integer, f"{name} is {number!r}: it must be an integer{example}")


def _number_fields(cls: type) -> dict[str, tuple[type, str]]:
    """Fields of a dataclass that hold numbers: name -> float or int, and the words about its default."""
    found: dict[str, tuple[type, str]] = {}
    hints = get_type_hints(cls)
    for part in fields(cls):
        example = f", such as {part.default}" if isinstance(part.default, int | float) else ""
        kinds = (hints[part.name], *get_args(hints[part.name]))
        for kind in (float, int):
            if kind in kinds:
                found[part.name] = kind, example
    return found


def require_bool(name: str, value: object) -> None:
    """Raises ValueError unless `value` is True or False."""
    require(isinstance(value, bool), f"{name} is {value!r}: it must be True or False")


def require_type(name: str, value: object, kind: Any, remedy: str) -> None:
    """Raises ValueError, which ends in `remedy`, unless `value` is of class `kind`."""
    require(isinstance(value, kind), f"{name} is a {type(value).__name__}: give {remedy}")


def parse_pixels(text: str | float) -> float:
    """Converts a radius or step size such as `"8/255"` or `"0.031"` to a number.

    Raises:
        ValueError: `text` is neither a decimal nor a fraction of two decimals.
    """
    match = re.fullmatch(rf"{_NUMBER}(?:/{_NUMBER})?", str(text))
    if match is not None:
        numerator, denominator = float(match[1]), float(match[2] or 1)
        if denominator > 0 and all(map(math.isfinite, (numerator, denominator, numerator / denominator))):
            return numerator / denominator
    raise ValueError(f"{text!r} is not a radius in pixel units: write it as 8/255 or 0.031")


def hinted(**spellings: str) -> Callable[[Class], Class]:
    """Class decorator of a dataclass: an unknown keyword raises one line that names the field that was meant.

    Args:
        **spellings: The name that another library uses -> the field's name here.
    """

    def decorate(cls: Class) -> Class:
        init = cls.__init__  # type: ignore[misc]
        names = [field.name for field in fields(cls)]

        @functools.wraps(init)
        def checked_init(self: object, *arguments: Any, **settings: Any) -> None:
            for name in settings:
                if name not in names:
                    close = spellings.get(name) or next(iter(difflib.get_close_matches(name, names, n=1)), None)
                    remedy = f"did you mean {close}?" if close else f"its settings are {', '.join(names)}"
                    raise TypeError(f"{cls.__name__} has no setting {name!r}: {remedy}")
            init(self, *arguments, **settings)

        cls.__init__ = checked_init  # type: ignore[misc]
        return cls

    return decorate


def _convert(settings: object, name: str, convert: Callable[[str], Any]) -> None:
    """Replaces the field `name` of a frozen dataclass by convert(field) if it is a string."""
    value = getattr(settings, name)
    if isinstance(value, str):
        object.__setattr__(settings, name, convert(value))


@hinted(eps="epsilon", radius="epsilon", max_norm="epsilon", p="norm", ord="norm")
@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Set of admissible adversarial images: the ball of radius `epsilon` in `norm` around the natural image.

    Args:
        norm: `linf` or `l2`.
        epsilon: Radius in pixel units, a number or a string such as `"8/255"`.

    Raises:
        ValueError: An unknown norm, or a radius that is negative, not finite, or above 1 in `linf`.
    """

    norm: Norm = "linf"
    epsilon: float = 8 / 255

    def __post_init__(self) -> None:
        require_choice("norm", self.norm, Norm)
        _convert(self, "epsilon", parse_pixels)
        require_finite("epsilon", self.epsilon, "a finite radius, 0 or more", least=0)
        require(
            self.norm == "l2" or self.epsilon <= 1,
            f"epsilon is {self.epsilon} but pixels lie in [0, 1]: write {self.epsilon:g}/255 for a radius in 0..255",
        )


@hinted(
    steps="num_steps",
    nb_iter="num_steps",
    alpha="step_size",
    eps_step="step_size",
    eps="threat_model=ThreatModel(epsilon=...)",
    epsilon="threat_model=ThreatModel(epsilon=...)",
    norm="threat_model=ThreatModel(norm=...)",
)
@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """Settings of the inner maximisation: `num_steps` projected steps of `step_size` inside `threat_model`.

    Raises:
        ValueError: A value that makes no sense, such as a step longer than the radius or a limit that is not finite.
    """

    threat_model: ThreatModel = field(default_factory=ThreatModel)
    """Ball that the search stays in. Default: linf with radius 8/255."""
    step_size: float = 2 / 255
    """Length of one step in pixel units, a number or a string such as `"2/255"`."""
    num_steps: int = 10
    """Number of projected steps, 1 or more."""
    step_factors: tuple[float, ...] | None = None
    """Length of each of the num_steps steps as a multiple of step_size, such as (3, 1.5, 0.75). Default: 1 for each.

    Short last steps find more than equal ones (docs/performance.md). A compiled step is compiled for each different
    length.
    """
    start: Start | None = None
    """First point of the loop. Default: the method's own start (see methods/table.py).

    gaussian: 0.001 N(0, 1) around the image; uniform: anywhere in the ball, clipped to admissible pixels;
    gaussian-clipped and uniform-unclipped: the same, clipped or not before the first step; natural: the image.
    """
    student_eval: bool = True
    """Student in eval mode during the loop, so that batch-norm uses its running statistics.

    False: in train mode, as in the programs of ARD, IAD and AKD; eager, without folded copies.
    """
    lower: float = 0.0
    """Smallest admissible pixel."""
    upper: float = 1.0
    """Largest admissible pixel."""

    def __post_init__(self) -> None:
        _convert(self, "step_size", parse_pixels)
        require_type("threat_model", self.threat_model, ThreatModel, "a ThreatModel(norm=..., epsilon=...)")
        require_integer("num_steps", self.num_steps, 1)
        require_finite("step_size", self.step_size, "finite, 0 or more", least=0)
        require_bool("student_eval", self.student_eval)
        self._check_factors()
        for name in ("lower", "upper"):
            require_finite(name, getattr(self, name), "a finite pixel, such as 0.0 or 1.0")
        self._check_step()
        if self.start is not None:
            require_choice("start", self.start, Start)
        require(self.lower < self.upper, f"lower {self.lower} is not below upper {self.upper}: swap them")

    def check_mode(self, mode: str) -> None:
        """Raises ValueError for a compiled mode with the student in train mode, whose batch-norm changes inside."""
        require(
            self.student_eval or mode in ("eager", "auto"),
            f"student_eval is False, and mode {mode} cannot update batch-norm in the search: set mode=auto, or "
            "student_eval to True",
        )

    def _check_factors(self) -> None:
        """Raises ValueError for factors that are not one number, 0 or more, for each step."""
        if self.step_factors is None:
            return
        require_type("step_factors", self.step_factors, list | tuple, "a list of numbers, such as (3, 1.5, 0.75)")
        for factor in self.step_factors:
            require_finite("step_factors", factor, "finite numbers, 0 or more", least=0)
        object.__setattr__(self, "step_factors", tuple(map(float, self.step_factors)))
        require(
            len(self.step_factors) == self.num_steps,
            f"step_factors has {len(self.step_factors)} numbers for num_steps={self.num_steps}: give one for each step",
        )

    def _check_step(self) -> None:
        """Raises ValueError for a step that is too long for the ball."""
        # With several steps, no step needs to be longer than the radius. One-step training takes 1.25 epsilon from a
        # random start, and a step of twice epsilon is as long as the ball is wide.
        epsilon, longest = self.threat_model.epsilon, self.step_size * max(self.step_factors or (1.0,))
        limit, words = (2 * epsilon, "more than twice") if self.num_steps == 1 else (epsilon, "more than")
        require(
            epsilon == 0 or longest <= limit,
            f"step_size {longest:.4f} is {words} epsilon {epsilon:.4f}: are the two swapped? Otherwise "
            "set inner.step_size to about epsilon / 4",
        )

    @classmethod
    def parse(cls, given: "InnerConfig | dict[str, Any] | None") -> "InnerConfig":
        """Returns `given`; a dict holds settings by name, with `epsilon` and `norm` of the threat model among them."""
        if not isinstance(given, dict):
            require_type("inner", given or cls(), cls, "an InnerConfig or a dict of its settings")
            return given or cls()
        ball = {name: given[name] for name in ("epsilon", "norm") if name in given}
        settings = {name: value for name, value in given.items() if name not in ball}
        if ball:
            settings["threat_model"] = ThreatModel(**ball)
        return cls(**settings)


@hinted()
@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Arithmetic of each network. Pixels, logits, losses and steps are always fp32.

    First convolutions of networks in bf16 and fp16 are in fp32, on CUDA in TF32 unless the other network is in fp32.

    `auto` is bf16 on a CUDA device with tensor cores (compute capability 8.0 or more), else fp32. `fp32` is strict: it
    switches TF32 off.
    """

    student: Precision = "auto"
    """Precision of the student, in the inner loop and in its training pass."""
    teacher: Precision = "auto"
    """Precision of the teacher."""

    def __post_init__(self) -> None:
        for name, precision in (("student", self.student), ("teacher", self.teacher)):
            require_choice(f"precision.{name}", precision, Precision)

    @classmethod
    def parse(cls, given: "PrecisionConfig | str | None") -> "PrecisionConfig":
        """Returns `given`; a string such as `"bf16"` is the precision of both networks, None is auto."""
        if isinstance(given, str):
            return cls(student=given, teacher=given)  # type: ignore[arg-type]
        require_type("precision", given or cls(), cls, "a PrecisionConfig or a string such as 'bf16'")
        return given or cls()


@hinted(interval="every", k="top", name="kind")
@dataclass(frozen=True, kw_only=True)
class TeacherPolicy:
    """Interval at which the inner loop queries the teacher, and its substitute in between (inner/teacher_policies.py).

    As a string: exact, refreshed, refreshed(every=5), directional(every=3), linearized(top=3,every=10).
    """

    kind: PolicyKind = "exact"
    """Substitute of the teacher between two queries: its last logits and gradient (refreshed), a linear model along the
    gradient (directional), or its first-order expansion (linearized). exact: none, every step queries the teacher.
    """
    every: int | None = None
    """Inner steps between two queries of the teacher. Default: adapted to the measured error. A training asks more
    often if the policy falls short of the exact search (inner/policy_probe.py)."""
    top: int = 3
    """Number of the teacher's most likely classes that `linearized` expands."""

    def __post_init__(self) -> None:
        require(
            self.kind in get_args(PolicyKind),
            f"teacher policy {self.kind!r} is unknown: choose exact, refreshed, directional or linearized",
        )
        if self.every is not None:
            require_integer("every", self.every, 1)
        require_integer("top", self.top, 1)
        require(
            self.kind != "exact" or self.every is None,
            "policy exact queries the teacher in every step: leave out every",
        )
        require(
            self.kind == "linearized" or self.top == TeacherPolicy.top,
            f"top belongs to linearized, not to {self.kind}: leave it out",
        )

    @classmethod
    def parse(cls, text: "str | TeacherPolicy | None") -> "TeacherPolicy":
        """Reads a policy from KIND or KIND(every=INT,top=INT); None is exact, and a policy is returned unchanged.

        Raises:
            ValueError: The string is in another form.
        """
        if not isinstance(text, str):
            require_type(
                "teacher_policy", text or cls(), cls, "a TeacherPolicy or a string such as 'refreshed(every=5)'"
            )
            return text or cls()
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
        """Raises ValueError if the inner loop of `method` does not go through the teacher."""
        require(
            self.kind == "exact" or through_teacher,
            f"teacher policy {self}: the inner loop of {method} does not go through the teacher; set "
            "teacher.policy=exact",
        )

    @property
    def is_adaptive(self) -> bool:
        """True if the interval follows the measured error."""
        return self.kind != "exact" and self.every is None

    def __str__(self) -> str:
        settings = [f"top={self.top}"] if self.kind == "linearized" else []
        settings += [f"every={self.every}"] if self.every is not None else []
        return f"{self.kind}({','.join(settings)})" if settings else self.kind
