"""x_natural -> x_adv: the projected search for the point at which a method's inner objective is largest."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import (
    InnerConfig,
    Layout,
    Mode,
    Precision,
    PrecisionConfig,
    TeacherPolicy,
    require_bool,
    require_choice,
    require_type,
)
from fastadaad.inner.caller import (
    bare,
    check_devices,
    check_generator,
    check_networks,
    device_of,
    device_type,
    usable,
)
from fastadaad.inner.checks import check_batch, check_first_call
from fastadaad.inner.folded_cache import Form, folded_copy
from fastadaad.inner.frozen import frozen, one_thread
from fastadaad.inner.search import Search, tape_vjp, traceable_vjp
from fastadaad.inner.start import drawing_generator, start_point
from fastadaad.inner.teacher_policies import POLICIES, first_interval
from fastadaad.methods.outer_batch import are_soft
from fastadaad.runtime.compile import one_graph
from fastadaad.runtime.cuda_graph import CapturedCall
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.precision import gradient_scale, is_low, resolved, tensor_cores, uses_tf32
from fastadaad.runtime.text import pixels_text

Networks = tuple[nn.Module, nn.Module | None]

# CUDA graphs of a search that are kept, such as those of the intervals of an adaptive teacher policy.
MAX_CAPTURES = 4


def resolve_mode(mode: Mode, device_type: str) -> Mode:
    """Replaces `auto` by `compiled` on CUDA and `eager` elsewhere: on a CPU compiling takes minutes.

    Raises:
        ValueError: Unknown mode, or `graph` without a CUDA device.
    """
    if mode not in ("eager", "compiled", "graph", "auto"):
        raise ValueError(f"mode is {mode!r}: choose eager, compiled, graph or auto")
    if mode == "graph" and device_type != "cuda":
        raise ValueError(f"mode graph needs a CUDA device and the student is on {device_type}: set mode=compiled")
    return mode if mode != "auto" else ("compiled" if device_type == "cuda" else "eager")


class InnerResult(NamedTuple):
    """Result of a search."""

    x_adv: Tensor
    """[B, C, H, W], without gradient."""
    teacher_logits_natural: Tensor | None
    """T(x_natural) [B, N] if the objective needed it, for the outer loss to reuse."""
    teacher_logits_assumed: Tensor | None
    """The teacher policy's approximation of T(x_adv) [B, N]; None: the policy is exact."""

    def clone(self) -> "InnerResult":
        """Returns a copy in new tensors."""
        x_adv, *others = self
        return InnerResult(x_adv.clone(), *(None if logits is None else logits.clone() for logits in others))


