"""First point of a search: natural, Gaussian or uniform."""

import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.config import InnerConfig, Start, ThreatModel
from fastadaad.runtime.distributed import ProcessGroup

# Upper limit of the numbers that each rank draws for the start of one step: 512 MiB. Up to it every rank draws for the
# images of all ranks, so that their number does not change the starts. Beyond it each rank draws for its own images,
# and all ranks draw the same numbers.
MAX_COMMON_DRAW = 2**27

# Standard deviation of the Gaussian start, in pixel units: the authors' program.
GAUSSIAN_START_SCALE = 0.001


def start_point(
    x_natural: Tensor,
    start: Start,
    inner: InnerConfig,
    generator: torch.Generator | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Draws x_adv before the first step.

    Args:
        x_natural: Natural images, fp32 [B, C, H, W].
        start: `gaussian` is x_natural + 0.001 N(0, 1), not clipped, as in the authors' program (each step clips);
            `uniform` is a uniformly drawn point of the ball, clipped to [lower, upper]; `natural` is x_natural.
            `gaussian-clipped` and `uniform-unclipped` differ in the clipping alone.
        inner: Threat model and limits of the pixels.
        generator: Random numbers; default: torch's generator of the device.
        process_group: Ranks that draw together from equal generators, each for its rows of the batch.

    Returns:
        A new tensor, fp32 [B, C, H, W].
    """
    if start == "natural":
        return x_natural.clone()
    group = _drawing_group(x_natural, process_group)
    x_adv = torch.empty_like(x_natural)
    drawn = x_natural.new_empty(len(x_natural) * group.size, *x_natural.shape[1:])
    if start.startswith("gaussian"):
        noise, scale = drawn.normal_(generator=generator), GAUSSIAN_START_SCALE
    else:
        noise, scale = uniform_noise(drawn, inner.threat_model, generator), inner.threat_model.epsilon
    limits = (inner.lower, inner.upper) if start in ("uniform", "gaussian-clipped") else ()
    return ops.random_start_(x_adv, x_natural, noise[group.rank :: group.size], scale, *limits)


def _drawing_group(x_natural: Tensor, process_group: ProcessGroup | None) -> ProcessGroup:
    """Returns the ranks that draw together, or this rank alone if the common draw would exceed MAX_COMMON_DRAW."""
    if process_group is None or x_natural.numel() * process_group.size > MAX_COMMON_DRAW:
        return ProcessGroup()
    return process_group


def uniform_noise(x: Tensor, threat_model: ThreatModel, generator: torch.Generator | None) -> Tensor:
    """Draws points uniformly from the unit ball of the threat model's norm, in the shape of x [B, C, H, W]."""
    noise = x.new_empty(x.shape)
    if threat_model.norm == "linf":
        return noise.uniform_(-1, 1, generator=generator)
    # Uniform in a ball of d dimensions: a uniform direction, and a radius distributed as u^(1/d).
    direction = noise.normal_(generator=generator).flatten(1)
    radius = x.new_empty(len(x), 1).uniform_(generator=generator) ** (1 / max(direction.shape[1], 1))
    return (direction * (radius / direction.norm(dim=1, keepdim=True))).view(x.shape)


def drawing_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Returns the generator that draws on a CUDA device: `generator`, or the device's default one."""
    return generator or torch.cuda.default_generators[device.index]
