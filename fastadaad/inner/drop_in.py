"""The inner loop of existing AdaAD programs: one function with the authors' names."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadaad.config import InnerConfig, Layout, Mode, PrecisionConfig, TeacherPolicy, ThreatModel, require
from fastadaad.inner.caller import bare, check_devices, check_networks
from fastadaad.inner.frozen import frozen
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.start import GAUSSIAN_START_SCALE
from fastadaad.runtime.precision import fp32_switches

# Search of the last call in mode compiled or graph, after everything that it was made from. It holds the CUDA graph,
# which the next call with the same arguments replays.
_last: list[tuple[tuple[object, ...], InnerMaximizer]] = []


class CallersConfig(InnerConfig):
    """Settings that only warn of a step longer than the radius: SAAD's program calls the function so."""

    def _check_step(self) -> None:
        try:
            super()._check_step()
        except ValueError as error:
            warnings.warn(str(error).replace("inner.step_size", "step_size"), stacklevel=5)


def adaad_inner_loss(
    model: nn.Module,
    teacher_model: nn.Module,
    x_natural: Tensor,
    step_size: float = 2 / 255,
    steps: int = 10,
    epsilon: float = 8 / 255,
    BN_eval: bool = True,  # noqa: N803 - the name that existing AdaAD programs use
    random_init: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    *,
    layout: Layout = "auto",
    fold: bool = True,
    mode: Mode = "eager",
    precision: PrecisionConfig | str | None = None,
    teacher_policy: TeacherPolicy | str | None = None,
) -> Tensor:
    """Drop-in replacement for the inner loop of existing AdaAD programs: x_natural [B, C, H, W] -> x_adv.

    The names of the arguments are the authors'; the mathematics is InnerMaximizer's with method adaad. Both networks
    keep their modes. The authors' function leaves `model` in train mode and `teacher_model` in eval mode: this one
    warns if a network is in the other mode. It takes every call that theirs takes: a step longer than the radius and
    pixels outside [clip_min, clip_max] only warn, and images in another dtype or shape than fp32 [B, C, H, W] take the
    plain loop, which warns too.

    Args:
        model: Student.
        teacher_model: Teacher.
        x_natural: Natural images, fp32 [B, C, H, W] in [0, 1]; in the plain loop float64 or float16, or rows [B, D] or
            videos [B, C, T, H, W].
        step_size: Length of a step in pixel units.
        steps: Number of steps; 0 returns the start, clipped.
        epsilon: Radius in linf, in pixel units.
        BN_eval: Student in eval mode during the loop.
        random_init: Gaussian start with standard deviation 0.001, else x_natural.
        clip_min: Smallest pixel.
        clip_max: Largest pixel.
        layout: Memory layout of the folded copies; see InnerMaximizer.
        fold: Run on folded copies of the networks; see InnerMaximizer.
        mode: `eager`; `compiled`: one graph of torch.compile per step, with fused kernels, after a compilation at the
            first call; `graph`: the compiled loop replayed as one CUDA graph, without launch costs, whose result the
            next call overwrites; `auto`: compiled on CUDA, else eager. Modes other than eager keep networks and graph
            of the last call in memory.
        precision: Arithmetic of the networks, such as `"auto"`: bf16 on a CUDA device with tensor cores. Default: fp32
            with torch's own switches for TF32 as the program has set them. Any other value switches TF32 on or off
            during the loop.
        teacher_policy: `"refreshed(every=5)"` and others evaluate the teacher in only some of the steps, which changes
            the result; see InnerMaximizer. Default: in every step.

    Raises:
        ValueError: A radius that makes no sense, see ThreatModel, or settings that InnerMaximizer refuses.
    """
    for name, network, usual in (("model", model, "train"), ("teacher_model", teacher_model, "eval")):
        if isinstance(network, nn.Module) and network.training != (usual == "train"):
            warnings.warn(
                f"{name} is not in {usual} mode and is not put into it: call {name}.{usual}() before the loss",
                stacklevel=2,
            )
    inner = CallersConfig(
        threat_model=ThreatModel(norm="linf", epsilon=epsilon),
        step_size=step_size,
        num_steps=1 if steps == 0 else steps,
        start="gaussian" if random_init else "natural",
        student_eval=BN_eval,
        lower=clip_min,
        upper=clip_max,
    )
    if steps == 0 or _needs_plain_loop(x_natural):
        is_plain = mode == "eager" and precision is None and TeacherPolicy.parse(teacher_policy).kind == "exact"
        require(
            is_plain or steps == 0,
            f"x_natural is {x_natural.dtype} {list(x_natural.shape)}: mode, precision and teacher_policy need fp32 "
            "images [B, C, H, W], leave them out",
        )
        return plain_search(model, teacher_model, x_natural, inner, num_steps=steps)
    chosen = PrecisionConfig.parse("fp32" if precision is None else precision)
    settings = (inner, layout, fold, mode, chosen, teacher_policy, fp32_switches() if precision is None else None)
    key = (id(bare(model)), id(bare(teacher_model)), *settings)
    if not _last or _last[0][0] != key:
        _last.clear()  # frees the memory of the last graph for the next one
        maximizer = InnerMaximizer(
            model,
            teacher_model,
            inner=inner,
            layout=layout,
            fold=fold,
            mode=mode,
            precision=chosen,
            teacher_policy=teacher_policy,
        )
        maximizer.sets_tf32, maximizer.only_warns_of_pixels = precision is not None, True
        if maximizer.mode == "eager":
            return maximizer(x_natural)
        _last.append((key, maximizer))
    return _last[0][1](x_natural)


