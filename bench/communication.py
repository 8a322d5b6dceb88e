"""What several processes send each other in a step, and how long it takes at best: a model, from data sheets.

Of the alpha-beta kind: a phase takes a latency, and the bytes that one GPU sends in it over a bandwidth.
"""

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadaad.config import BatchNorm

from .flops import OuterPasses

GPUS_PER_NODE = 8
FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a GPU sends through while all of its node do: bandwidth in one direction, time before a byte is there."""

    gb_per_s: float
    latency_us: float

    def phase_seconds(self, num_bytes: float) -> float:
        """Each GPU sends so much to one other."""
        return 1e-6 * self.latency_us + num_bytes / (1e9 * self.gb_per_s)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of GPUS_PER_NODE: the GPU's name in roofline.DEVICES, the link inside a node, and that between nodes."""

    device: str
    inside: Link
    between: Link


# Bandwidths are of data sheets. NVLink's count both directions there: 600 and 900 GB/s a GPU. InfiniBand as in NVIDIA's
# DGX, a port for each GPU: HDR 200, NDR 400 Gbit/s. Ethernet: one port of 100 Gbit/s for the eight GPUs of a node.
# Latencies are on no data sheet. NVLink's and InfiniBand's are what NCCL reckons with for a phase of its ring (protocol
# Simple, src/graph/tuning.cc), Ethernet's is a guess.
CLUSTERS = {
    "A100, InfiniBand HDR": Cluster(
        device="A100-SXM-80GB",
        inside=Link(gb_per_s=600 / 2, latency_us=3.4),
        between=Link(gb_per_s=200 / 8, latency_us=14),
    ),
    "H100, InfiniBand NDR": Cluster(
        device="H100-SXM",
        inside=Link(gb_per_s=900 / 2, latency_us=3.4),
        between=Link(gb_per_s=400 / 8, latency_us=14),
    ),
    "A100, 100 GbE": Cluster(
        device="A100-SXM-80GB",
        inside=Link(gb_per_s=600 / 2, latency_us=3.4),
        between=Link(gb_per_s=100 / 8 / GPUS_PER_NODE, latency_us=40),
    ),
}


def messages(student: nn.Module, batch_norm: BatchNorm, outer: OuterPasses) -> list[int]:
    """Bytes of each all-reduce of a step, in their order: see sync_batch_norm.py and gradient_exchange.py."""
    channels = [module.num_features for module in student.modules() if isinstance(module, _BatchNorm)]
    numbers = 2 + sum(parameter.numel() for parameter in student.parameters())  # 2: the loss, the number of images
    if batch_norm == "local":
        return [FP32_BYTES * (numbers + 2 * sum(channels))]
    passes = outer.student_statistics + 2 * outer.student_trained  # the latter forward and backward
    sums = [FP32_BYTES * size for layer in channels for size in (layer + 1, layer)]
    return [*passes * sums, FP32_BYTES * numbers]


def ring_seconds(num_bytes: float, num: int, link: Link) -> float:
    """An all-reduce of `num` in a ring: in 2 (num - 1) phases each sends a num-th part of it to the next."""
    return 2 * (num - 1) * link.phase_seconds(num_bytes / num)


def tree_seconds(num_bytes: float, num: int, link: Link) -> float:
    """The same in a binary tree, up to its root and down again; in each phase everything is sent."""
    return 2 * math.ceil(math.log2(num)) * link.phase_seconds(num_bytes)


def all_reduce_seconds(num_bytes: float, num_gpus: int, cluster: Cluster) -> float:
    """A ring in each node; between its halves each GPU's part goes through all nodes, by ring or tree, the faster."""
    num_inside = min(num_gpus, GPUS_PER_NODE)
    part, num_nodes = num_bytes / num_inside, num_gpus // num_inside
    between = min(seconds(part, num_nodes, cluster.between) for seconds in (ring_seconds, tree_seconds))
    return ring_seconds(num_bytes, num_inside, cluster.inside) + between
