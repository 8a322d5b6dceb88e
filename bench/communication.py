"""Model of a step's all-reduces, from data sheets: their bytes and a lower bound of their time.

An alpha-beta model: a phase takes the latency plus the bytes that one GPU sends, divided by the bandwidth.
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
    """Link of one GPU while all GPUs of its node send: bandwidth in one direction and latency of the first byte."""

    gb_per_s: float
    latency_us: float

    def phase_seconds(self, num_bytes: float) -> float:
        """Seconds in which each GPU sends `num_bytes` to one other GPU."""
        return 1e-6 * self.latency_us + num_bytes / (1e9 * self.gb_per_s)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of GPUS_PER_NODE GPUs: name of the GPU in roofline.DEVICES, link inside a node, link between nodes."""

    device: str
    inside: Link
    between: Link


# Bandwidths come from data sheets. NVLink's 600 and 900 GB/s per GPU count both directions. InfiniBand as in NVIDIA's
# DGX, one port per GPU: HDR 200, NDR 400 Gbit/s. Ethernet: one port of 100 Gbit/s for the eight GPUs of a node.
# Data sheets give no latencies. NVLink's and InfiniBand's are NCCL's assumption for a phase of its ring (protocol
# Simple, src/graph/tuning.cc); Ethernet's is a guess.
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
    """Returns the bytes of each all-reduce of a step, in order: see sync_batch_norm.py and gradient_exchange.py.

    Args:
        student: The network that is trained.
        batch_norm: "local", which also averages the running statistics, or "sync".
        outer: Passes of the outer minimization; with "sync", each train-mode pass exchanges batch statistics.
    """
    channels = [module.num_features for module in student.modules() if isinstance(module, _BatchNorm)]
    numbers = 2 + sum(parameter.numel() for parameter in student.parameters())  # 2: the loss, the number of images
    if batch_norm == "local":
        return [FP32_BYTES * (numbers + 2 * sum(channels))]
    passes = outer.student_statistics + 2 * outer.student_trained  # a trained pass exchanges forward and backward
    sums = [FP32_BYTES * size for layer in channels for size in (layer + 1, layer)]
    return [*passes * sums, FP32_BYTES * numbers]


def ring_seconds(num_bytes: float, num: int, link: Link) -> float:
    """All-reduce of `num` ranks in a ring: in 2 (num - 1) phases each rank sends 1 / num of the bytes to the next."""
    return 2 * (num - 1) * link.phase_seconds(num_bytes / num)


def tree_seconds(num_bytes: float, num: int, link: Link) -> float:
    """All-reduce of `num` ranks in a binary tree, up to the root and down; each phase sends all bytes."""
    return 2 * math.ceil(math.log2(num)) * link.phase_seconds(num_bytes)


def all_reduce_seconds(num_bytes: float, num_gpus: int, cluster: Cluster) -> float:
    """Seconds of a hierarchical all-reduce: a ring in each node, and ring or tree (the faster) between nodes.

    Between the two halves of the node's ring, each GPU reduces its fraction of the bytes over all nodes.
    """
    num_inside = min(num_gpus, GPUS_PER_NODE)
    own_bytes, num_nodes = num_bytes / num_inside, num_gpus // num_inside
    between = min(seconds(own_bytes, num_nodes, cluster.between) for seconds in (ring_seconds, tree_seconds))
    return ring_seconds(num_bytes, num_inside, cluster.inside) + between
