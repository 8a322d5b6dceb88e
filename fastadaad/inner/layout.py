"""Memory layout of a network, contiguous or channels-last: measured once per machine, network, batch and precision."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from fastadaad.config import Precision
from fastadaad.inner.frozen import frozen
from fastadaad.runtime import machine_cache

SECTION = "layout"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Extra time of a compiled contiguous network on the CPU, relative to a channels-last one: Inductor hands contiguous
# convolutions to oneDNN with a conversion around each. On two cores of a Zen 4, ResNet-18 with WideResNet-16-4 was 0.91
# to 1.02 times as fast contiguous as channels-last in eager mode, and 0.86 times as fast compiled.
COMPILED_HANDICAP = 1.2

# Seconds after which no further round is timed, and maximum number of rounds.
BUDGET_S = 1.5
MAX_ROUNDS = 9

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """Measured layouts of a network, as the machine cache keeps them."""

    choice: Literal["contiguous", "channels_last"]
    compiled_choice: Literal["contiguous", "channels_last"]
    contiguous_ms: float
    channels_last_ms: float
    network: str
    shape: tuple[int, ...]
    dtype: str
    hardware: str
    precision: str = "unknown"  # in an entry of an earlier version


def choose_memory_format(
    key_network: nn.Module,
    x: Tensor,
    build: Callable[[torch.memory_format], nn.Module],
    *,
    precision: Precision = "fp32",
    compiled: bool = False,
    clock: Clock = time.perf_counter,
) -> torch.memory_format:
    """Returns the layout in which forward and pixel gradient of a frozen network take less time.

    The choice is cached by machine, network, precision, and shape and dtype of x. A network without 2-d convolutions
    stays contiguous. A compiled one on tensor cores is channels-last without a measurement.

    Args:
        key_network: Network that identifies the choice, by its class and the names, shapes and dtypes of its state.
        x: Batch [B, C, H, W]; only its shape, dtype and device count. The timed pixels are random and contiguous.
        build: memory_format -> the network to time, a new one at each call, on the device of x.
        precision: Precision in which `build` makes the network.
        compiled: The network is going to be compiled. It is timed in eager mode, and on the CPU contiguous must be
            faster by COMPILED_HANDICAP.
        clock: Returns seconds.
    """
    if x.dim() != 4 or not any(isinstance(module, nn.Conv2d) for module in key_network.modules()):
        return torch.contiguous_format
    if compiled and x.device.type == "cuda" and precision != "fp32":
        # cuDNN's convolutions on tensor cores are channels-last; contiguous ones convert before and after each of them,
        # which an eager measurement hides behind its launches. The code that is generated for ResNet-18 with
        # WideResNet-16-4 in bf16 has 205 device operations contiguous, and 144 channels-last.
        return torch.channels_last
    batch = f"{tuple(x.shape)} {x.dtype}"
    key = f"{machine_cache.machine_key(x.device)}; {architecture(key_network)}; {batch}; {precision}"
    known = machine_cache.load(SECTION, key, LayoutChoice)
    if known is None:
        known = replace(_measured(key_network, x, build, clock), precision=precision)
        machine_cache.store(SECTION, key, asdict(known))
    return FORMATS[known.compiled_choice if compiled else known.choice]


def remembered_choices() -> list[machine_cache.Entry]:
    """Returns the choices of all machines that share the cache folder, each with its times in milliseconds."""
    return machine_cache.entries(SECTION, LayoutChoice)


def architecture(network: nn.Module) -> str:
    """Returns class and digest of a network: types of its modules, and names, shapes and dtypes of its state."""
    modules = [(name, type(module).__qualname__) for name, module in network.named_modules()]
    state = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in network.state_dict().items()]
    return f"{type(network).__name__} {hashlib.sha256(repr((modules, state)).encode()).hexdigest()[:12]}"


def _measured(
    key_network: nn.Module, x: Tensor, build: Callable[[torch.memory_format], nn.Module], clock: Clock
) -> LayoutChoice:
    """Returns both times and the choices, with network, shape, dtype and hardware."""
    generator = torch.Generator(x.device).manual_seed(0)  # a measurement must not advance torch's own generator
    pixels = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    networks = {name: build(memory_format) for name, memory_format in FORMATS.items()}
    times_ms = _alternating_medians_ms(networks, pixels, clock)
    is_contiguous = times_ms["contiguous"] <= times_ms["channels_last"]
    handicap = COMPILED_HANDICAP if x.device.type == "cpu" else 1.0
    is_contiguous_compiled = handicap * times_ms["contiguous"] <= times_ms["channels_last"]
    return LayoutChoice(
        choice="contiguous" if is_contiguous else "channels_last",
        compiled_choice="contiguous" if is_contiguous_compiled else "channels_last",
        contiguous_ms=times_ms["contiguous"],
        channels_last_ms=times_ms["channels_last"],
        network=architecture(key_network),
        shape=tuple(x.shape),
        dtype=str(x.dtype),
        hardware=machine_cache.hardware(x.device),
    )


def _alternating_medians_ms(networks: dict[str, nn.Module], pixels: Tensor, clock: Clock) -> dict[str, float]:
    for network in networks.values():
        _seconds(network, pixels, clock)  # warm-up: the first pass chooses algorithms and allocates
    times_s: dict[str, list[float]] = {name: [] for name in networks}
    order = list(networks)
    while len(times_s[order[0]]) < MAX_ROUNDS and sum(map(sum, times_s.values())) < BUDGET_S:
        for name in order:
            times_s[name].append(_seconds(networks[name], pixels, clock))
        order.reverse()  # so that a machine that slows down or speeds up favours neither layout
    return {name: 1e3 * median(times) for name, times in times_s.items()}


def _seconds(network: nn.Module, pixels: Tensor, clock: Clock) -> float:
    """Times one forward pass and one pixel gradient of the frozen network; waits for the device."""
    with torch.inference_mode(False), torch.enable_grad(), frozen(network):
        _wait_for(pixels.device)
        begin = clock()
        x = pixels.clone().requires_grad_()
        logits = network(x)
        if logits.requires_grad:  # a teacher may detach them, which is right for methods that never differentiate it
            torch.autograd.grad(logits, x, torch.ones_like(logits))
        _wait_for(pixels.device)
        return clock() - begin


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
