"""Changes of a traced network: batch-norm into convolutions, patches times weight, a first layer in fp32."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# Attributes and methods that read the shape of a convolution's output. The batch-norm after it has the same shape.
SHAPES = ("shape", "ndim", "size", "dim")

# Sums of two tensors. One in place leaves nothing behind that another layer could read.
SUMS = (operator.add, operator.iadd, torch.add)

# Largest patch, in numbers, for which a convolution on the CPU becomes a matrix product: 3x3 pixels of three channels.
MAX_PATCH = 27


@dataclass(frozen=True, kw_only=True)
class BatchNormOfGraph:
    """A batch-norm of the graph: the network's tensors, or constants for missing ones, and the names of its buffers."""

    name: str
    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float
    conv_weight: Tensor | None
    """Weight of the convolution that the batch-norm is folded into; None: there is no such convolution."""
    conv_bias: Tensor
    scale_target: str
    """Name of the scale's buffer, or of the folded weight's."""
    shift_target: str
    """Name of the shift's buffer, or of the folded bias's."""
    summand_target: str | None
    """Name of the buffer with the scale of the tensor that is added to the convolution, if any."""

    def shapes_of_buffers(self) -> tuple[tuple[str, Tensor], ...]:
        """Returns the names of the buffers, each with a tensor of its shape."""
        scaled = self.var if self.conv_weight is None else self.conv_weight
        buffers = (self.scale_target, scaled), (self.shift_target, self.var)
        return buffers if self.summand_target is None else (*buffers, (self.summand_target, self.var))


def take_out_batch_norms(graph: fx.Graph, root: nn.Module) -> list[BatchNormOfGraph]:
    """Turns the batch-norms of `graph` into folded convolutions and multiply-adds, and returns them, folded ones first.

    Each call of a convolution gets its own folded weight, so that a convolution may be called before two batch-norms.
    """
    norms, convolutions = [], set(convolutions_of(graph))
    for node in [node for node in graph.nodes if _has_fixed_statistics(node)]:
        before = node.args[0]
        conv, summand = _convolution_before(node, convolutions)
        convolutions.discard(conv)  # one batch-norm each
        norm = _norm(node, conv, summand, root)
        norms.append(norm)
        with graph.inserting_before(conv or node):
            scale, shift = (graph.create_node("get_attr", name) for name in (norm.scale_target, norm.shift_target))
            if conv is None:
                before = graph.call_function(_scale_and_shift, (before, scale, shift))
            else:
                conv.args = (conv.args[0], scale, shift, *conv.args[3:])
        if norm.summand_target is not None:
            with graph.inserting_before(before):
                scaled = graph.call_function(_scale, (summand, graph.create_node("get_attr", norm.summand_target)))
            before.replace_input_with(summand, scaled)
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    for node in [node for node in graph.nodes if node.op == "get_attr" and not node.users]:
        graph.erase_node(node)
    return sorted(norms, key=lambda norm: norm.conv_weight is None)


def _convolution_before(norm: Any, convolutions: set[Any]) -> tuple[Any | None, Any | None]:
    """Returns the convolution to fold a batch-norm into, and the tensor that is added to its output in between."""
    before = norm.args[0]
    if not _is_only_read_by(before, norm):
        return None, None
    if before in convolutions:
        return before, None
    if before.target in SUMS and len(before.args) == 2 and not before.kwargs:
        first, second = before.args
        for conv, summand in ((first, second), (second, first)):
            is_other = isinstance(summand, fx.Node) and summand is not conv
            if conv in convolutions and is_other and _is_only_read_by(conv, before):
                return conv, summand
    return None, None


def _is_only_read_by(node: Any, reader: Any) -> bool:
    return all(user is reader or _reads_shape(user) for user in node.users)


def _reads_shape(node: Any) -> bool:
    return (node.target is getattr and node.args[1] in SHAPES) or (node.op == "call_method" and node.target in SHAPES)


def _has_fixed_statistics(node: Any) -> bool:
    """Returns True for a batch-norm in eval mode whose statistics are tensors of the network."""
    return node.target is F.batch_norm and not node.kwargs["training"] and _is_tensor(node.args[1])


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def convolutions_of(graph: fx.Graph) -> list[Any]:
    """Returns the calls conv2d(x, weight, bias, ...) whose weight, and bias if any, are tensors of the network."""
    return [
        node
        for node in graph.nodes
        if node.target is F.conv2d
        and len(node.args) > 2
        and _is_tensor(node.args[1])
        and (node.args[2] is None or _is_tensor(node.args[2]))
    ]


