"""Counts the operator launches of an inner step and the host syncs of a training step."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastadaad import InnerConfig

from .host_sync import WAITING, HostSyncWatch
from .networks import Pair, Program, Variant

_NO_LAUNCH = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "reinterpret_tensor",
    "_unsafe_view",
)
# Unit of a count, by counting method.
DISPATCHED = "operators, views and allocations not counted"
EXTERNAL = "calls of operators; generated kernels not counted"
KERNELS = "CUDA kernels"

Run = Callable[[], object]


class LaunchCount(TorchDispatchMode):
    """Context manager that counts dispatched operators in `count`, without views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not func.is_view and name not in _NO_LAUNCH and not name.startswith("sym_")
        return func(*args, **(kwargs or {}))


def operators_dispatched(run: Run) -> int:
    with LaunchCount() as launches:
        run()
    return launches.count


def external_calls(run: Run) -> int:
    """Counts outermost operators in a profile: calls of compiled code beside its generated kernels."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return sum(_is_outermost(event) for event in profiler.events())


def _is_outermost(event) -> bool:
    if not _is_operator(event):
        return False
    parent = event.cpu_parent
    while parent is not None and not _is_operator(parent):
        parent = parent.cpu_parent
    return parent is None


def _is_operator(event) -> bool:
    space, _, name = event.name.partition("::")
    return space in ("aten", "fastadaad", "mkldnn") and name not in _NO_LAUNCH


def cuda_kernels(run: Run) -> int:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    on_device = (event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def counter(mode: str, device: torch.device) -> tuple[Callable[[Run], int], str]:
    """Returns the function that counts launches in a mode on a device, and its unit."""
    if device.type == "cuda":
        return cuda_kernels, KERNELS
    return (external_calls, EXTERNAL) if mode == "compiled" else (operators_dispatched, DISPATCHED)


def launches_per_inner_step(
    pair: Pair, method: str, variant: Variant, inner: InnerConfig, device: torch.device
) -> tuple[float, str]:
    """Returns the launches of an inner step and their unit, from the difference between a longer and a one-step loop.

    The longer loop has two steps, or all steps under a teacher policy, whose steps differ.

    Args:
        pair: Networks and batch.
        method: Name of the method.
        variant: Reference or mode of Distiller.
        inner: Configuration of the inner loop.
        device: Device of the networks.
    """
    count, unit = counter(variant.mode, device)
    longer = 2 if variant.policy.kind == "exact" else inner.num_steps
    counts = []
    for num_steps in (1, longer):
        program = Program(pair, method, variant, replace(inner, num_steps=num_steps), device)
        program.inner_loop()  # compiles and folds
        counts.append(count(program.inner_loop))
    return round((counts[1] - counts[0]) / (longer - 1), 1), unit


def waiting_calls(run: Run) -> int:
    """Counts the operators of HostSyncWatch in a profile, as compiled code does not run under a dispatch mode."""
    names = {f"aten::{operator.__name__}" for operator in WAITING}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return sum(event.name in names for event in profiler.events())


def host_synchronisations(run: Run, mode: str, device: torch.device) -> int:
    """Counts the host syncs of one call: reported by CUDA on a GPU, otherwise the operators that would wait."""
    if device.type != "cuda":
        if mode == "compiled":
            return waiting_calls(run)
        with HostSyncWatch() as watch:
            run()
        return len(watch.seen)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
