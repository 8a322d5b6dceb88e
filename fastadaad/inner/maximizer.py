"""x_natural -> x_adv: the projected search for the point where a method's inner objective is largest."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastadaad import methods, ops
from fastadaad.config import InnerConfig, Layout, Mode, Precision, PrecisionConfig, Start, TeacherPolicy, ThreatModel
from fastadaad.inner.caller import bare, check_devices, check_networks, device_type, uncompiled, usable
from fastadaad.inner.checks import check_batch, check_first_call
from fastadaad.inner.folded_cache import Form, inner_network
from fastadaad.inner.step import Search, Steps
from fastadaad.inner.teacher_policies import USES, first_interval
from fastadaad.runtime.cuda_graph import CapturedCall
from fastadaad.runtime.distributed import Processes
from fastadaad.runtime.precision import gradient_scale, tensor_cores

# Numbers that each of several processes draws for the start of one step, at most: 512 MiB. Then it does not matter how
# many they are. Beyond it they draw for their own images, each the same numbers.
MAX_COMMON_DRAW = 2**27

# Standard deviation of the Gaussian start, in pixel units: the authors' program.
GAUSSIAN_START_SCALE = 0.001


@contextmanager
def frozen(*networks: nn.Module, evaluation: bool = True) -> Iterator[None]:
    """No parameter of `networks` requires a gradient inside; with `evaluation`, every module is in eval mode.

    Each module's own mode and each parameter's own `requires_grad` come back afterwards, also after an exception.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    parameters = [
        (parameter, parameter.requires_grad)
        for network in networks
        for parameter in network.parameters()
        if not parameter.is_inference()  # its requires_grad cannot come back, and no gradient reaches it
    ]
    try:
        for module, _ in modes:
            module.training = module.training and not evaluation
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)


def start_point(
    x_natural: Tensor,
    start: Start,
    inner: InnerConfig,
    generator: torch.Generator | None = None,
    processes: Processes | None = None,
) -> Tensor:
    """x_adv before the first step, fp32 [B, C, H, W], for each start of METHODS' table.

    gaussian: x_natural + 0.001 N(0, 1), not clipped, as the authors leave it (each step clips).
    uniform: a uniformly drawn point of the ball, clipped to [lower, upper].
    natural: x_natural itself.

    With several processes each takes its rows of a draw for the images of all, from equal generators.
    """
    if start == "natural":
        return x_natural.clone()
    processes = _drawing_together(x_natural, processes)
    x_adv = torch.empty_like(x_natural)
    drawn = x_natural.new_empty(len(x_natural) * processes.count, *x_natural.shape[1:])
    if start == "gaussian":
        noise = drawn.normal_(generator=generator)[processes.rank :: processes.count]
        return ops.random_start_(x_adv, x_natural, noise, GAUSSIAN_START_SCALE)
    noise = uniform_noise(drawn, inner.threat_model, generator)[processes.rank :: processes.count]
    return ops.random_start_(x_adv, x_natural, noise, inner.threat_model.epsilon, inner.lower, inner.upper)


def _drawing_together(x_natural: Tensor, processes: Processes | None) -> Processes:
    """Those who draw with this one; none where the draw for all of their images would be too large to be worth it."""
    if processes is None or x_natural.numel() * processes.count > MAX_COMMON_DRAW:
        return Processes()
    return processes


def uniform_noise(x: Tensor, threat_model: ThreatModel, generator: torch.Generator | None) -> Tensor:
    """Points drawn uniformly from the unit ball of the threat model's norm, shaped as x [B, C, H, W]."""
    noise = x.new_empty(x.shape)
    if threat_model.norm == "linf":
        return noise.uniform_(-1, 1, generator=generator)
    # Uniform in a ball of d dimensions: a uniform direction, and a radius distributed as u^(1/d).
    direction = noise.normal_(generator=generator).flatten(1)
    radius = x.new_empty(len(x), 1).uniform_(generator=generator) ** (1 / max(direction.shape[1], 1))
    return (direction * (radius / direction.norm(dim=1, keepdim=True))).view(x.shape)


def drawing_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """The generator that draws on a CUDA device where `generator` is given or, as None, torch's own."""
    return generator or torch.cuda.default_generators[device.index]


def resolve_mode(mode: Mode, device_type: str) -> Mode:
    """`auto` as what it stands for: compiled on CUDA; eager elsewhere, where compiling takes minutes.

    Raises ValueError for an unknown mode, or for `graph` where there is no CUDA device.
    """
    if mode not in ("eager", "compiled", "graph", "auto"):
        raise ValueError(f"mode is {mode!r}: choose eager, compiled, graph or auto")
    if mode == "graph" and device_type != "cuda":
        raise ValueError(f"mode graph needs a CUDA device and the student is on {device_type}: set mode=compiled")
    return mode if mode != "auto" else ("compiled" if device_type == "cuda" else "eager")


