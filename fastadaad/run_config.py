"""Everything a run depends on, as frozen keyword-only dataclasses that check themselves."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from fastadaad import methods
from fastadaad.config import (
    BatchNorm,
    Engine,
    InnerConfig,
    Layout,
    Mode,
    OnError,
    OnNonfinite,
    PrecisionConfig,
    TeacherPolicy,
    ThreatModel,
    require,
    require_choice,
)
from fastadaad.evaluation.attack_names import check_attack_name

ScheduleName = Literal["constant", "piecewise", "cosine", "one-cycle"]
OptimizerName = Literal["sgd", "lars", "lamb"]
OptimizerBackend = Literal["auto", "foreach", "apex"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, in which batches, read and augmented how."""

    name: str
    root: str | None = None
    download: bool = False
    num_samples: int | None = None
    """Train on a class-balanced subset of this size; None: on all images."""
    validation_size: int = 1024
    """Images held out of the training set, on which the best epoch is chosen."""
    batch_size: int = 128
    """Images of a step; of several processes each takes its share of them."""
    padding: int = 0
    """Random crops of the image padded by so many black pixels on each side."""
    flip: bool = False
    """Random horizontal flips."""
    cutout: int = 0
    """Side in pixels of a black square at a random place; 0: none."""
    image_size: int | None = None
    """Of image files: side in pixels that they are resized to."""
    center_share: float | None = None
    """Of image files that are not cropped at random: side of the square that is kept over the shorter side.

    None: 1, for imagenet 0.875.
    """
    min_crop_scale: float = 1.0
    """Of image files: random resized crops of at least this share of the area, such as 0.08; 1: the centre instead."""
    color_jitter: float = 0.0
    """Of image files: brightness, contrast and saturation are multiplied by factors in [1 - it, 1 + it]."""
    extra_images: str | None = None
    """An .npz file with more images for training, such as generated ones; an epoch is as long as without them."""
    extra_share: float = 0.7
    """Share of each batch that comes from extra_images."""
    engine: Engine = "auto"
    """auto: resident for arrays, dali for image files, or torch where DALI is missing."""
    num_workers: int = 2
    """Threads of dali, processes of torch."""
    on_error: OnError = "raise"
    """What happens to an image file that cannot be decoded; skip: it is left out, and listed at the end."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_samples", "image_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}: it must be 1 or more")
        for name in ("padding", "cutout", "validation_size", "num_workers"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("min_crop_scale", "center_share"):
            share = getattr(self, name)
            require(share is None or 0 < share <= 1, f"{name} is {share}: it is a share, in (0, 1]")
        require(0 <= self.color_jitter <= 1, f"color_jitter is {self.color_jitter}: it must lie in [0, 1]")
        require(0 < self.extra_share < 1, f"extra_share is {self.extra_share}: it is a share of a batch, in (0, 1)")
        require_choice("engine", self.engine, Engine)
        require_choice("on_error", self.on_error, OnError)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name and, where it exists already, its weights: a file, or `shipped:NAME` for the package's own."""

    name: str
    checkpoint: str | None = None
    normalize: bool = False
    """Normalise pixels inside the model with the training images' mean and standard deviation."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """The teacher, and how often the inner loop asks it."""

    policy: TeacherPolicy = field(default_factory=TeacherPolicy)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its learning-rate schedule, and averaged or perturbed weights, which combine with any method."""

    epochs: int
    optimizer: OptimizerName = "sgd"
    """lars and lamb are for batches of thousands.

    lamb takes rates of about 0.01. lars multiplies the rate of weights by 0.001 times their length over that of their
    gradient, but takes it as it is for biases and batch-norm: rates of about 1 and more, with a warm-up.
    """
    optimizer_backend: OptimizerBackend = "auto"
    """Of sgd and lamb; auto: torch's fused SGD. foreach: torch's other one. apex: those of NVIDIA's apex."""
    learning_rate: float = 0.1
    base_batch_size: int | None = None
    """Batch size that learning_rate is meant for; it is multiplied by data.batch_size / base_batch_size. None: by 1."""
    micro_batch: int | None = None
    """Images that go through the networks at a time; their gradients are summed before the update. None: the batch.

    Batch-norm in train mode then takes its statistics from so many images.
    """
    momentum: float = 0.9
    """Of lamb: its beta_1."""
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: ScheduleName = "piecewise"
    milestones: tuple[float, ...] = ()
    """Where the piecewise schedule divides the learning rate by 10, as shares of the run: 0.5 is half-way."""
    warmup: float = 0.0
    """Share of the run in which the learning rate rises linearly from 0; for one-cycle the rising part of the cycle."""
    ema_decay: float = 0.0
    """EMA: decay per step of the averaged student that is evaluated and saved; 0: no such averaging."""
    swa_begin: float | None = None
    """SWA: share of the run from which on the students at the end of each epoch are averaged; None: no such averaging.

    The averaged student is evaluated and saved as soon as there is one.
    """
    awp_gamma: float = 0.0
    """AWP: length of the perturbation of each weight, relative to the weight's; 0: none. 0.005 in its paper."""
    awp_begin: int = 0
    """First epoch with AWP."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs is {self.epochs}: it must be 1 or more")
        require_choice("optimizer", self.optimizer, OptimizerName)
        require_choice("optimizer_backend", self.optimizer_backend, OptimizerBackend)
        require(
            self.optimizer != "lars" or self.optimizer_backend != "apex",
            "NVIDIA's apex has no LARS of this kind: set optim.optimizer_backend=auto",
        )
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}: it must be positive")
        require(0 <= self.momentum < 1, f"momentum is {self.momentum}: it must lie in [0, 1)")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: it must be 0 or more")
        for name, size in (("base_batch_size", self.base_batch_size), ("micro_batch", self.micro_batch)):
            require(size is None or size >= 1, f"{name} is {size}: it must be 1 or more, or left out")
        require(0 <= self.warmup < 1, f"warmup is {self.warmup}: it is a share of the run, in [0, 1)")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: it must lie in [0, 1)")
        require(
            self.swa_begin is None or 0 <= self.swa_begin < 1,
            f"swa_begin is {self.swa_begin}: it is a share of the run, in [0, 1)",
        )
        require(
            self.swa_begin is None or not self.ema_decay,
            "ema_decay and swa_begin are two ways to average: set optim.ema_decay=0, or optim.swa_begin=null",
        )
        require(self.awp_gamma >= 0, f"awp_gamma is {self.awp_gamma}: it must be 0 or more")
        require(self.awp_begin >= 0, f"awp_begin is {self.awp_begin}: it must be 0 or more")
        require_choice("schedule", self.schedule, ScheduleName)
        outside = [milestone for milestone in self.milestones if not 0 < milestone < 1]
        require(not outside, f"milestones {outside} are not shares of the run: write 0.5 for half-way")
        require(
            not self.milestones or self.schedule == "piecewise",
            f"milestones belong to the piecewise schedule, not to {self.schedule}: set optim.milestones=[]",
        )
        require(
            self.momentum > 0 or not self.nesterov,
            "nesterov needs momentum: set optim.momentum, or optim.nesterov=false",
        )
        require(
            self.optimizer == "sgd" or not self.nesterov,
            f"nesterov belongs to sgd, not to {self.optimizer}: set optim.nesterov=false",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the student is measured: after each epoch on the validation split, at the end on the test set."""

    threat_model: ThreatModel = field(default_factory=ThreatModel)
    attacks: tuple[str, ...] = ("natural", "fgsm", "pgd20")
    restarts: int = 1
    batch_size: int = 500
    validation_attack: str = "pgd10"
    every_epochs: int = 1
    num_images: int | None = None
    """Test images to evaluate on; None: all."""

    def __post_init__(self) -> None:
        require(1 <= self.restarts <= 1000, f"restarts is {self.restarts}: it must be 1 to 1000")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}: it must be 1 or more")
        require(self.every_epochs >= 1, f"every_epochs is {self.every_epochs}: it must be 1 or more")
        require(
            self.num_images is None or self.num_images >= 1,
            f"num_images is {self.num_images}: give 1 or more, or leave it out for all images",
        )
        require(len(self.attacks) > 0, "attacks is empty: give at least one, such as natural")
        for attack in (*self.attacks, self.validation_attack):
            check_attack_name(attack)  # a misspelt name must not surface after hours of training


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, complete."""

    recipe: str
    data: DataConfig
    student: ModelConfig
    teacher: TeacherConfig | None = None
    method: str = "adaad"
    method_options: dict[str, Any] = field(default_factory=dict)
    """Overrides of the method's own options, by name (see methods.py)."""
    inner: InnerConfig = field(default_factory=InnerConfig)
    optim: OptimConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    seed: int = 0
    device: str = "auto"
    mode: Mode = "auto"
    layout: Layout = "auto"
    """Of the folded networks' convolutions; auto: measured once per machine and network."""
    log_every: int = 20
    """Steps between two reads of the metrics from the device."""
    early_stop_epochs: int | None = None
    """Stop when the robust accuracy on the validation split has not risen for so many epochs; None: never."""
    checkpoint_every: int = 200
    """Steps between two checkpoints, beside the one at the end of each epoch."""
    deterministic: bool = False
    """Only algorithms that give the same bits at each run, and no layout that was measured."""
    on_nonfinite: OnNonfinite = "stop"
    """What follows NaN or inf in a step: the run stops, or the update is left out."""
    teacher_check: int = 256
    """Images on which the teacher is measured before the training; 0: none."""
    batch_norm: BatchNorm = "local"
    """With several processes: the student's batch statistics are of each one's images, or of all."""
    rank_timeout_s: float = 600.0
    """With several processes: seconds after which one that does not answer ends the run."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"\w[\w.+-]*", self.recipe) is not None,
            f"recipe is {self.recipe!r}: it names the run's folder, give letters, digits, dots and dashes",
        )
        method = methods.get(self.method, **self.method_options)
        require(
            self.teacher is not None or not method.needs_teacher,
            f"method {self.method} needs a teacher: set teacher.name and teacher.checkpoint",
        )
        method.check_micro_batch(self.optim.micro_batch)
        if self.teacher is not None:
            self.teacher.policy.check(method.through_teacher, self.method)
        require_choice("layout", self.layout, Layout)
        for name in ("log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: it must be 1 or more")
        require(self.teacher_check >= 0, f"teacher_check is {self.teacher_check}: it must be 0 or more")
        require_choice("on_nonfinite", self.on_nonfinite, OnNonfinite)
        require_choice("batch_norm", self.batch_norm, BatchNorm)
        require(
            0 < self.rank_timeout_s < math.inf,
            f"rank_timeout_s is {self.rank_timeout_s}: it must be a positive number of seconds",
        )
        require(
            self.early_stop_epochs is None or self.data.validation_size > 0,
            "early stopping needs a validation split: set data.validation_size",
        )
        require(
            self.early_stop_epochs is None or self.early_stop_epochs >= self.evaluation.every_epochs,
            f"early_stop_epochs is {self.early_stop_epochs}, fewer than evaluation.every_epochs "
            f"({self.evaluation.every_epochs}): the run would stop before it is measured",
        )
