"""Folded copy of a frozen network, for the inner loop and the attacks, which evaluate it thousands of times.

Batch-norm in eval mode is a scale and a shift per channel. After a convolution both go into the convolution's weight
and bias. After a sum of a convolution and another tensor they do so too, and the other tensor is scaled. Otherwise they
stay as one multiply-add. torch.fx finds out which layer follows which.
"""

import copy
import operator
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadaad.runtime.precision import STRICT_FP32, tensor_cores

# Error of the copy's logits that counts as rounding, relative to the largest logit of the network.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Error of the copy's pixel gradient that counts as rounding, relative to the norm of the network's. Rounding moves some
# hidden values across the kink of a ReLU: WideResNet-34-10 is off by 0.008 in fp32 and by 0.42 in bf16. In float64 none
# crosses, so what torch.fx loses of a gradient is found there, in any precision of the copy.
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-2, torch.float16: 0.3, torch.bfloat16: 0.8}

# torch.fx patches torch.nn.Module for the whole process while it traces, so one thread traces at a time.
_tracing = threading.Lock()

# Attributes and methods that read the shape of a convolution's output. The batch-norm after it has the same shape.
SHAPES = ("shape", "ndim", "size", "dim")

# Sums of two tensors. One in place leaves nothing behind that another layer could read.
SUMS = (operator.add, operator.iadd, torch.add)

# Largest patch, in numbers, for which a convolution on the CPU becomes a matrix product: 3x3 pixels of three channels.
MAX_PATCH = 27


