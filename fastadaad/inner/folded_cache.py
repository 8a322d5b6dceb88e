"""Folded copies of networks for the inner loop, cached and kept up to date with their networks."""

import warnings
import weakref
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import Layout, Precision
from fastadaad.inner.folded_network import FoldedNetwork
from fastadaad.inner.folding import fold
from fastadaad.inner.layout import FORMATS, choose_memory_format
from fastadaad.runtime.precision import DTYPES, is_low


@dataclass(frozen=True, kw_only=True)
class Form:
    """Form of a folded copy."""

    precision: Precision = "fp32"
    layout: Layout = "auto"
    fold: bool = True
    """False: the network runs unfolded, without a warning."""
    compiled: bool = False
    """The copy is going to be compiled, which decides the layout `auto`."""
    unfolded_precision: Precision | None = None
    """Precision of the network itself if it cannot be folded and `precision` is bf16 or fp16, fp32 or tf32; None: such
    a network is refused."""

    def __post_init__(self) -> None:
        if self.layout not in ("auto", *FORMATS):
            raise ValueError(f"layout is {self.layout!r}: choose auto, {' or '.join(FORMATS)}")


# Copies that are kept of one network in one form, for a network that switches between some Python states.
MAX_COPIES = 4
# Searches in a row with a new Python state, after which a network runs unfolded.
MAX_MISSES = 8


class _Copies:
    """Folded copies of one network in one form, by the network's Python state.

    It holds no reference to the network, which it must not keep alive.
    """

    def __init__(self) -> None:
        self.by_state: dict[Any, tuple[FoldedNetwork | None, list[Tensor]]] = {}
        """State -> the copy, None if there can be none, and the network's tensors, so that their ids stay unique."""
        self.num_misses = 0

    def refreshed(self, network: nn.Module, x: Tensor, form: Form) -> nn.Module:
        """Returns the copy for the network's present state with its present weights, or the network itself."""
        if self.num_misses > MAX_MISSES:
            return network
        state = _python_state(network)
        if state in self.by_state:
            self.num_misses = 0
            folded, tensors = self.by_state.pop(state)
            if folded is not None:
                folded.refresh()
        else:
            self.num_misses += 1
            if self.num_misses > MAX_MISSES:
                self.by_state.clear()
                _warn_unfolded(network, form, "batch-norm was not folded: its attributes change all the time")
                return network
            folded, tensors = _fold(network, x, form), list(chain(network.parameters(), network.buffers()))
        self.by_state[state] = folded, tensors  # the latest comes last
        if len(self.by_state) > MAX_COPIES:
            del self.by_state[next(iter(self.by_state))]
        return network if folded is None else folded


# Several searches on one network, such as the batches of an evaluation, share its copy; it goes when the network goes.
_copies: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Copies]] = weakref.WeakKeyDictionary()


def folded_copy(network: nn.Module, x: Tensor, form: Form) -> nn.Module:
    """Returns the folded copy of a network, or the network itself, with a warning, if it cannot be folded.

    The copy is in eval mode, and its buffers are filled with the network's present weights at every call. A copy is
    made again if a module, a tensor or a plain Python attribute of the network has been replaced; docs/folding.md has
    the contract.

    Args:
        network: Network that returns logits [B, N].
        x: Batch [B, C, H, W]. Each image shape and device has its own copy.
        form: Precision and layout of the copy.

    Raises:
        ValueError: The network changes its input in place, or cannot be folded and `form` needs a copy.
    """
    if not form.fold:
        _check_unfolded(network, form, "fold is False")
        return network
    key = (form, tuple(x.shape[1:]), x.device, has_hooks(network))
    copies = _copies.setdefault(network, {}).setdefault(key, _Copies())
    # Measurements and comparisons hold for all callers, under autocast or not.
    with torch.autocast(x.device.type, enabled=False):
        return copies.refreshed(network, x, form)


def _python_state(network: nn.Module) -> tuple[Any, ...]:
    """Everything that decides how the network computes, except for the values of its tensors.

    Modules, tensors and other objects by their identities, plain attributes by their values. The mode is left out, as a
    copy is in eval mode. An object that takes the address of a deleted one goes unnoticed; see docs/folding.md.
    """
    return tuple(
        (
            name,
            type(module),
            id(module),
            *((key, _plain(value)) for key, value in vars(module).items() if key != "training"),
        )
        for name, module in network.named_modules()
    )


def _plain(value: Any) -> Any:
    """Returns plain values, also in containers, and other objects by their identities; the result is hashable."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)  # NaN is not equal to itself
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return tuple((_plain(key), _plain(item)) for key, item in value.items())
    return id(value)


def has_hooks(network: nn.Module) -> bool:
    """Returns True if the network or a module inside has hooks, which are the user's own Python code."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in network.modules()
    )


def _fold(network: nn.Module, x: Tensor, form: Form) -> FoldedNetwork | None:
    dtype = DTYPES[form.precision]
    if has_hooks(network):
        _warn_unfolded(network, form, "batch-norm was not folded: the network has hooks, which would not run")
        return None
    images = x[:2].clone()

    def folded_in(layout: str) -> tuple[nn.Module, str | None]:
        return fold(network, images if len(x) else None, memory_format=FORMATS[layout], dtype=dtype)

    layout = "contiguous" if form.layout == "auto" else form.layout
    folded, why_not = folded_in(layout)
    if images._version:
        raise ValueError(
            f"{type(network).__name__} changes the images that it is given, as x.sub_() or Normalize(inplace=True) do: "
            "let it make new ones"
        )
    if why_not is not None:
        _warn_unfolded(network, form, why_not)
        return None
    if form.layout == "auto":
        # A network that flattens by view() runs in one layout alone, and there is nothing to choose.
        other, other_why_not = folded_in("channels_last")
        if other_why_not is None and _measured(network, x, dtype, form) is torch.channels_last:
            folded = other
    assert isinstance(folded, FoldedNetwork)
    return folded


def _measured(network: nn.Module, x: Tensor, dtype: torch.dtype, form: Form) -> torch.memory_format:
    def build(memory_format: torch.memory_format) -> nn.Module:
        return FoldedNetwork(network, memory_format=memory_format, dtype=dtype)

    return choose_memory_format(network, x, build, precision=form.precision, compiled=form.compiled)


def _warn_unfolded(network: nn.Module, form: Form, why: str) -> None:
    """Warns that a network runs unfolded, or raises ValueError if it cannot."""
    _check_unfolded(network, form, why)
    instead = f", in {form.unfolded_precision} instead of {form.precision}" if is_low(form.precision) else ""
    warnings.warn(f"{type(network).__name__}: {why}; the inner loop runs it unfolded{instead}", stacklevel=2)


def _check_unfolded(network: nn.Module, form: Form, why: str) -> None:
    """Raises ValueError if the network cannot run unfolded."""
    if is_low(form.precision) and form.unfolded_precision is None:
        raise ValueError(f"precision {form.precision} needs a folded network, and {why}: set it to fp32")
    if any(tensor.is_inference() for tensor in chain(network.parameters(), network.buffers())):
        raise ValueError(
            f"{type(network).__name__} was made under torch.inference_mode, which autograd cannot follow, and {why}: "
            "make it outside of it"
        )
