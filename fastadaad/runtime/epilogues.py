"""Convolutions that add a bias, add a tensor and apply ReLU before they write their output, in compiled graphs on CUDA.

Inductor runs cuDNN's convolution and then a kernel of its own that reads the output again. cuDNN can do both at once.
The pass below replaces relu(conv(x) + z) in a compiled graph, for each shape that cuDNN computes rightly and no slower
on the present card.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten
_library = torch.library.Library("fastadaad", "FRAGMENT")

# Largest difference from the separate operations, relative to their largest value: cuDNN rounds once, they twice.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
REPEATS = 5  # timed calls in a row, of which the first warms up


def convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Computes relu(conv2d(x, weight, bias) + other) by separate operations: the reference.

    Args:
        x: Input [B, C, H, W].
        weight: Weight [K, C / groups, h, w].
        bias: Bias [K], or None.
        other: Added to the convolution [B, K, H', W'], or None.
        stride: Steps in both directions.
        padding: Zeros on both sides in both directions.
        dilation: Spacing of the kernel in both directions.
        groups: Groups of channels.

    Returns:
        The output [B, K, H', W'].
    """
    out = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return torch.relu(out if other is None else out + other)


def _by_cudnn(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, *shape: Any) -> Tensor:
    """Computes convolution_relu in one call of cuDNN; `shape` are its last four arguments."""
    if other is None:
        return aten.cudnn_convolution_relu(x, weight, bias, *shape)
    return aten.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *shape)


_library.define(
    "convolution_relu(Tensor x, Tensor weight, Tensor? bias, Tensor? other, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
_library.impl("convolution_relu", convolution_relu, "CompositeExplicitAutograd")
_library.impl("convolution_relu", _by_cudnn, "CUDA")
torch.library.register_fake("fastadaad::convolution_relu", convolution_relu, lib=_library)

# (arguments of convolution_relu, as fake tensors) -> True if the convolution may be fused.
Accept = Callable[..., bool]


class FuseEpilogues(CustomGraphPass):
    """Pass over a graph of torch.compile that fuses convolutions with the operations behind them.

    Args:
        accept: Decides about each shape; default: worth_fusing.
    """

    def __init__(self, accept: Accept | None = None) -> None:
        self.accept = accept or worth_fusing

    def uuid(self) -> str:
        """Returns the part of the compile cache's key that stands for this pass."""
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        deterministic = torch.are_deterministic_algorithms_enabled()
        return f"{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()} {card} {deterministic}"

    def __call__(self, graph: Any) -> None:
        """Replaces each relu(conv(x)) and relu(conv(x) + z), in place."""
        for relu in graph.find_nodes(op="call_function", target=aten.relu.default):
            convolution, other = _convolution_before(relu)
            if convolution is not None:
                self._fuse(graph, relu, convolution, other)
        graph.eliminate_dead_code()

    def _fuse(self, graph: Any, relu: Any, convolution: Any, other: Any) -> None:
        x, weight, bias, stride, padding, dilation, _, _, groups = convolution.args
        shape = stride, padding, dilation, groups
        fake = [None if node is None else node.meta["val"] for node in (x, weight, bias, other)]
        if not self.accept(*fake, *shape):
            return
        with graph.inserting_before(relu):
            if other is not None and _is_convolution(other) and len(other.users) == 1:
                bias, other = _joined_biases(graph, bias, other)
            fused = graph.call_function(torch.ops.fastadaad.convolution_relu.default, (x, weight, bias, other, *shape))
        fused.meta = dict(relu.meta)
        relu.replace_all_uses_with(fused)
        graph.erase_node(relu)


def _is_convolution(node: Any) -> bool:
    return getattr(node, "target", None) is aten.convolution.default and not node.args[6]


def _convolution_before(relu: Any) -> tuple[Any, Any]:
    """Returns the convolution whose output goes to `relu` alone, and the tensor that is added in between, if any."""
    before = relu.args[0]
    if _is_convolution(before) and len(before.users) == 1:
        return before, None
    if before.target is not aten.add.Tensor or before.kwargs or len(before.users) > 1:
        return None, None
    first, second = before.args
    for convolution, other in ((first, second), (second, first)):
        if _is_convolution(convolution) and len(convolution.users) == 1 and _alike(convolution, other):
            return convolution, other
    return None, None


def _alike(node: Any, other: Any) -> bool:
    """Returns True if both tensors have the same shape, dtype and strides."""
    if not hasattr(other, "meta"):
        return False
    a, b = node.meta["val"], other.meta["val"]
    return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()


def _joined_biases(graph: Any, bias: Any, other: Any) -> tuple[Any, Any]:
    """Moves the bias of the convolution `other` into `bias`, so that no pass over its output adds it."""
    arguments = list(other.args)
    others_bias, arguments[2] = arguments[2], None
    if others_bias is None:
        return bias, other
    with graph.inserting_before(other):
        bare = graph.call_function(other.target, tuple(arguments))
    bare.meta = dict(other.meta)
    if bias is None:
        return others_bias, bare
    joined = graph.call_function(aten.add.Tensor, (bias, others_bias))
    joined.meta = dict(bias.meta)
    return joined, bare


_known: dict[tuple[Any, ...], bool] = {}


def worth_fusing(*arguments: Any) -> bool:
    """Returns True if cuDNN's fused convolution is right and no slower than the separate operations on this card.

    Measured once per process and shape.

    Args:
        arguments: Arguments of convolution_relu, as fake tensors, on a CUDA device.
    """
    x = arguments[0]
    is_static = all(isinstance(size, int) for size in x.shape)
    # A measured choice may differ between two runs.
    if x.device.type != "cuda" or not is_static or torch.are_deterministic_algorithms_enabled():
        return False
    key = tuple(
        (argument.shape, argument.stride(), argument.dtype) if isinstance(argument, Tensor) else str(argument)
        for argument in arguments
    )
    if key not in _known:
        _known[key] = _measured(arguments)
    return _known[key]


def _measured(arguments: tuple[Any, ...]) -> bool:
    with _disable_current_modes(), torch.no_grad():
        generator = torch.Generator(arguments[0].device).manual_seed(0)
        real: list[Any] = [
            torch.empty_strided(
                argument.shape, argument.stride(), dtype=argument.dtype, device=argument.device
            ).normal_(generator=generator)
            if isinstance(argument, Tensor)
            else argument
            for argument in arguments
        ]
        expected = convolution_relu(*real)
        try:
            difference = (_by_cudnn(*real) - expected).abs().max()
        except RuntimeError:  # cuDNN has no engine for this shape
            return False
        if not difference <= TOLERANCE[expected.dtype] * expected.abs().max():
            return False
        # One pass over the output stands for Inductor's kernel.
        bare = real[0], real[1], None, *real[4:7], False, [0, 0], real[7]
        return _seconds(lambda: _by_cudnn(*real)) <= _seconds(lambda: aten.convolution(*bare).relu_())


def _seconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    start.record()
    for _ in range(REPEATS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / REPEATS


def with_epilogues(compile_options: dict[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments of torch.compile with the pass added.

    They stay as they are if they choose a mode, which torch does not combine with options, or another backend.
    """
    if {"mode", "backend"} & compile_options.keys():
        return compile_options
    options = {"post_grad_custom_pre_pass": FuseEpilogues()} | compile_options.get("options", {})
    return {**compile_options, "options": options}