class FoldedNetwork(nn.Module):
    """Frozen copy of a network in eval mode, with batch-norm folded into the convolution before it.

    Maps x fp32 [B, C, H, W] in any layout to logits fp32 [B, N]. The copy has no parameters; its buffers are filled
    from the network's tensors here and at each `refresh()`. The network must keep these tensors and change them in
    place, as optimizers and load_state_dict do. In fp16 and bf16, all layers up to the first convolution with its
    batch-norm stay in fp32.

    Args:
        network: Network to copy, in any mode.
        memory_format: Layout of the convolutions.
        dtype: Arithmetic of the copy.

    Raises:
        Exception: torch.fx cannot trace the network; the type is torch.fx's or that of the network's own code.
    """

    unfolded: tuple[str, ...]
    """Names of the batch-norm layers without a convolution to fold into; each is a scale and a shift."""

    def __init__(
        self,
        network: nn.Module,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.memory_format = memory_format
        # The outer module passes one argument to the network's forward, so that optional arguments have their defaults.
        tracer = _Tracer()
        with _tracing:
            graph = tracer.trace(nn.Sequential(_in_eval_mode(network)))
        norms = _take_out_batch_norms(graph, tracer.root)
        in_fp32 = _keep_first_layer_in_fp32(graph, dtype) if dtype.itemsize < 4 else set()
        conv_weights = {node.args[1].target for node in _convolutions(graph)}

        def buffer(target: str, source: Tensor) -> Tensor:
            return torch.empty(
                source.shape,
                dtype=source.dtype if not source.is_floating_point() else torch.float32 if target in in_fp32 else dtype,
                device=source.device,
                memory_format=memory_format if target in conv_weights else torch.contiguous_format,
            )

        self.unfolded = tuple(dict.fromkeys(norm.name for norm in norms if norm.conv_weight is None))
        attributes: dict[str, Any] = {
            target: buffer(target, source) for norm in norms for target, source in norm.shapes_of_buffers()
        }
        self._refresh = _Refresh(norms, attributes)
        for target in [node.target for node in graph.nodes if node.op in ("get_attr", "call_module")]:
            if target not in attributes:
                attributes[target] = self._refresh.copied(_attribute(tracer.root, target), partial(buffer, target))
        _multiply_patches(graph, attributes, memory_format)
        self.body = fx.GraphModule(attributes, graph)
        self.eval()
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Maps pixels fp32 [B, C, H, W] to logits fp32 [B, N]."""
        return self.body(x.contiguous(memory_format=self.memory_format))

    def refresh(self) -> None:
        """Fills the buffers in place with the network's present weights and running statistics."""
        self._refresh()


def fold(
    network: nn.Module,
    x: Tensor | None = None,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, str | None]:
    """Folds a network, if torch.fx can trace it.

    Args:
        network: Network in any mode; its modes and tensors stay unchanged.
        x: Batch [B, C, H, W] on which logits and pixel gradients of copy and network are compared, as torch.fx traces
            some networks wrongly; None: no comparison.
        memory_format: Layout of the convolutions.
        dtype: Arithmetic of the copy.

    Returns:
        The folded copy and None, or `network` itself and the reason in one line.
    """
    try:
        folded = FoldedNetwork(network, memory_format=memory_format, dtype=dtype)
        if x is not None and (
            difference := _difference(folded, network, x, dtype) or _difference_in_float64(network, x)
        ):
            return network, f"batch-norm was not folded: {difference}"
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        return network, f"batch-norm was not folded: {' '.join(str(error).split())[:200]}"
    return folded, None


def _difference(folded: FoldedNetwork, network: nn.Module, x: Tensor, dtype: torch.dtype) -> str | None:
    """Compares a folded copy with its network on x [B, C, H, W]; returns a difference in words, or None."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(x.device.type, enabled=False),
        tensor_cores(STRICT_FP32, x.device),
    ):
        reference = _in_eval_mode(network)
        if any(tensor.is_inference() for tensor in chain(network.parameters(), network.buffers())):
            reference = copy.deepcopy(network).eval()  # autograd accepts clones of inference tensors
        states, version = _random_states(x.device), x._version
        with torch.no_grad():
            reference(x)
        if x._version != version:
            return "the network changes its input"
        if not _equal(states, _random_states(x.device)):
            return "the network draws random numbers, which the copy would draw only once"
        expected, expected_gradient = _logits_and_gradient(reference, x)
        logits, gradient = _logits_and_gradient(folded, x)
    if not torch.allclose(logits, expected, rtol=0, atol=TOLERANCE[dtype] * expected.abs().max().item()):
        return "the folded network has other outputs"
    if gradient is None or expected_gradient is None:
        return None if gradient is expected_gradient else "the folded network has another pixel gradient"
    error = (gradient - expected_gradient).norm()
    if not error <= GRADIENT_TOLERANCE[dtype] * expected_gradient.norm():
        return "the folded network has another pixel gradient"
    return None


def _difference_in_float64(network: nn.Module, x: Tensor) -> str | None:
    """Compares a folded copy with its network in float64; None also for a network that does not run in float64.

    Noise joins the images, as dead ReLUs may hide a lost gradient on these, and no weight is 0.
    """
    try:
        double = copy.deepcopy(network).double()
        _replace_zeros(double)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
        images = torch.cat([x.double(), noise])
        return _difference(FoldedNetwork(double, dtype=torch.float64), double, images, torch.float64)
    except Exception:  # such as a layer that casts to fp32; the comparison in the copy's own precision stands
        return None


@torch.no_grad()
def _replace_zeros(network: nn.Module) -> None:
    """Puts small positive numbers in place of zeros among the weights.

    A lost gradient does not show behind a last layer of zeros, or in a residual branch that a scale of 0 switches off.
    """
    for parameter in network.parameters():
        generator = torch.Generator(parameter.device).manual_seed(0)
        numbers = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype, device=parameter.device)
        parameter.add_(0.1 * numbers * (parameter == 0))


def _logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits [B, N], and the pixel gradient of their weighted sum; None if the logits have none."""
    x = x.detach().clone().requires_grad_()
    logits = network(x)
    if not logits.requires_grad:
        return logits, None
    # Weights without a pattern, as the sum of all logits may be a constant.
    weights = torch.arange(logits.numel(), dtype=logits.dtype, device=x.device).mul(2.4).cos().view_as(logits)
    (gradient,) = torch.autograd.grad(logits, x, weights, allow_unused=True)
    return logits.detach(), gradient


def _random_states(device: torch.device) -> list[Any]:
    """States of the generators that a forward pass may draw from."""
    states: list[Any] = [random.getstate(), cast(tuple[Any, ...], np.random.get_state())[1:3], torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _equal(states: list[Any], others: list[Any]) -> bool:
    """Returns True if nothing was drawn between two calls of _random_states."""
    (python, (keys, position), *tensors), (other_python, (other_keys, other_position), *other_tensors) = states, others
    return (
        python == other_python
        and position == other_position
        and bool((keys == other_keys).all())
        and all(torch.equal(*pair) for pair in zip(tensors, other_tensors, strict=True))
    )


class _Refresh:
    """Writes a network's tensors into the buffers of its folded copy: one pass over the parameters, by lists."""

    def __init__(self, norms: "list[_Norm]", buffers: dict[str, Tensor]) -> None:
        """Takes the batch-norms of the graph, the folded ones first, and the buffers by name."""
        self.conv_weights = [norm.conv_weight for norm in norms if norm.conv_weight is not None]
        num_folded = len(self.conv_weights)
        self.folded_weights = [buffers[norm.scale_target] for norm in norms[:num_folded]]
        self.mean, self.var = [norm.mean for norm in norms], [norm.var for norm in norms]
        self.gamma, self.beta = [norm.gamma for norm in norms], [norm.beta for norm in norms]
        self.conv_bias, self.eps = [norm.conv_bias for norm in norms], [norm.eps for norm in norms]
        self.plain: list[Tensor] = []
        self.filled = [buffers[norm.scale_target] for norm in norms[num_folded:]]
        self.filled += [buffers[norm.shift_target] for norm in norms]
        self.summand_norms = [index for index, norm in enumerate(norms) if norm.summand_target is not None]
        self.filled += [buffers[norm.summand_target] for norm in norms if norm.summand_target is not None]

    def copied(self, source: Any, buffer: Callable[[Tensor], Tensor]) -> Any:
        """Returns a copy of a tensor or module with buffers in place of its tensors, which are copied unchanged."""
        tensors = [source] if isinstance(source, Tensor) else [*source.parameters(), *source.buffers()]
        buffers = [buffer(tensor) for tensor in tensors]
        self.plain += tensors
        self.filled += buffers
        # By this memo, deepcopy takes the buffers wherever it would copy the tensors.
        result = copy.deepcopy(source, {id(tensor): buffer for tensor, buffer in zip(tensors, buffers, strict=True)})
        for module in result.modules() if isinstance(result, nn.Module) else ():
            module._buffers.update(module._parameters)
            module._parameters.clear()
        return result

    @torch.no_grad()
    def __call__(self) -> None:
        scales, shifts = self._scales_and_shifts() if self.mean else ((), ())
        num_folded = len(self.conv_weights)
        for out, weight, scale in zip(self.folded_weights, self.conv_weights, scales[:num_folded], strict=True):
            torch.mul(weight, scale.view(-1, 1, 1, 1), out=out)
        if self.filled:
            of_summands = [scales[index] for index in self.summand_norms]
            torch._foreach_copy_(self.filled, [*scales[num_folded:], *shifts, *of_summands, *self.plain])

    def _scales_and_shifts(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Returns gamma / sqrt(var + eps) and beta - (mean - conv_bias) * scale [C] of each batch-norm."""
        scales = torch._foreach_add(self.var, self.eps)
        torch._foreach_rsqrt_(scales)
        torch._foreach_mul_(scales, self.gamma)
        centres = torch._foreach_sub(self.mean, self.conv_bias)
        return scales, torch._foreach_addcmul(self.beta, centres, scales, value=-1.0)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Refresh":
        """Returns a refresh of the copied buffers from the same network."""
        result = copy.copy(self)
        result.folded_weights, result.filled = copy.deepcopy((self.folded_weights, self.filled), memo)
        return result


def _in_eval_mode(network: nn.Module) -> nn.Module:
    """Returns a copy in eval mode that shares the network's tensors; the modes of the network stay unchanged."""
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, tensors).eval()


class _Tracer(fx.Tracer):
    """Traces convolutions, linear layers and batch-norm to functions of their tensors; keeps other torch.nn layers.

    Networks that other threads run meanwhile are not traced, though torch.fx has patched their class.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Returns an attribute of a module: a proxy in the tracing thread, the attribute in other threads."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Conv2d | nn.Linear)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Traces a call of a module, or makes the call in other threads."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        if not (isinstance(m, _BatchNorm) and self.is_leaf_module(m, "")):
            return super().call_module(m, forward, args, kwargs)
        by_batch = m.running_mean is None  # without running statistics it uses the batch's in eval mode too
        (x,) = (*args, *kwargs.values())
        return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, by_batch, 0.0, m.eps)


@dataclass(frozen=True, kw_only=True)
class _Norm:
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


def _take_out_batch_norms(graph: fx.Graph, root: nn.Module) -> list[_Norm]:
    """Turns the batch-norms of `graph` into folded convolutions and multiply-adds, and returns them, folded ones first.

    Each call of a convolution gets its own folded weight, so that a convolution may be called before two batch-norms.
    """
    norms, convolutions = [], set(_convolutions(graph))
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


def _convolutions(graph: fx.Graph) -> list[Any]:
    """Returns the calls conv2d(x, weight, bias, ...) whose weight, and bias if any, are tensors of the network."""
    return [
        node
        for node in graph.nodes
        if node.target is F.conv2d
        and len(node.args) > 2
        and _is_tensor(node.args[1])
        and (node.args[2] is None or _is_tensor(node.args[2]))
    ]


def _norm(node: Any, conv: Any | None, summand: Any | None, root: nn.Module) -> _Norm:
    _, mean_node, var_node = node.args

    def tensor(argument: Any, default: Callable[[Tensor], Tensor] = torch.zeros_like) -> Tensor:
        return default(mean) if argument is None else _attribute(root, argument.target)

    mean = tensor(mean_node)
    owner = node if conv is None else conv
    return _Norm(
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


def _attribute(root: nn.Module, target: str) -> Any:
    return reduce(getattr, target.split("."), root)


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * x + shift per channel, x [B, C, ...]."""
    shape = (-1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


def _scale(x: Tensor, scale: Tensor) -> Tensor:
    """scale * x per channel, x [B, C, H, W]."""
    return x * scale.view(-1, 1, 1)


def _multiply_patches(graph: fx.Graph, attributes: dict[str, Any], memory_format: torch.memory_format) -> None:
    """Turns convolutions on the CPU with small patches (see MAX_PATCH) into products of the patches with the weight.

    oneDNN is slow at such convolutions; bench/results/measures.csv has the gain of the product.
    """
    for node in _convolutions(graph):
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


def _keep_first_layer_in_fp32(graph: fx.Graph, dtype: torch.dtype) -> set[str]:
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