def _needs_plain_loop(x_natural: Tensor) -> bool:
    """Returns True, with a warning, for floats in another dtype or with another number of dimensions than images.

    Three dimensions are one image without its batch, which InnerMaximizer refuses.
    """
    if not isinstance(x_natural, Tensor) or not x_natural.is_floating_point() or x_natural.dim() in (0, 1, 3):
        return False
    if x_natural.dtype == torch.float32 and x_natural.dim() == 4:
        return False
    warnings.warn(
        f"x_natural is {x_natural.dtype} {list(x_natural.shape)}: the plain loop runs, slower; fp32 images "
        "[B, C, H, W] run on folded copies",
        stacklevel=3,
    )
    return True


def plain_search(
    student: nn.Module, teacher: nn.Module, x_natural: Tensor, inner: InnerConfig, *, num_steps: int
) -> Tensor:
    """The search of method adaad by autograd, on the networks themselves, in the dtypes that torch gives it.

    Args:
        student: Student, frozen inside.
        teacher: Teacher, frozen and in eval mode inside.
        x_natural: Floats [B, ...].
        inner: Radius in linf, step size, start, mode of the student and limits.
        num_steps: Number of steps, 0 or more.

    Returns:
        x_adv, in the shape of x_natural, without gradient.
    """
    check_networks(student, teacher)
    check_devices(student, teacher, x_natural, None)
    epsilon = inner.threat_model.epsilon
    with torch.inference_mode(False), torch.enable_grad():
        x_natural = x_natural.detach().clone()
        x_adv = x_natural
        if inner.start == "gaussian":
            x_adv = x_natural + GAUSSIAN_START_SCALE * torch.randn(x_natural.shape, device=x_natural.device)
        with frozen(teacher), frozen(student, evaluation=inner.student_eval):
            for _ in range(num_steps):
                x_adv = x_adv.detach().requires_grad_()
                student_log_probs = F.log_softmax(student(x_adv), dim=1)
                kl = F.kl_div(student_log_probs, F.softmax(teacher(x_adv), dim=1), reduction="sum")
                (gradient,) = torch.autograd.grad(kl, x_adv)
                x_adv = x_adv.detach() + inner.step_size * gradient.sign()
                x_adv = torch.clamp(x_adv, x_natural - epsilon, x_natural + epsilon).clamp(inner.lower, inner.upper)
        return x_adv.detach().clamp(inner.lower, inner.upper)