class InnerResult(NamedTuple):
    """What a search leaves behind."""

    x_adv: Tensor
    """[B, C, H, W], without gradient."""
    teacher_logits_natural: Tensor | None
    """T(x_natural) [B, N] where the objective needed it, for the outer loss to reuse."""
    teacher_logits_assumed: Tensor | None
    """What a teacher policy took for T(x_adv) [B, N]; None: the policy is exact."""

    def clone(self) -> "InnerResult":
        """The same in tensors of its own."""
        x_adv, *others = self
        return InnerResult(x_adv.clone(), *(None if logits is None else logits.clone() for logits in others))


class InnerMaximizer:
    """x_natural [B, C, H, W] fp32 in [0, 1] -> x_adv, for any networks that return logits [B, N].

    One backward pass per step, seeded with the analytic gradients of the logits; no weight gradients, no tape through
    the loss, no host synchronisation. The loop runs on folded twins of both networks (folding.py), whose own modes,
    `.grad` and `requires_grad` it does not touch; a network that cannot be folded runs frozen, and is the same
    afterwards. mode and `compile_options` as in Distiller; the attribute `mode` tells which it became.

    teacher_policy: how often the teacher is asked; `asking_interval` is the number of steps from one time to the next
    and may be changed between searches. precision: the arithmetic of each network. layout: that of the convolutions;
    `auto` measures once per machine and network. processes: those that search on shares of the same batches, where
    process r of n has its rows r, r + n, ...: then they start where one process would.

    A network may come in the wrapper of DistributedDataParallel or torch.compile, which the loop leaves out. The caller
    may be in any grad mode, in inference mode or under autocast, where the networks compute in its dtype, the pixels'
    convolution too: `precision` keeps that one in fp32. Nothing is moved between devices.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        method: str | methods.Method = "adaad",
        inner: InnerConfig | None = None,
        teacher_policy: TeacherPolicy | None = None,
        precision: PrecisionConfig | None = None,
        layout: Layout = "auto",
        mode: Mode = "eager",
        compile_options: dict | None = None,
        processes: Processes | None = None,
    ) -> None:
        check_networks(student, teacher)
        self.mode = resolve_mode(mode, device_type(student))
        self.method = methods.get(method) if isinstance(method, str) else method
        self.inner, self.processes = inner or InnerConfig(), processes
        self.teacher_policy = teacher_policy or TeacherPolicy()
        self.precision, self.layout = precision or PrecisionConfig(), layout
        self.student, self.teacher = bare(student), None if teacher is None else bare(teacher)
        self.method.require_teacher(teacher)
        self.teacher_policy.check(self.method.objective.through_teacher, self.method.name)
        self._check_student_eval()
        self.asking_interval = first_interval(self.teacher_policy, self.inner.num_steps)
        self._steps = Steps(self.mode, compile_options or {})
        self._captured: dict[tuple, CapturedCall] = {}

    def _check_student_eval(self) -> None:
        if self.inner.student_eval:
            return
        if self.mode != "eager":
            raise ValueError(
                f"student_eval is False, and mode {self.mode} cannot update batch-norm inside: set mode=eager"
            )
        if self.precision.student in ("bf16", "fp16"):
            raise ValueError(
                f"student_eval is False, and a student in train mode is not folded: precision.student cannot be "
                f"{self.precision.student}, set it to fp32"
            )

    def __call__(
        self, x_natural: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The adversarial images, without gradient. `generator` draws the start; None: torch's own for the device.

        Raises ValueError where the method needs labels [B] and gets None, and for tensors on different devices.
        """
        return self.search(x_natural, labels, generator=generator).x_adv

    def search(
        self,
        x_natural: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        replay: bool = True,
    ) -> InnerResult:
        """As the call itself, with what the search knows beside x_adv. In mode graph the next search overwrites it.

        replay False: in mode graph, for a caller who captures more than the search.
        """
        return uncompiled(self._search)(x_natural, labels, generator, replay)

    def _search(
        self, x_natural: Tensor, labels: Tensor | None, generator: torch.Generator | None, replay: bool
    ) -> InnerResult:
        # Whatever grad mode the caller is in, the loop needs its own.
        with torch.inference_mode(False), torch.enable_grad():
            x_natural, labels = self.admit(x_natural, labels)
            with tensor_cores(self.precision, x_natural.device), self.networks(x_natural) as networks:
                check_first_call(self, networks, x_natural, labels)
                maximize = self._replay if replay and self.mode == "graph" else self._maximize
                return maximize(networks, x_natural.detach(), labels, generator)

    def admit(self, x_natural: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The batch as a search and a loss can use it, outside of inference mode. Errors as in a call."""
        self.method.require_labels(labels)
        check_batch(x_natural, labels if self.method.needs_labels else None)
        check_devices(self.student, self.teacher, x_natural, labels)
        return usable(x_natural), None if labels is None else usable(labels)

    @contextmanager
    def networks(self, x_natural: Tensor) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Student and teacher as the loop runs them: twins with the present weights, or themselves, frozen inside."""
        student, teacher = self.student, self.teacher_network(x_natural)
        if self.inner.student_eval:
            student = inner_network(student, x_natural, self.form(self.precision.student))
        with (
            frozen(*[self.teacher] if teacher is not None and teacher is self.teacher else []),
            frozen(*[student] if student is self.student else [], evaluation=self.inner.student_eval),
        ):
            yield student, teacher

    def form(self, precision: Precision) -> Form:
        """What a twin of this loop is made to be."""
        return Form(precision=precision, layout=self.layout, compiled=self.mode != "eager")

    def teacher_network(self, x: Tensor) -> nn.Module | None:
        """The teacher as the loop runs it, for batches such as x [B, C, H, W]: its twin, or itself where there is none.

        The caller freezes it.
        """
        if self.teacher is None:
            return None
        return inner_network(self.teacher, x, self.form(self.precision.teacher))

    def _maximize(
        self,
        networks: tuple[nn.Module, nn.Module | None],
        x_natural: Tensor,
        labels: Tensor | None,
        generator: torch.Generator | None,
    ) -> InnerResult:
        inner, objective = self.inner, self.method.objective
        use = USES[self.teacher_policy.kind]
        student, teacher = networks
        with torch.no_grad():
            target = objective.fixed_target(student, teacher, x_natural, labels)
        x_adv = start_point(x_natural, inner.start or self.method.start, inner, generator, self.processes)
        search = Search(
            networks=(student, teacher) if objective.through_teacher and teacher is not None else (student,),
            objective=objective,
            inner=inner,
            top=self.teacher_policy.top,
            gradient_scale=gradient_scale(self.precision),
        )
        kept = None
        for step in range(inner.num_steps):
            if step % self.asking_interval == 0:
                kept = self._steps.ask(use, search, x_adv, x_natural, target)
            else:
                self._steps.reuse(use, search, x_adv, x_natural, target, kept)
        known = objective.teacher_logits_natural
        return InnerResult(
            x_adv=x_adv,
            teacher_logits_natural=None if known is None else known(target),
            teacher_logits_assumed=None if kept is None else use.teacher_logits(kept, x_adv),
        )

    def _replay(
        self,
        networks: tuple[nn.Module, nn.Module | None],
        x_natural: Tensor,
        labels: Tensor | None,
        generator: torch.Generator | None,
    ) -> InnerResult:
        """As _maximize, captured at the first call for the networks, the generator and the interval."""
        generator = drawing_generator(generator, x_natural.device)
        key = (*map(id, networks), id(generator), self.asking_interval)
        if key not in self._captured:

            def maximize(x_natural: Tensor, *labels: Tensor) -> InnerResult:
                return self._maximize(networks, x_natural, labels[0] if labels else None, generator)

            self._captured[key] = CapturedCall(maximize, generators=[generator])
        return self._captured[key](x_natural, *[] if labels is None else [labels])


def adaad_inner_loss(
    model: nn.Module,
    teacher_model: nn.Module,
    x_natural: Tensor,
    step_size: float = 2 / 255,
    steps: int = 10,
    epsilon: float = 8 / 255,
    BN_eval: bool = True,  # noqa: N803 - the name existing AdaAD programs use
    random_init: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
) -> Tensor:
    """Drop-in for the inner loop of existing AdaAD programs: x_natural [B, C, H, W] -> x_adv.

    The names are theirs; the mathematics is InnerMaximizer's with method adaad. The networks come back in the modes
    they were in, where the authors' function leaves `model` in train mode and `teacher_model` in eval mode: it warns
    where that is another. Raises ValueError for radii that make no sense (see InnerConfig).
    """
    for name, network, mode in (("model", model, "train"), ("teacher_model", teacher_model, "eval")):
        if isinstance(network, nn.Module) and network.training != (mode == "train"):
            warnings.warn(
                f"{name} is not in {mode} mode and is not put into it: call {name}.{mode}() before the loss",
                stacklevel=2,
            )
    inner = InnerConfig(
        threat_model=ThreatModel(norm="linf", epsilon=epsilon),
        step_size=step_size,
        num_steps=steps,
        start="gaussian" if random_init else "natural",
        student_eval=BN_eval,
        lower=clip_min,
        upper=clip_max,
    )
    return InnerMaximizer(model, teacher_model, method="adaad", inner=inner)(x_natural)
