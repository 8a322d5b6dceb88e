"""TFLOP/s of a training on CUDA, and their share of the card's peak."""

import copy
from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastadaad.runtime.peak_rates import peak_tflops
from fastadaad.training.distiller import Distiller

NUM_COUNTED_IMAGES = 2


class _NoModules(nullcontext[None]):
    """Stands for the module tracker of torch's counter, which fails under autograd.grad; only sums are needed."""

    parents = ("Global",)


def step_flops(distiller: Distiller, x_natural: Tensor, labels: Tensor | None, epoch: int) -> float:
    """Counts the FLOPs of a training step per image, a multiplication and an addition being two.

    torch counts them in a step of NUM_COUNTED_IMAGES images, uncompiled and unfolded, on a copy of the student: nothing
    of the training changes.

    Args:
        distiller: Training step, whose networks, method, policy and AWP count.
        x_natural: Images [B, C, H, W].
        labels: Class numbers [B], or None.
        epoch: Current epoch.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    images = x_natural[:NUM_COUNTED_IMAGES]
    their_labels = None if labels is None else labels[:NUM_COUNTED_IMAGES]
    student = copy.deepcopy(distiller.student)
    counted = Distiller(
        student,
        distiller.teacher,
        method=distiller.method,
        inner=distiller.maximizer.inner,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.0),
        teacher_policy=distiller.maximizer.teacher_policy,
        precision="fp32",
        layout="contiguous",
        fold=False,
        mode="eager",
        awp_gamma=distiller.awp_gamma,
        awp_begin=distiller.awp_begin,
    )
    counted.maximizer.query_interval = distiller.maximizer.query_interval
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    generator = torch.Generator(images.device).manual_seed(0)
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        counted.step(images, their_labels, epoch=epoch, generator=generator)  # the first step also checks its inputs
        with counter:
            counted.step(images, their_labels, epoch=epoch, generator=generator)
    return counter.get_total_flops() / len(images)


class FlopRate:
    """TFLOP/s of a training, for its progress line.

    Args:
        distiller: Training step.
        device: CUDA device of the training.
        num_ranks: Number of ranks that train together, each on a card like this one.
    """

    def __init__(self, distiller: Distiller, device: torch.device, num_ranks: int = 1) -> None:
        self._distiller, self._num_ranks = distiller, num_ranks
        self._card = torch.cuda.get_device_name(device)
        self._counted: dict[Hashable, float] = {}

    def describe(self, images_per_s: float, x_natural: Tensor, labels: Tensor | None, epoch: int) -> str:
        """Describes the rate in one phrase; the first call for a kind of step counts its FLOPs.

        If the networks differ in precision, the share is that of the higher peak.

        Args:
            images_per_s: Speed of all ranks.
            x_natural: Images [B, C, H, W] to count with.
            labels: Class numbers [B], or None.
            epoch: Current epoch.
        """
        distiller = self._distiller
        key = (
            distiller.maximizer.query_interval,
            distiller.method.epoch_key(epoch),
            epoch >= distiller.awp_begin,
        )
        if key not in self._counted:
            self._counted[key] = step_flops(distiller, x_natural, labels, epoch)
        tflops = 1e-12 * images_per_s * self._counted[key]
        text = f"{tflops:.3g} TFLOP/s"
        peaks = peak_tflops(self._card)
        if peaks is None:
            return text
        precision = distiller.precision
        used = [precision.student] if distiller.teacher is None else [precision.student, precision.teacher]
        best = max(used, key=lambda name: peaks[name])
        return f"{text}, {tflops / (self._num_ranks * peaks[best]):.1%} of the {best} peak"
