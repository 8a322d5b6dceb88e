"""Optimiser of a run: torch's SGD, Adam and AdamW; LARS and LAMB for large batches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fastadaad.run_config import OptimConfig

ADAM_BETA2 = 0.999  # of Kingma and Ba, 2015, and torch's default


def make_optimizer(network: nn.Module, optim: OptimConfig) -> Optimizer:
    """Builds the optimiser that `optim` names, for the parameters of `network`; the schedule sets its learning rate."""
    parameters = list(network.parameters())
    optimizer: Optimizer
    if optim.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, **_sgd_arguments(optim), **_kernels(parameters, optim))
    elif optim.optimizer in ("adam", "adamw"):
        adam = torch.optim.Adam if optim.optimizer == "adam" else torch.optim.AdamW
        optimizer = adam(parameters, **_adam_arguments(optim), **_kernels(parameters, optim))
    else:
        optimizer = {"lars": LARS, "lamb": LAMB}[optim.optimizer](parameters, **_layerwise_arguments(optim))
    optimizer.register_load_state_dict_post_hook(_match_layouts)
    return optimizer


def _sgd_arguments(optim: OptimConfig) -> dict[str, Any]:
    return {
        "lr": optim.learning_rate,
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
        "nesterov": optim.nesterov,
    }


def _adam_arguments(optim: OptimConfig) -> dict[str, Any]:
    return {
        "lr": optim.learning_rate,
        "betas": (optim.momentum, ADAM_BETA2),
        "weight_decay": optim.weight_decay,
    }


def _layerwise_arguments(optim: OptimConfig) -> dict[str, Any]:
    return {"lr": optim.learning_rate, "momentum": optim.momentum, "weight_decay": optim.weight_decay}


def _kernels(parameters: list[nn.Parameter], optim: OptimConfig) -> dict[str, Any]:
    """Selects the implementation of torch's optimiser: fused if it supports all parameters, otherwise foreach."""
    fused = optim.optimizer_backend == "auto" and all(
        parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point() for parameter in parameters
    )
    return {"fused": True} if fused else {"foreach": True}


def _match_layouts(optimizer: Optimizer) -> None:
    """Gives loaded state the memory layout of its parameters.

    torch's fused SGD on the CPU reads parameter, gradient and momentum in memory order and ignores their strides: a
    contiguous momentum beside a channels-last weight trains wrongly without an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class _Layerwise(Optimizer):
    """Base of LARS and LAMB: parameters with at most one dimension are updated without decay and trust ratio.

    The learning rate may be a number or a scalar tensor, which a CUDA graph reads again at each replay. The ratios stay
    on the device.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for adapted in (True, False):
                weights = [weight for weight in trained if (weight.dim() > 1) == adapted]
                if weights:
                    self._update(weights, [weight.grad for weight in weights], group, adapted)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        raise NotImplementedError

    def _state(self, weights: list[Tensor], name: str) -> list[Tensor]:
        """State `name` of each weight, in its shape and initially zero."""
        states = [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(weight)
        return [state[name] for state in states]


def trust_ratios(lengths: Tensor, update_lengths: Tensor) -> Tensor:
    """Returns lengths / update_lengths [L], or 1 if one is 0; otherwise an all-zero layer would never change."""
    ratios = lengths / update_lengths
    return torch.where((lengths > 0) & (update_lengths > 0), ratios, torch.ones_like(ratios))


def _lengths(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, [L]."""
    return torch.stack(torch._foreach_norm(tensors))


class LARS(_Layerwise):
    """Layer-wise adaptive rate scaling: You, Gitman and Ginsburg, 2017, algorithm 1.

    v <- m v + lr r (g + d w), w <- w - v, with r = trust_coefficient |w| / (|g| + d |w|) per layer.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(parameters, defaults)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        rates = [group["lr"]] * len(weights)
        if adapted:
            decay, lengths = group["weight_decay"], _lengths(weights)
            ratios = trust_ratios(group["trust_coefficient"] * lengths, _lengths(gradients) + decay * lengths)
            rates = list((group["lr"] * ratios).unbind())
            gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
        momenta = self._state(weights, "momentum_buffer")
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, torch._foreach_mul(gradients, rates))
        torch._foreach_sub_(weights, momenta)


LAMB_BETA2, LAMB_EPS = 0.999, 1e-6  # values of the paper


class LAMB(_Layerwise):
    """Layer-wise adaptive moments: You et al., 2020, algorithm 2.

    m, v: Adam's moments with their bias corrected; u = m / (sqrt(v) + eps) + d w; w <- w - lr r u, with r = |w| / |u|
    per layer. `momentum` is beta_1.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        momentum: float = 0.9,
        beta2: float = LAMB_BETA2,
        eps: float = LAMB_EPS,
        weight_decay: float = 5e-4,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        first, second = self._state(weights, "first_moment"), self._state(weights, "second_moment")
        torch._foreach_lerp_(first, gradients, 1 - group["momentum"])
        torch._foreach_mul_(second, group["beta2"])
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - group["beta2"])
        updates = self._adam_updates(weights, first, second, group)
        rates = [group["lr"]] * len(weights)
        if adapted:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            rates = list((group["lr"] * trust_ratios(_lengths(weights), _lengths(updates))).unbind())
        torch._foreach_sub_(weights, torch._foreach_mul(updates, rates))

    def _adam_updates(
        self, weights: list[Tensor], first: list[Tensor], second: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """m / (sqrt(v) + eps) of the corrected moments. The step count is a tensor, which a CUDA graph can update."""
        counts = self._counts(weights)
        torch._foreach_add_(counts, 1.0)
        steps = torch.stack(counts)
        corrected_first = torch._foreach_div(first, list((1 - group["momentum"] ** steps).unbind()))
        roots = torch._foreach_div(second, list((1 - group["beta2"] ** steps).unbind()))
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(corrected_first, roots))

    def _counts(self, weights: list[Tensor]) -> list[Tensor]:
        for weight in weights:
            if "step" not in self.state[weight]:
                self.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        return [self.state[weight]["step"] for weight in weights]
