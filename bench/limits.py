"""Upper bounds measured on this machine: copying, a matrix product, and the bare networks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadaad.inner.folded_network import FoldedNetwork
from fastadaad.runtime.timing import Spread, alternate

from .flops import NetworkCost
from .networks import Pair

COPY_BYTES = 256 * 2**20  # more than any cache
MATRIX_SIDE = 2048
MATRIX_FLOPS = 2 * MATRIX_SIDE**3
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

Run = Callable[[], object]


def copy_gb_per_s(device: torch.device) -> float:
    """Measures GB/s (1e9 bytes read and written) of copy_ on a tensor larger than any cache."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    (milliseconds,) = alternate({"copy": lambda: target.copy_(source)}, device, rounds=10).values()
    return 2 * COPY_BYTES / Spread.of(milliseconds).p50 / 1e6


def matrix_product(device: torch.device) -> Run:
    """Returns a product of two fp32 matrices [2048, 2048], which has MATRIX_FLOPS."""
    a, b = torch.randn(2, MATRIX_SIDE, MATRIX_SIDE, device=device)
    return lambda: a @ b


def convolution(module: nn.Conv2d, x: Tensor) -> Run:
    """Returns a convolution's forward pass and gradient to its input x, without weight gradient, shaped as `module`."""
    weight = torch.randn(module.weight.shape, device=x.device)
    if not x.is_contiguous():
        weight = weight.contiguous(memory_format=torch.channels_last)
    shape = module.stride, module.padding, module.dilation
    gradient = torch.randn_like(F.conv2d(x, weight, None, *shape, module.groups))

    def run() -> None:
        F.conv2d(x, weight, None, *shape, module.groups)
        torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *shape, False, [0, 0], module.groups, [True, False, False]
        )

    return run


def convolutions(costs: list[NetworkCost], batch_size: int, layout: str, device: torch.device) -> tuple[Run, int]:
    """Returns the networks' convolutions back to back, forward and gradient to the input, and their FLOPs.

    Args:
        costs: Layers of each network.
        batch_size: Images of a batch.
        layout: Key of LAYOUTS.
        device: Device of the tensors.
    """
    layers = [layer for cost in costs for layer in cost.layers if isinstance(layer.module, nn.Conv2d)]
    runs = []
    for layer in layers:
        x = torch.randn(batch_size, *layer.input_shape, device=device)
        runs.append(convolution(layer.module, x.contiguous(memory_format=LAYOUTS[layout])))
    return lambda: [run() for run in runs], 2 * batch_size * sum(layer.flops for layer in layers)


def fastest(candidates: dict[str, Run], device: torch.device) -> str:
    """Returns the name of the candidate with the smallest median of three runs."""
    timings = alternate(candidates, device, rounds=3, warmup=1)
    return min(timings, key=lambda name: Spread.of(timings[name]).p50)


def fastest_convolutions(costs: list[NetworkCost], batch_size: int, device: torch.device) -> tuple[Run, int]:
    """Returns convolutions() in the layout that is faster on this machine."""
    candidates = {layout: convolutions(costs, batch_size, layout, device) for layout in LAYOUTS}
    return candidates[fastest({layout: run for layout, (run, _) in candidates.items()}, device)]


def bare_networks(pair: Pair, layout: str, device: torch.device) -> Run:
    """Returns a compiled pass through both folded networks: forward, and back to the pixels from random gradients."""
    x = pair.batch(device)[0]
    networks = [FoldedNetwork(network, memory_format=LAYOUTS[layout]) for network in pair.networks(device)]
    with torch.no_grad():
        gradients = tuple(torch.randn_like(network(x)) for network in networks)

    def passes(x: Tensor) -> Tensor:
        _, pull_back = torch.func.vjp(lambda x: tuple(network(x) for network in networks), x)
        return pull_back(gradients)[0]

    compiled = torch.compile(passes, fullgraph=True, dynamic=False)
    return lambda: compiled(x)


def fastest_bare_networks(pair: Pair, device: torch.device) -> Run:
    """Returns bare_networks() in the layout that is faster on this machine."""
    candidates = {layout: bare_networks(pair, layout, device) for layout in LAYOUTS}
    return candidates[fastest(candidates, device)]
