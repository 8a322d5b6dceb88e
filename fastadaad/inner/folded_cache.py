"""The networks that the inner loop runs on: folded twins, kept up to date with the networks they stand for."""

import warnings
import weakref
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from fastadaad.config import Layout, Precision
from fastadaad.inner.folding import FoldedNetwork, fold
from fastadaad.inner.layout import FORMATS, choose_memory_format
from fastadaad.runtime.precision import DTYPES


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a twin is made to be."""

    precision: Precision = "fp32"
    layout: Layout = "auto"
    compiled: bool = False
    """Whether it is going to be compiled, which decides the layout `auto`."""

    def __post_init__(self) -> None:
        if self.layout not in ("auto", *FORMATS):
            raise ValueError(f"layout is {self.layout!r}: choose auto, {' or '.join(FORMATS)}")


class _Twin:
    """A twin, or None where the network cannot be folded, and the tensors that it was made from.

    It has no reference to the network, which it must not keep alive.
    """

    def __init__(self, network: nn.Module, x: Tensor, form: Form) -> None:
        self.folded, self.tensors = _fold(network, x, form), _tensors(network)
        self.versions = _versions(self.tensors)

    def update(self) -> None:
        """Take in what may have changed."""
        versions = _versions(self.tensors)
        if self.folded is not None and (versions != self.versions or None in versions):
            self.folded.refresh()
        self.versions = versions


# Several searches on one network, such as the batches of an evaluation, share its twin; it goes when the network goes.
_twins: weakref.WeakKeyDictionary[nn.Module, dict[tuple, _Twin]] = weakref.WeakKeyDictionary()


def inner_network(network: nn.Module, x: Tensor, form: Form) -> nn.Module:
    """The twin of `network` in eval mode with its present weights, for batches such as x [B, C, H, W].

    `network` itself, which warns, where it cannot be folded. What is not seen: a change of a network without trainable
    parameters that bypasses torch's version counters, as writing to `.data` and a fused optimiser do; and another layer
    without tensors in the place of one.
    """
    known = _twins.setdefault(network, {})
    key = (form, tuple(x.shape[1:]), x.device, _has_hooks(network))
    twin = known.get(key)
    if twin is None or list(map(id, twin.tensors)) != list(map(id, _tensors(network))):
        # What is measured and compared here holds for all callers, those under autocast and others.
        with torch.autocast(x.device.type, enabled=False):
            twin = known[key] = _Twin(network, x, form)
    else:
        twin.update()
    return network if twin.folded is None else twin.folded


def _has_hooks(network: nn.Module) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in network.modules()
    )


def _fold(network: nn.Module, x: Tensor, form: Form) -> FoldedNetwork | None:
    dtype = DTYPES[form.precision]
    if _has_hooks(network):
        _say_unfolded(network, form, "batch-norm was not folded: the network has hooks, which would not run")
        return None
    images = x[:2].clone()
    _, why_not = fold(network, images if len(x) else None, dtype=dtype)
    if images._version:
        raise ValueError(
            f"{type(network).__name__} changes the images that it is given, as x.sub_() or Normalize(inplace=True) do: "
            "let it make new ones"
        )
    if why_not is not None:
        _say_unfolded(network, form, why_not)
        return None
    memory_format = FORMATS[form.layout] if form.layout != "auto" else _measured(network, x, dtype, form)
    return FoldedNetwork(network, memory_format=memory_format, dtype=dtype)


def _measured(network: nn.Module, x: Tensor, dtype: torch.dtype, form: Form) -> torch.memory_format:
    def build(memory_format: torch.memory_format) -> nn.Module:
        return FoldedNetwork(network, memory_format=memory_format, dtype=dtype)

    return choose_memory_format(network, x, build, compiled=form.compiled)


def _say_unfolded(network: nn.Module, form: Form, why: str) -> None:
    if DTYPES[form.precision] != torch.float32:
        raise ValueError(f"precision {form.precision} needs a folded network, and {why}: set it to fp32")
    if any(tensor.is_inference() for tensor in _tensors(network)):
        raise ValueError(
            f"{type(network).__name__} was made under torch.inference_mode, which autograd cannot follow, and {why}: "
            "make it outside of it"
        )
    warnings.warn(f"{type(network).__name__}: {why}; the inner loop runs it as it is", stacklevel=2)


def _tensors(network: nn.Module) -> list[Tensor]:
    return list(chain(network.parameters(), network.buffers()))


def _versions(tensors: list[Tensor]) -> list[int | None]:
    """None where torch's count cannot be relied on: it has none of an inference tensor, and fused optimisers do not
    count, so whatever may be trained is taken to have changed.
    """
    return [None if tensor.is_inference() or tensor.requires_grad else tensor._version for tensor in tensors]
