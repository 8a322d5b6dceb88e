"""Folds a frozen network for the inner loop and the attacks, and compares the copy with the network."""

import copy
import random
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastadaad.inner.folded_network import FoldedNetwork, in_eval_mode
from fastadaad.runtime.precision import STRICT_FP32, tensor_cores

# Error of the copy's logits that counts as rounding, relative to the largest logit of the network.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Error of the copy's pixel gradient that counts as rounding, relative to the norm of the network's. Rounding moves some
# hidden values across the kink of a ReLU: WideResNet-34-10 is off by 0.008 in fp32 and by 0.42 in bf16. In float64 none
# crosses, so what torch.fx loses of a gradient is found there, in any precision of the copy.
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-2, torch.float16: 0.3, torch.bfloat16: 0.8}


def fold(
    network: nn.Module,
    x: Tensor | None = None,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, str | None]:
    """Folds a network, if torch.fx can trace it.

    Args:
        network: Network in any mode; its modes and tensors stay unchanged.
        x: Batch [B, C, H, W] on which logits and pixel gradients of copy and network are compared, as torch.fx traces
            some networks wrongly; None: no comparison.
        memory_format: Layout of the convolutions.
        dtype: Arithmetic of the copy.

    Returns:
        The folded copy and None, or `network` itself and the reason in one line.
    """
    try:
        folded = FoldedNetwork(network, memory_format=memory_format, dtype=dtype)
        if x is not None and (
            difference := _difference(folded, network, x, dtype) or _difference_in_float64(network, x)
        ):
            return network, f"batch-norm was not folded: {difference}"
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        return network, f"batch-norm was not folded: {' '.join(str(error).split())[:200]}"
    return folded, None


def _difference(folded: FoldedNetwork, network: nn.Module, x: Tensor, dtype: torch.dtype) -> str | None:
    """Compares a folded copy with its network on x [B, C, H, W]; returns a difference in words, or None."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(x.device.type, enabled=False),
        tensor_cores(STRICT_FP32, x.device),
    ):
        reference = in_eval_mode(network)
        if any(tensor.is_inference() for tensor in chain(network.parameters(), network.buffers())):
            reference = copy.deepcopy(network).eval()  # autograd accepts clones of inference tensors
        states, version = _random_states(x.device), x._version
        with torch.no_grad():
            reference(x)
        if x._version != version:
            return "the network changes its input"
        if not _equal(states, _random_states(x.device)):
            return "the network draws random numbers, which the copy would draw only once"
        expected, expected_gradient = _logits_and_gradient(reference, x)
        logits, gradient = _logits_and_gradient(folded, x)
    if not torch.allclose(logits, expected, rtol=0, atol=TOLERANCE[dtype] * expected.abs().max().item()):
        return "the folded network has other outputs"
    if gradient is None or expected_gradient is None:
        return None if gradient is expected_gradient else "the folded network has another pixel gradient"
    error = (gradient - expected_gradient).norm()
    if not error <= GRADIENT_TOLERANCE[dtype] * expected_gradient.norm():
        return "the folded network has another pixel gradient"
    return None


def _difference_in_float64(network: nn.Module, x: Tensor) -> str | None:
    """Compares a folded copy with its network in float64; None also for a network that does not run in float64.

    Noise joins the images, as dead ReLUs may hide a lost gradient on these, and no weight is 0.
    """
    try:
        double = copy.deepcopy(network).double()
        _replace_zeros(double)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
        images = torch.cat([x.double(), noise])
        return _difference(FoldedNetwork(double, dtype=torch.float64), double, images, torch.float64)
    except Exception:  # such as a layer that casts to fp32; the comparison in the copy's own precision stands
        return None


@torch.no_grad()
def _replace_zeros(network: nn.Module) -> None:
    """Puts small positive numbers in place of zeros among the weights.

    A lost gradient does not show behind a last layer of zeros, or in a residual branch that a scale of 0 switches off.
    """
    for parameter in network.parameters():
        generator = torch.Generator(parameter.device).manual_seed(0)
        numbers = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype, device=parameter.device)
        parameter.add_(0.1 * numbers * (parameter == 0))


def _logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits [B, N], and the pixel gradient of their weighted sum; None if the logits have none."""
    x = x.detach().clone().requires_grad_()
    logits = network(x)
    if not logits.requires_grad:
        return logits, None
    # Weights without a pattern, as the sum of all logits may be a constant.
    weights = torch.arange(logits.numel(), dtype=logits.dtype, device=x.device).mul(2.4).cos().view_as(logits)
    (gradient,) = torch.autograd.grad(logits, x, weights, allow_unused=True)
    return logits.detach(), gradient


def _random_states(device: torch.device) -> list[Any]:
    """States of the generators that a forward pass may draw from."""
    states: list[Any] = [random.getstate(), cast(tuple[Any, ...], np.random.get_state())[1:3], torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _equal(states: list[Any], others: list[Any]) -> bool:
    """Returns True if nothing was drawn between two calls of _random_states."""
    (python, (keys, position), *tensors), (other_python, (other_keys, other_position), *other_tensors) = states, others
    return (
        python == other_python
        and position == other_position
        and bool((keys == other_keys).all())
        and all(torch.equal(*pair) for pair in zip(tensors, other_tensors, strict=True))
    )
