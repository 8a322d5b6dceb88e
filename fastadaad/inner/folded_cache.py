"""Folded copies of networks for the inner loop, cached and kept up to date with their networks."""

import warnings
import weakref
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import Layout, Precision
from fastadaad.inner.folding import FoldedNetwork, fold
from fastadaad.inner.layout import FORMATS, choose_memory_format
from fastadaad.runtime.precision import DTYPES


@dataclass(frozen=True, kw_only=True)
class Form:
    """Form of a folded copy."""

    precision: Precision = "fp32"
    layout: Layout = "auto"
    compiled: bool = False
    """The copy is going to be compiled, which decides the layout `auto`."""

    def __post_init__(self) -> None:
        if self.layout not in ("auto", *FORMATS):
            raise ValueError(f"layout is {self.layout!r}: choose auto, {' or '.join(FORMATS)}")


class _CachedCopy:
    """Folded copy, or None for a network that cannot be folded, and the tensors that it was made from.

    It holds no reference to the network, which it must not keep alive.
    """

    def __init__(self, network: nn.Module, x: Tensor, form: Form) -> None:
        self.folded, self.tensors = _fold(network, x, form), _tensors(network)
        self.versions = _versions(self.tensors)

    def update(self) -> None:
        """Refreshes the copy if the network may have changed."""
        versions = _versions(self.tensors)
        if self.folded is not None and (versions != self.versions or None in versions):
            self.folded.refresh()
        self.versions = versions


# Several searches on one network, such as the batches of an evaluation, share its copy; it goes when the network goes.
_copies: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _CachedCopy]] = weakref.WeakKeyDictionary()


def folded_copy(network: nn.Module, x: Tensor, form: Form) -> nn.Module:
    """Returns the folded copy of a network, or the network itself, with a warning, if it cannot be folded.

    The copy is in eval mode and has the network's present weights. Two changes go unnoticed: one of a network without
    trainable parameters that bypasses torch's version counters, as writing to `.data` and a fused optimizer do; and
    the replacement of a layer without tensors by another.

    Args:
        network: Network that returns logits [B, N].
        x: Batch [B, C, H, W]. Each image shape and device has its own copy.
        form: Precision and layout of the copy.

    Raises:
        ValueError: The network changes its input in place, or cannot be folded and `form` needs a copy.
    """
    known = _copies.setdefault(network, {})
    key = (form, tuple(x.shape[1:]), x.device, _has_hooks(network))
    copy = known.get(key)
    if copy is None or list(map(id, copy.tensors)) != list(map(id, _tensors(network))):
        # Measurements and comparisons hold for all callers, under autocast or not.
        with torch.autocast(x.device.type, enabled=False):
            copy = known[key] = _CachedCopy(network, x, form)
    else:
        copy.update()
    return network if copy.folded is None else copy.folded


def _has_hooks(network: nn.Module) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in network.modules()
    )


def _fold(network: nn.Module, x: Tensor, form: Form) -> FoldedNetwork | None:
    dtype = DTYPES[form.precision]
    if _has_hooks(network):
        _warn_unfolded(network, form, "batch-norm was not folded: the network has hooks, which would not run")
        return None
    images = x[:2].clone()
    _, why_not = fold(network, images if len(x) else None, dtype=dtype)
    if images._version:
        raise ValueError(
            f"{type(network).__name__} changes the images that it is given, as x.sub_() or Normalize(inplace=True) do: "
            "let it make new ones"
        )
    if why_not is not None:
        _warn_unfolded(network, form, why_not)
        return None
    memory_format = FORMATS[form.layout] if form.layout != "auto" else _measured(network, x, dtype, form)
    return FoldedNetwork(network, memory_format=memory_format, dtype=dtype)


def _measured(network: nn.Module, x: Tensor, dtype: torch.dtype, form: Form) -> torch.memory_format:
    def build(memory_format: torch.memory_format) -> nn.Module:
        return FoldedNetwork(network, memory_format=memory_format, dtype=dtype)

    return choose_memory_format(network, x, build, compiled=form.compiled)


def _warn_unfolded(network: nn.Module, form: Form, why: str) -> None:
    """Warns that a network runs unfolded, or raises ValueError if it cannot."""
    if DTYPES[form.precision] != torch.float32:
        raise ValueError(f"precision {form.precision} needs a folded network, and {why}: set it to fp32")
    if any(tensor.is_inference() for tensor in _tensors(network)):
        raise ValueError(
            f"{type(network).__name__} was made under torch.inference_mode, which autograd cannot follow, and {why}: "
            "make it outside of it"
        )
    warnings.warn(f"{type(network).__name__}: {why}; the inner loop runs it unfolded", stacklevel=2)


def _tensors(network: nn.Module) -> list[Tensor]:
    return list(chain(network.parameters(), network.buffers()))


def _versions(tensors: list[Tensor]) -> list[int | None]:
    """Returns version counters; None for a tensor that counts as changed.

    Inference tensors have no counter, and fused optimizers do not update the counters of trainable parameters.
    """
    return [None if tensor.is_inference() or tensor.requires_grad else tensor._version for tensor in tensors]
