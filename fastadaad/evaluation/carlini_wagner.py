"""The attack of Carlini and Wagner (2017) in l2, batched, with a binary search over its constant for each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.methods.objectives import margin

# Pixels of exactly 0 or 1 lie at infinity in tanh space; this brings them back.
_SHRINK = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """Minimises |delta|^2 + constant * max(z_y - max_{j != y} z_j + confidence, 0) by Adam in tanh space.

    The defaults are the settings of the paper's evaluation: one constant, no search, no radius. With `within_epsilon`
    an image counts as broken only within the l2 radius of the threat model.
    """

    num_steps: int = 1000
    search_steps: int = 1
    constant: float = 0.1
    confidence: float = 0.01
    learning_rate: float = 0.01
    within_epsilon: bool = False
    is_random = False

    def check(self, threat_model: ThreatModel) -> None:
        """Raises ValueError where a radius is needed and it is not l2."""
        if self.within_epsilon and threat_model.norm != "l2":
            raise ValueError(f"cw-l2 needs an l2 radius, and the threat model's norm is {threat_model.norm}: use cw")

    def survives(
        self,
        model: nn.Module,
        threat_model: ThreatModel,
        x_natural: Tensor,
        labels: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Which images are not broken, a bool [B]; the search has no random start and leaves `generators` alone."""
        _, distance = self.perturb(model, x_natural, labels)
        return distance > threat_model.epsilon if self.within_epsilon else distance.isinf()

    def perturb(self, model: nn.Module, x_natural: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x_adv [B, C, H, W], the closest adversarial image found, and its l2 distance [B].

        Where none was found the image is x_natural and the distance infinite.
        """
        best_x_adv, best_distance = x_natural.clone(), torch.full_like(labels, math.inf, dtype=x_natural.dtype)
        constant = torch.full_like(best_distance, self.constant)
        lower, upper = torch.zeros_like(constant), torch.full_like(constant, math.inf)
        for _ in range(self.search_steps):
            x_adv, distance = self._minimize(model, x_natural, labels, constant)
            found, closer = distance.isfinite(), distance < best_distance
            best_x_adv = torch.where(closer.view(-1, 1, 1, 1), x_adv, best_x_adv)
            best_distance = torch.where(closer, distance, best_distance)
            upper, lower = torch.where(found, constant, upper), torch.where(found, lower, constant)
            constant = torch.where(upper.isfinite(), (lower + upper) / 2, 10 * constant)
        return best_x_adv, best_distance

    def _minimize(self, model: nn.Module, x_natural: Tensor, labels: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """As perturb, for given constants [B]."""
        w = torch.atanh(_SHRINK * (2 * x_natural - 1)).requires_grad_()
        optimizer = torch.optim.Adam([w], lr=self.learning_rate)
        best_x_adv, best_distance = x_natural.clone(), torch.full_like(constant, math.inf)
        check_every, last_loss = max(self.num_steps // 10, 1), math.inf
        for step in range(self.num_steps):
            x_adv = (w.tanh() + 1) / 2
            squared_distance = (x_adv - x_natural).square().sum((1, 2, 3))
            lead = -margin(model(x_adv), labels)  # of the right class; negative where the image is adversarial
            loss = (squared_distance + constant * (lead + self.confidence).clamp(min=0)).sum()
            with torch.no_grad():
                distance = squared_distance.sqrt()
                better = (lead <= -self.confidence) & (lead < 0) & (distance < best_distance)
                best_x_adv = torch.where(better.view(-1, 1, 1, 1), x_adv, best_x_adv)
                best_distance = torch.where(better, distance, best_distance)
            if step % check_every == 0:  # the authors' rule: stop when a tenth of the steps brought nothing
                if loss.item() > 0.9999 * last_loss:
                    break
                last_loss = loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return best_x_adv, best_distance
