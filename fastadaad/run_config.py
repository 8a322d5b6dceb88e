"""Settings of a run, as frozen keyword-only dataclasses that check themselves."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from fastadaad import methods
from fastadaad.config import (
    AutoAugment,
    AwpForm,
    BatchNorm,
    CompilePreset,
    Engine,
    InnerConfig,
    Layout,
    Mode,
    OnError,
    OnNonfinite,
    Precision,
    PrecisionConfig,
    TeacherPolicy,
    ThreatModel,
    TrackerName,
    check_grad_clip,
    check_numbers,
    require,
    require_choice,
)
from fastadaad.evaluation.attack_names import check_attack_name

ScheduleName = Literal["constant", "piecewise", "cosine", "one-cycle"]
OptimizerName = Literal["sgd", "adam", "adamw", "lars", "lamb"]
OptimizerBackend = Literal["auto", "foreach"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data set, batches, reading and augmentation."""

    name: str
    """Name of the data set, a key of fastadaad.data.DATASETS."""
    root: str | None = None
    """Folder of the files. Default: $FASTADAAD_DATA, or ~/.cache/fastadaad if it is not set."""
    download: bool = False
    """Fetch missing files from the network."""
    num_samples: int | None = None
    """Size of a class-balanced subset to train on. Default: all images."""
    validation_size: int = 1024
    """Number of images held out of the training set, on which the best epoch is chosen."""
    batch_size: int = 128
    """Images per step, over all ranks."""
    padding: int = 0
    """Black pixels on each side before a random crop."""
    flip: bool = False
    """Random horizontal flips."""
    cutout: int = 0
    """Side in pixels of a black square at a random position; 0: no square."""
    label_smoothing: float = 0.0
    """Fraction of each training label that is spread evenly over all classes, such as 0.1; 0: no smoothing."""
    mixup: float = 0.0
    """alpha of mixup, such as 0.2: two images and their labels are averaged by weights from Beta(alpha, alpha).

    0: no mixup. Labels of training batches become distributions, which the methods pgd-at, trades, ard and akd take.
    """
    cutmix: float = 0.0
    """alpha of CutMix, such as 1.0: a box of one image is replaced by that of another; 0: no CutMix.

    With mixup too, each batch gets one of them, with probability 1/2.
    """
    image_size: int | None = None
    """Side in pixels to which image files are resized."""
    center_share: float | None = None
    """Side of the centre crop of an image file, as a fraction of its shorter side.

    Default: 1, and 0.875 for imagenet. Unused if images are cropped at random.
    """
    min_crop_scale: float = 1.0
    """Least area of a random resized crop of an image file, as a fraction such as 0.08; 1: centre crops."""
    color_jitter: float = 0.0
    """Strength j of colour jitter of image files: brightness, contrast, saturation are scaled by [1 - j, 1 + j]."""
    auto_augment: AutoAugment | None = None
    """randaugment: two random operations of strength 9 of 30; trivialaugment: one, of random strength. Default: none.

    Needs engine=torch.
    """
    extra_images: str | None = None
    """An .npz file with additional training images, such as generated ones; the length of an epoch does not change."""
    extra_share: float = 0.7
    """Fraction of each batch that comes from extra_images."""
    engine: Engine = "auto"
    """auto: resident for arrays, dali for image files, or torch if DALI is not installed."""
    num_workers: int = 2
    """Number of threads of dali, or of processes of torch."""
    on_error: OnError = "raise"
    """Treatment of an image file that cannot be decoded: raise, or skip it and list it at the end."""

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("batch_size", "num_samples", "image_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}: it must be 1 or more")
        for name in ("padding", "cutout", "validation_size", "num_workers"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it must be 0 or more")
        require(
            0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}: it is a fraction, in [0, 1)"
        )
        for name in ("mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("min_crop_scale", "center_share"):
            share = getattr(self, name)
            require(share is None or 0 < share <= 1, f"{name} is {share}: it is a fraction, in (0, 1]")
        require(0 <= self.color_jitter <= 1, f"color_jitter is {self.color_jitter}: it must lie in [0, 1]")
        require(0 < self.extra_share < 1, f"extra_share is {self.extra_share}: it is a fraction of a batch, in (0, 1)")
        require_choice("engine", self.engine, Engine)
        if self.auto_augment is not None:
            require_choice("auto_augment", self.auto_augment, AutoAugment)
        require(
            self.auto_augment is None or self.engine == "torch",
            f"auto_augment runs in the torch engine alone, and data.engine is {self.engine}: set data.engine=torch",
        )
        require_choice("on_error", self.on_error, OnError)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network by name, and its weights if it is already trained."""

    name: str
    """Name of the network, such as resnet18, or timm/NAME for a network of timm."""
    checkpoint: str | None = None
    """File of weights, or `shipped:NAME` for weights of the package. Default: random weights."""
    prefix: str | None = None
    """Prefix or entry of the network in a file of several, such as student. Default: the file's only network."""
    normalize: bool = False
    """Normalise pixels inside the network by the mean and standard deviation of the training images."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, subtracted from the pixels inside the network, if a file's program has it and not the file.
    """
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, by which the pixels are divided inside the network; with mean."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require((self.mean is None) == (self.std is None), f"{self.name} has one of mean and std: give both")
        require(self.mean is None or not self.normalize, f"{self.name} has mean and normalize: set normalize=false")
        require(self.std is None or min(self.std, default=0) > 0, f"std is {self.std}: its values must be positive")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """Teacher, and the interval at which the inner loop queries it."""

    policy: TeacherPolicy = field(default_factory=TeacherPolicy)
    """Interval of the queries, and the substitute in between. Default: exact, a query in every step."""
    beside: str | None = None
    """Weights file of a second teacher, recognised by its tensors: the teacher is the mixture of both."""
    beside_weight: float | None = None
    """Weight of the second teacher's probabilities in the mixture. Default: 1/3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.beside_weight
        require(weight is None or 0 < weight < 1, f"beside_weight is {weight}: it must lie between 0 and 1")
        require(weight is None or self.beside is not None, "beside_weight needs a second teacher: set teacher.beside")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser, learning-rate schedule, and averaged or perturbed weights, which combine with any method."""

    epochs: int
    """Number of passes over the training images."""
    optimizer: OptimizerName = "sgd"
    """sgd, adam or adamw, or lars and lamb for batches of thousands.

    adam and adamw need learning rates of about 0.001, lamb of about 0.01. lars multiplies the learning rate of a weight
    by 0.001 |w| / |gradient|, but not that of biases and batch-norm: it needs learning rates of about 1 and more, with
    a warm-up.
    """
    optimizer_backend: OptimizerBackend = "auto"
    """Implementation of sgd, adam and adamw: torch's foreach one, or auto: its fused one if it supports all parameters.
    """
    learning_rate: float = 0.1
    """Learning rate after the warm-up, before the schedule lowers it."""
    base_batch_size: int | None = None
    """Batch size of learning_rate, which is scaled by data.batch_size / base_batch_size. Default: no scaling."""
    micro_batch: int | None = None
    """Images that go through the networks at a time; gradients are summed before the update. Default: the batch.

    Batch-norm in train mode then takes its statistics from each micro-batch.
    """
    momentum: float = 0.9
    """Momentum of sgd and lars, beta_1 of adam, adamw and lamb."""
    weight_decay: float = 5e-4
    """Weight decay, in adamw decoupled from the gradient; lars and lamb exempt biases and batch-norm."""
    nesterov: bool = False
    """Use Nesterov momentum, with sgd only."""
    grad_clip: float | None = None
    """Largest norm of the gradient of all weights together; a longer one is shortened before the update.

    Default: no clipping.
    """
    schedule: ScheduleName = "piecewise"
    """Course of the learning rate after the warm-up.

    piecewise: divided by 10 at each of `milestones`; cosine: half a cosine down to 0; one-cycle: straight down to 0.
    """
    milestones: tuple[float, ...] = ()
    """Points at which the piecewise schedule divides the learning rate by 10, as fractions of the run."""
    warmup: float = 0.0
    """Fraction of the run in which the learning rate rises linearly from 0; for one-cycle the rising part."""
    ema_decay: float = 0.0
    """EMA: decay per step of the averaged student that is evaluated and saved; 0: no EMA."""
    swa_begin: float | None = None
    """SWA: fraction of the run after which the students at the end of each epoch are averaged. Default: no SWA.

    The averaged student is evaluated and saved as soon as it exists.
    """
    awp_gamma: float = 0.0
    """AWP: norm of the perturbation of each weight relative to the norm of the weight; 0: no AWP (paper: 0.005)."""
    awp_begin: int = 0
    """First epoch with AWP."""
    awp_form: AwpForm | None = None
    """sam or asam: SAM or ASAM with the radius awp_gamma (SAM's paper: 0.05; ASAM's: 0.5). Default: awp."""

    def __post_init__(self) -> None:
        check_grad_clip(self.grad_clip)
        check_numbers(self)
        require(self.epochs >= 1, f"epochs is {self.epochs}: it must be 1 or more")
        require_choice("optimizer", self.optimizer, OptimizerName)
        require_choice("optimizer_backend", self.optimizer_backend, OptimizerBackend)
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}: it must be positive")
        require(0 <= self.momentum < 1, f"momentum is {self.momentum}: it must lie in [0, 1)")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: it must be 0 or more")
        for name, size in (("base_batch_size", self.base_batch_size), ("micro_batch", self.micro_batch)):
            require(size is None or size >= 1, f"{name} is {size}: it must be 1 or more, or left out")
        require(0 <= self.warmup < 1, f"warmup is {self.warmup}: it is a fraction of the run, in [0, 1)")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: it must lie in [0, 1)")
        require(
            self.swa_begin is None or 0 <= self.swa_begin < 1,
            f"swa_begin is {self.swa_begin}: it is a fraction of the run, in [0, 1)",
        )
        require(
            self.swa_begin is None or not self.ema_decay,
            "ema_decay and swa_begin are two ways to average: set optim.ema_decay=0, or optim.swa_begin=null",
        )
        require(self.awp_gamma >= 0, f"awp_gamma is {self.awp_gamma}: it must be 0 or more")
        require_choice("awp_form", self.awp_form or "awp", AwpForm)
        require(
            self.awp_form is None or self.awp_gamma > 0,
            f"awp_form {self.awp_form} has no radius: set optim.awp_gamma, such as 0.05 for sam",
        )
        require(self.awp_begin >= 0, f"awp_begin is {self.awp_begin}: it must be 0 or more")
        require_choice("schedule", self.schedule, ScheduleName)
        outside = [milestone for milestone in self.milestones if not 0 < milestone < 1]
        require(not outside, f"milestones {outside} are not fractions of the run: write 0.5 for half-way")
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
    """Evaluation of the student: after each epoch on the validation split, at the end on the test set."""

    threat_model: ThreatModel = field(default_factory=ThreatModel)
    """Norm and radius of all attacks. Default: linf with radius 8/255."""
    attacks: tuple[str, ...] = ("natural", "fgsm", "pgd20")
    """Attacks on the test set; natural: accuracy on natural images."""
    restarts: int = 1
    """Number of restarts of an attack with a random start; an image counts as robust if it survives all."""
    batch_size: int = 500
    """Number of images per batch of an evaluation, in all attacks. Larger images on a GPU may need fewer."""
    mode: Mode = "auto"
    """Execution of the gradient attacks on the test set: eager, compiled, or auto: compiled if they are long enough."""
    precision: Precision = "auto"
    """Arithmetic of the search for adversarial images of the test set; the student classifies them in fp32."""
    validation_attack: str = "pgd10"
    """Attack on the validation split, which decides the best epoch."""
    every_epochs: int = 1
    """Number of epochs between two evaluations on the validation split; the last epoch is always evaluated."""
    num_images: int | None = None
    """Number of test images: the first ones, or evenly spaced ones of a set sorted by class. Default: all."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require(1 <= self.restarts <= 1000, f"restarts is {self.restarts}: it must be 1 to 1000")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}: it must be 1 or more")
        require(self.every_epochs >= 1, f"every_epochs is {self.every_epochs}: it must be 1 or more")
        require(
            self.num_images is None or self.num_images >= 1,
            f"num_images is {self.num_images}: give 1 or more, or leave it out for all images",
        )
        require(
            self.mode in ("eager", "compiled", "auto"),
            f"evaluation.mode is {self.mode!r}: choose eager, compiled or auto",
        )
        require_choice("evaluation.precision", self.precision, Precision)
        require(len(self.attacks) > 0, "attacks is empty: give at least one, such as natural")
        for attack in (*self.attacks, self.validation_attack):
            check_attack_name(attack)  # a misspelt name must fail before hours of training


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Complete configuration of one training run."""

    recipe: str
    """Name of the recipe, which is part of the name of the run's folder."""
    data: DataConfig
    """Data set, batches and augmentation."""
    student: ModelConfig
    """Network to train."""
    teacher: TeacherConfig | None = None
    """Teacher, or None for a method without one."""
    method: str = "adaad"
    """Row of the table of methods, by name."""
    method_options: dict[str, Any] = field(default_factory=dict)
    """Options of the method by name that differ from its row (see methods/options.py)."""
    inner: InnerConfig = field(default_factory=InnerConfig)
    """Threat model, step size and number of steps of the inner maximisation."""
    optim: OptimConfig
    """Optimiser, schedule and length of the run."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Attacks on the validation split and on the test set."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Arithmetic of student and teacher."""
    seed: int = 0
    """Seed of initial weights, validation split, order and augmentation of images, random starts and attacks."""
    device: str = "auto"
    """Device by torch's name, such as cuda:1 or cpu; auto: the GPU if there is one, otherwise the CPU."""
    mode: Mode = "auto"
    """Execution of a step, as in Distiller.

    auto: graph if the self-check of captured steps passed on this machine, else compiled on CUDA. On the CPU a run that
    is long enough to gain by it is compiled, unless it is deterministic.
    """
    compile_preset: CompilePreset = "default"
    """Options of torch.compile in the compiled modes; long: choose kernels by timing them, which takes minutes."""
    layout: Layout = "auto"
    """Memory layout of the folded copies' convolutions; auto: measured once per machine and network."""
    fold: bool = True
    """Run searches and attacks on folded copies of the networks; false: on the networks, slower, in fp32 or tf32."""
    log_every: int = 20
    """Number of steps between two reads of the metrics from the device."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that get the metrics of each epoch beside TensorBoard: wandb, mlflow."""
    early_stop_epochs: int | None = None
    """Stop if the robust accuracy on the validation split has not risen for this number of epochs. Default: never."""
    checkpoint_every: int = 200
    """Number of steps between two checkpoints; there is one at the end of each epoch as well."""
    deterministic: bool = False
    """Use only algorithms that give the same bits in each run, and no measured layout."""
    on_nonfinite: OnNonfinite = "stop"
    """Treatment of NaN or inf in a step: stop the run, or skip the update."""
    teacher_check: int = 256
    """Number of images on which the teacher is measured before the training."""
    batch_norm: BatchNorm = "local"
    """Batch statistics of the student: of each rank's images (local), or of the images of all ranks (sync)."""
    rank_timeout_s: float = 600.0
    """Seconds without an answer after which a rank ends the run."""

    @cached_property
    def method_row(self) -> methods.Method:
        """Row of the table of methods, with the options of this run."""
        return methods.get(self.method, **self.method_options)

    def __post_init__(self) -> None:
        check_numbers(self)
        require(
            re.fullmatch(r"\w[\w.+-]*", self.recipe) is not None,
            f"recipe is {self.recipe!r}: it names the run's folder, give letters, digits, dots and dashes",
        )
        method = self.method_row
        require(
            self.teacher is not None or not method.needs_teacher,
            f"method {self.method} needs a teacher: set teacher.name and teacher.checkpoint",
        )
        method.check_micro_batch(self.optim.micro_batch)
        self._check_labels(method)
        self.inner.check_mode(self.mode)
        if self.teacher is not None:
            self.teacher.policy.check(method.through_teacher, self.method)
        require_choice("layout", self.layout, Layout)
        require_choice("compile_preset", self.compile_preset, CompilePreset)
        require(
            self.compile_preset == "default" or not self.deterministic,
            f"compile_preset {self.compile_preset} chooses kernels by timing them, and deterministic runs may not: set "
            "compile_preset=default",
        )
        for name in ("log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in self.trackers:
            require_choice("a tracker", name, TrackerName)
        require(self.teacher_check >= 0, f"teacher_check is {self.teacher_check}: it must be 0 or more")
        require_choice("on_nonfinite", self.on_nonfinite, OnNonfinite)
        require_choice("batch_norm", self.batch_norm, BatchNorm)
        require(
            self.rank_timeout_s > 0,
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

    def _check_labels(self, method: methods.Method) -> None:
        """Raises ValueError if the method cannot take the labels that the data settings make."""
        data = self.data
        for name in ("label_smoothing", "mixup", "cutmix"):
            require(
                not getattr(data, name) or not method.needs_labels or method.takes_soft_labels,
                f"data.{name} makes label distributions and method {self.method} needs the class of each image: set "
                f"data.{name}=0, or choose another method, such as trades",
            )
        require(
            not data.label_smoothing or method.needs_labels,
            f"data.label_smoothing is {data.label_smoothing}: method {self.method} uses no labels, set it to 0",
        )
