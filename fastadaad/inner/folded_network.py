"""Folded copy of a frozen network, for the inner loop and the attacks, which evaluate it thousands of times.

Batch-norm in eval mode is a scale and a shift per channel. After a convolution both go into the convolution's weight
and bias. After a sum of a convolution and another tensor they do so too, and the other tensor is scaled. Otherwise they
stay as one multiply-add. torch.fx finds out which layer follows which.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadaad.inner.folded_layers import (
    BatchNormOfGraph,
    attribute_of,
    convolutions_of,
    keep_first_layer_in_fp32,
    multiply_patches,
    take_out_batch_norms,
)

# torch.fx patches torch.nn.Module for the whole process while it traces, so one thread traces at a time.
_tracing = threading.Lock()


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
            graph = tracer.trace(nn.Sequential(in_eval_mode(network)))
        norms = take_out_batch_norms(graph, tracer.root)
        in_fp32 = keep_first_layer_in_fp32(graph, dtype) if dtype.itemsize < 4 else set()
        conv_weights = {node.args[1].target for node in convolutions_of(graph)}

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
                attributes[target] = self._refresh.copied(attribute_of(tracer.root, target), partial(buffer, target))
        multiply_patches(graph, attributes, memory_format)
        self.body = fx.GraphModule(attributes, graph)
        self.eval()
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Maps pixels fp32 [B, C, H, W] to logits fp32 [B, N]."""
        return self.body(x.contiguous(memory_format=self.memory_format))

    def refresh(self) -> None:
        """Fills the buffers in place with the network's present weights and running statistics."""
        self._refresh()


class _Refresh:
    """Writes a network's tensors into the buffers of its folded copy: one pass over the parameters, by lists."""

    def __init__(self, norms: list[BatchNormOfGraph], buffers: dict[str, Tensor]) -> None:
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


def in_eval_mode(network: nn.Module) -> nn.Module:
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