class InnerMaximizer:
    """Search for adversarial images: x_natural [B, C, H, W] fp32 in [0, 1] -> x_adv, for networks that return logits.

    Each step takes one backward pass, seeded with the analytic gradients of the logits: no weight gradients, no tape
    through the loss, no host synchronisation. The loop runs on folded copies of both networks (inner/folding.py) and
    does not touch the mode, `.grad` and `requires_grad` of the networks. A network that cannot be folded runs frozen,
    and is restored afterwards.

    A network may be wrapped by DistributedDataParallel or torch.compile; the loop runs on the network inside. The
    caller may be in any grad mode, in inference mode or under autocast. Under autocast the networks compute in its
    dtype, the convolution of the pixels too, which `precision` would keep in fp32. Nothing is moved between devices.

    Args:
        student: Network that returns logits [B, N].
        teacher: Teacher with the same classes, or None for a method without one.
        method: Row of the table of methods, by name or as a Method.
        inner: Threat model, step size and number of steps; a dict of settings or an InnerConfig. Default: 10 steps of
            2/255 in linf 8/255.
        teacher_policy: Interval of the teacher queries, such as `"refreshed(every=5)"`. Default: exact.
        precision: Arithmetic of each network, a PrecisionConfig or one string for both. Default: auto, which is bf16 on
            a CUDA device with tensor cores, else fp32; a network that cannot be folded then runs in TF32. The attribute
            `precision` holds the precision in use.
        layout: Memory layout of the convolutions; `auto` measures once per machine and network.
        fold: Run on folded copies of the networks (docs/folding.md); False: on the networks themselves, in fp32 or
            tf32.
        mode: `eager`, `compiled`, `graph`, or `auto`: compiled on CUDA, else eager. The attribute `mode` holds the mode
            in use.
        compile_options: Keyword arguments of torch.compile.
        process_group: Ranks that search on shards of the same batches: rank r of n has rows r, r + n, ... Their starts
            are then the starts of a single process.

    Attributes:
        query_interval: Number of steps between two queries of the teacher; may be changed between searches.
        sets_tf32: True: the search switches TF32 on or off by its precision. False: it leaves torch's switches as they
            are.
        only_warns_of_pixels: True: the first call warns of pixels out of range. False: it raises.

    Raises:
        ValueError: Settings that contradict each other, or a network that is not a torch.nn.Module.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        method: str | methods.Method = "adaad",
        inner: InnerConfig | dict[str, Any] | None = None,
        teacher_policy: TeacherPolicy | str | None = None,
        precision: PrecisionConfig | str | None = None,
        layout: Layout = "auto",
        fold: bool = True,
        mode: Mode = "auto",
        compile_options: dict[str, Any] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_networks(student, teacher)
        require_choice("layout", layout, Layout)
        require_bool("fold", fold)
        require_type("method", method, str | methods.Method, "a name such as adaad, or a Method")
        require_type("compile_options", compile_options or {}, dict, "a dict of keyword arguments of torch.compile")
        require_type("process_group", process_group or ProcessGroup(), ProcessGroup, "current_process_group()")
        self.inner, self.process_group = InnerConfig.parse(inner), process_group
        # Batch-norm in train mode changes its statistics in every step of the search, which no compiled step does.
        self.mode = resolve_mode(mode if self.inner.student_eval or mode != "auto" else "eager", device_type(student))
        self.method = (methods.get(method) if isinstance(method, str) else method).resolved()
        self.teacher_policy = TeacherPolicy.parse(teacher_policy)
        self.layout, self.fold = layout, fold
        self._wanted_precision = PrecisionConfig.parse(precision)
        self.precision = resolved(
            self._wanted_precision,
            device_of(student),
            student_folds=fold and self.inner.student_eval,
            teacher_folds=fold,
        )
        self.student, self.teacher = bare(student), None if teacher is None else bare(teacher)
        self.method.require_teacher(teacher)
        self.teacher_policy.check(self.method.through_teacher, self.method.name)
        self._check_student_eval()
        self.sets_tf32, self.only_warns_of_pixels = True, False
        self.query_interval = first_interval(self.teacher_policy, self.inner.num_steps)
        self._policy = POLICIES[self.teacher_policy.kind]
        options = compile_options or {}
        if self.mode == "eager" or options.get("disable"):
            self._vjp, self._query, self._reuse = tape_vjp, self._policy.query, self._policy.reuse
        else:
            self._vjp = traceable_vjp
            if device_type(student) == "cuda":
                from fastadaad.runtime.epilogues import with_epilogues  # imports Inductor

                options = with_epilogues(options)
            # Each length of a step is compiled on its own.
            lengths = len(set(self.inner.step_factors or (1.0,)))
            options = {"recompile_limit": lengths * torch._dynamo.config.recompile_limit} | options
            pair = " and ".join(type(model).__name__ for model in (self.student, self.teacher) if model is not None)
            self._query, self._reuse = (
                one_graph(step, name=f"the inner step of {pair}", required=self.mode == "graph", **options)
                for step in (self._policy.query, self._policy.reuse)
            )
        self._captured: dict[tuple[Any, ...], CapturedCall] = {}

    def __repr__(self) -> str:
        teacher = "" if self.teacher is None else f" from {type(self.teacher).__name__}"
        epsilon, step_size = map(pixels_text, (self.inner.threat_model.epsilon, self.inner.step_size))
        return (
            f"InnerMaximizer({type(self.student).__name__}{teacher}, method={self.method.name}, mode={self.mode}, "
            f"norm={self.inner.threat_model.norm}, epsilon={epsilon}, "
            f"step_size={step_size}, num_steps={self.inner.num_steps}, policy={self.teacher_policy}, "
            f"precision={self.precision.student}/{self.precision.teacher})"
        )

    def _check_student_eval(self) -> None:
        self.inner.check_mode(self.mode)
        if not self.inner.student_eval and is_low(self.precision.student):
            raise ValueError(
                f"student_eval is False, and a student in train mode is not folded: precision.student cannot be "
                f"{self.precision.student}, set it to fp32, or student_eval to True"
            )

    def __call__(
        self, x_natural: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Searches the adversarial images.

        Args:
            x_natural: Natural images, fp32 [B, C, H, W] in [0, 1].
            labels: Class numbers, int64 [B], for methods that need them; label distributions, floats [B, N], for those
                that take them.
            generator: Random numbers of the start; default: torch's generator of the device.

        Returns:
            x_adv [B, C, H, W], without gradient.

        Raises:
            ValueError: Labels are needed and missing, tensors are on different devices, or values are out of range.
        """
        return self.search(x_natural, labels, generator=generator).x_adv

    def search(
        self,
        x_natural: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        x_start: Tensor | None = None,
        replay: bool = True,
    ) -> InnerResult:
        """Searches as a call does, and returns everything that the search knows. See __call__ for arguments and errors.

        Threads that share a network search one after another. In mode graph the next search overwrites the result.
        `replay=False` runs uncaptured in mode graph, for a caller that captures more than the search. `x_start`
        [B, C, H, W] is the first point, changed in place and uncaptured too; default: a drawn one.
        """
        if torch.compiler.is_compiling():
            # The caller's torch.compile would give student and teacher the same folded copy. Compiled calls inside the
            # search stay compiled.
            search = torch.compiler.disable(self.search)
            return search(x_natural, labels, generator=generator, x_start=x_start, replay=replay)
        check_generator(generator)
        # The loop needs a grad mode of its own.
        with one_thread(self.student, self.teacher), torch.inference_mode(False), torch.enable_grad():
            x_natural, labels = self.admit(x_natural, labels)
            arithmetic = tensor_cores(self.precision, x_natural.device) if self.sets_tf32 else nullcontext()
            with arithmetic, self.networks(x_natural) as networks:
                self._check_first_call(networks, x_natural, labels)
                if replay and self.mode == "graph" and x_start is None:
                    return self._replay(networks, x_natural.detach(), labels, generator)
                return self._maximize(networks, x_natural.detach(), labels, generator, x_start)

    def _check_first_call(self, networks: Networks, x_natural: Tensor, labels: Tensor | None) -> None:
        teacher = self.teacher if self.method.needs_teacher else None
        check_first_call(
            (self.student, teacher),
            networks,
            x_natural,
            labels if self.method.needs_labels else None,
            self.inner,
            only_warns_of_pixels=self.only_warns_of_pixels,
        )

    def admit(self, x_natural: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Checks a batch and returns it as tensors that autograd accepts. Errors as in __call__."""
        self.method.require_labels(labels)
        check_batch(x_natural, labels if self.method.needs_labels else None, soft=self.method.takes_soft_labels)
        check_devices(self.student, self.teacher, x_natural, labels)
        if labels is not None and are_soft(labels):
            labels = labels.detach().float()
        return usable(x_natural), None if labels is None else usable(labels)

    @contextmanager
    def networks(self, x_natural: Tensor) -> Iterator[Networks]:
        """Student and teacher of the loop: folded copies with the present weights, or the networks, frozen inside."""
        student, teacher = self.student, self.teacher_network(x_natural)
        if self.inner.student_eval:
            student = folded_copy(student, x_natural, self.form("student"))
        with (
            frozen(*[self.teacher] if teacher is not None and teacher is self.teacher else []),
            frozen(*[student] if student is self.student else [], evaluation=self.inner.student_eval),
        ):
            yield student, teacher

    @property
    def can_be_spot_checked(self) -> bool:
        """True if the search runs on folded copies in eval mode, and autograd can differentiate the networks too."""
        networks = [network for network in (self.student, self.teacher) if network is not None]
        tensors = [tensor for network in networks for tensor in chain(network.parameters(), network.buffers())]
        return self.fold and self.inner.student_eval and not any(tensor.is_inference() for tensor in tensors)

    def form(self, network: Literal["student", "teacher"]) -> Form:
        """Returns the form of the folded copy of one of the networks."""
        precision: Precision = getattr(self.precision, network)
        is_optional = is_low(precision) and getattr(self._wanted_precision, network) == "auto"
        return Form(
            precision=precision,
            layout=self.layout,
            fold=self.fold,
            compiled=self.mode != "eager",
            unfolded_precision=("tf32" if uses_tf32(self.precision) else "fp32") if is_optional else None,
        )

    def teacher_network(self, x: Tensor) -> nn.Module | None:
        """Returns the teacher's folded copy for batches like x [B, C, H, W], or the teacher if it cannot be folded.

        The caller freezes it.
        """
        if self.teacher is None:
            return None
        return folded_copy(self.teacher, x, self.form("teacher"))

    def new_search(self, networks: Networks, x_natural: Tensor, labels: Tensor | None) -> Search:
        """Returns the search on `networks` from x_natural, with the objective's target computed."""
        student, teacher = networks
        objective: Any = self.method.objective
        with torch.no_grad():
            target = objective.fixed_target(student, teacher, x_natural, labels)
        return Search(
            networks=(student, teacher) if self.method.through_teacher and teacher is not None else (student,),
            objective=objective,
            target=target,
            x_natural=x_natural,
            inner=self.inner,
            vjp=self._vjp,
            gradient_scale=gradient_scale(self.precision),
            top=self.teacher_policy.top,
        )

    def start_point(self, x_natural: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws x_adv before the first step."""
        start = self.inner.start or self.method.start
        return start_point(x_natural, start, self.inner, generator, self.process_group)

    def _maximize(
        self,
        networks: Networks,
        x_natural: Tensor,
        labels: Tensor | None,
        generator: torch.Generator | None,
        x_start: Tensor | None = None,
    ) -> InnerResult:
        search = self.new_search(networks, x_natural, labels)
        x_adv = self.start_point(x_natural, generator) if x_start is None else x_start
        state = None
        for number, step in enumerate(search.steps()):
            if number % self.query_interval == 0:
                state = self._query(step, x_adv)
            else:
                self._reuse(step, x_adv, state)
        known = search.objective.teacher_logits_natural
        return InnerResult(
            x_adv=x_adv,
            teacher_logits_natural=None if known is None else known(search.target),
            teacher_logits_assumed=None if state is None else self._policy.teacher_logits(state, x_adv),
        )

    def _replay(
        self, networks: Networks, x_natural: Tensor, labels: Tensor | None, generator: torch.Generator | None
    ) -> InnerResult:
        """Replays _maximize as a CUDA graph, captured at the first call for networks, generator and interval.

        The last MAX_CAPTURES captures are kept: each holds the memory of a search.
        """
        generator = drawing_generator(generator, x_natural.device)
        key = (*map(id, networks), id(generator), self.query_interval)
        captured = self._captured.pop(key, None)
        if captured is None:

            def maximize(x_natural: Tensor, *labels: Tensor) -> InnerResult:
                return self._maximize(networks, x_natural, labels[0] if labels else None, generator)

            captured = CapturedCall(maximize, generators=[generator])
            while len(self._captured) >= MAX_CAPTURES:
                del self._captured[next(iter(self._captured))]
        self._captured[key] = captured  # the latest comes last
        return captured(x_natural, *[] if labels is None else [labels])