def _norm(node: Any, conv: Any | None, summand: Any | None, root: nn.Module) -> BatchNormOfGraph:
    _, mean_node, var_node = node.args

    def tensor(argument: Any, default: Callable[[Tensor], Tensor] = torch.zeros_like) -> Tensor:
        return default(mean) if argument is None else attribute_of(root, argument.target)

    mean = tensor(mean_node)
    owner = node if conv is None else conv
    return BatchNormOfGraph(
        name=mean_node.target.removeprefix("0.").removesuffix(".running_mean"),
        mean=mean,
        var=tensor(var_node),
        gamma=tensor(node.kwargs["weight"], torch.ones_like),
        beta=tensor(node.kwargs["bias"]),
        eps=node.kwargs["eps"],
        conv_weight=None if conv is None else tensor(conv.args[1]),
        conv_bias=tensor(None if conv is None else conv.args[2]),
        scale_target=f"{owner.name}_{'scale' if conv is None else 'weight'}",
        shift_target=f"{owner.name}_{'shift' if conv is None else 'bias'}",
        summand_target=None if summand is None else f"{owner.name}_summand_scale",
    )


def attribute_of(root: nn.Module, target: str) -> Any:
    """Returns the tensor or module of `root` with a dotted name."""
    return reduce(getattr, target.split("."), root)


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * x + shift per channel, x [B, C, ...]."""
    shape = (-1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


def _scale(x: Tensor, scale: Tensor) -> Tensor:
    """scale * x per channel, x [B, C, H, W]."""
    return x * scale.view(-1, 1, 1)


def multiply_patches(graph: fx.Graph, attributes: dict[str, Any], memory_format: torch.memory_format) -> None:
    """Turns convolutions on the CPU with small patches (see MAX_PATCH) into products of the patches with the weight.

    oneDNN is slow at such convolutions; bench/results/measures.csv has the gain of the product.
    """
    for node in convolutions_of(graph):
        weight, others = attributes[node.args[1].target], node.args[3:]  # stride, padding, dilation, groups
        is_plain = len(others) == 4 and not isinstance(others[1], str) and others[2:] == ((1, 1), 1)
        is_of_pixels = weight.shape[1] <= 3 and weight[0].numel() <= MAX_PATCH
        if weight.device.type == "cpu" and is_plain and is_of_pixels:
            node.target, node.args = patches_times_weight, (*node.args[:5], memory_format)


def patches_times_weight(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    memory_format: torch.memory_format,
) -> Tensor:
    """Computes conv2d(x, weight, bias, stride, padding) as a matrix product.

    Args:
        x: Input [B, C, H, W].
        weight: Weight [K, C, h, w].
        bias: Bias [K], or None.
        stride: Steps in both directions.
        padding: Zeros on both sides in both directions.
        memory_format: Layout of the result.

    Returns:
        The output [B, K, H', W'].
    """
    height, width = (
        (size + 2 * pad - kernel) // step + 1
        for size, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    )
    patches = F.unfold(x, weight.shape[2:], padding=padding, stride=stride)
    out = torch.matmul(weight.flatten(1), patches).view(len(x), len(weight), height, width)
    if bias is not None:
        out = out + bias.view(-1, 1, 1)
    return out.contiguous(memory_format=memory_format)


def keep_first_layer_in_fp32(graph: fx.Graph, dtype: torch.dtype) -> set[str]:
    """Adds casts to `dtype` behind the first convolution and to fp32 at the output.

    Returns the names of the tensors and modules that must stay in fp32.
    """
    first = next((node for node in graph.nodes if node.target in (F.conv2d, F.linear)), next(iter(graph.nodes)))
    head = _with_ancestors(first)
    names = {str(node.target) for node in head if node.op in ("get_attr", "call_module")}
    head |= {node for node in graph.nodes if node.op == "get_attr" and node.target in names}
    for node in [node for node in graph.nodes if node in head]:
        outside = [user for user in node.users if user not in head and user.op != "output"]
        if outside:
            with graph.inserting_after(node):
                cast = graph.call_function(_cast, (node, dtype))
            for user in outside:
                user.replace_input_with(node, cast)
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (graph.call_function(_cast, (output.args[0], torch.float32)),)
    return names


def _with_ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Casts a floating-point tensor; other values of a graph, such as shapes and integers, stay unchanged."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
