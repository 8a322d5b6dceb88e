"""Decision of mode `auto`: compile if the work is long enough, counted in FLOPs.

The count is a function of networks and settings alone, so all ranks and a resumed run decide alike.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastadaad.inner.frozen import frozen

log = logging.getLogger(__name__)

# Conservative time to compile one layer with weights, forward and backward, the first time on a machine: ResNet-18 took
# 54 s on two cores, MobileNet-V2 80 s, 2.6 and 1.5 s per layer.
SECONDS_PER_LAYER = 3.0
# Assumed rates in FLOP/s: two CPU cores reached 1.5e11; the GPU's is a guess. A larger machine compiles a little early.
RATE = {"cpu": 1.5e11, "cuda": 2e13}
# Compiled steps were 1.1 to 1.3 times as fast as eager ones on two cores, so work of ten times the compile time pays.
LEAST_MULTIPLE = 10


def forward_flops(network: nn.Module, x: Tensor) -> int:
    """Counts the FLOPs of a forward pass per image, a multiplication and an addition being two.

    Args:
        network: Network of any mode, on the device of x.
        x: Images [B, C, H, W], of which the first is used.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with torch.no_grad(), frozen(network), FlopCounterMode(display=False) as counter:
        network(x[:1])
    return counter.get_total_flops()


def compile_seconds(networks: Sequence[nn.Module]) -> float:
    """Estimates the seconds that torch.compile takes for a step through `networks` on a new machine."""
    return SECONDS_PER_LAYER * sum(parameter.dim() > 1 for network in networks for parameter in network.parameters())


def compile_notice(*networks: nn.Module | None) -> str:
    """Returns the line before work that compiles a step through `networks`; None stands for no network."""
    seconds = compile_seconds([network for network in networks if network is not None])
    return f"compiling, up to {seconds:.0f} s the first time"


def is_worth_compiling(flops: float, networks: Sequence[nn.Module], device: torch.device) -> bool:
    """Returns True if work of `flops` through `networks` takes LEAST_MULTIPLE times as long as compiling it."""
    rate = RATE.get(device.type, RATE["cuda"])
    return flops / rate > LEAST_MULTIPLE * compile_seconds(networks)
