"""The inner loop of existing AdaAD programs: one function with the authors' names."""

import warnings

from torch import Tensor, nn

from fastadaad.config import InnerConfig, Layout, Mode, PrecisionConfig, TeacherPolicy, ThreatModel
from fastadaad.inner.caller import bare
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.runtime.precision import fp32_switches

# Search of the last call in mode compiled or graph, after everything that it was made from. It holds the CUDA graph,
# which the next call with the same arguments replays.
_last: list[tuple[tuple[object, ...], InnerMaximizer]] = []


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
    warns if a network is in the other mode.

    Args:
        model: Student.
        teacher_model: Teacher.
        x_natural: Natural images, fp32 [B, C, H, W] in [0, 1].
        step_size: Length of a step in pixel units.
        steps: Number of steps.
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
        ValueError: Radii that make no sense, see InnerConfig, or settings that InnerMaximizer refuses.
    """
    for name, network, usual in (("model", model, "train"), ("teacher_model", teacher_model, "eval")):
        if isinstance(network, nn.Module) and network.training != (usual == "train"):
            warnings.warn(
                f"{name} is not in {usual} mode and is not put into it: call {name}.{usual}() before the loss",
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
        maximizer.sets_tf32 = precision is not None
        if maximizer.mode == "eager":
            return maximizer(x_natural)
        _last.append((key, maximizer))
    return _last[0][1](x_natural)
