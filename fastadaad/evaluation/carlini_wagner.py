"""Attack of Carlini and Wagner (2017) in l2, batched, with a binary search over the constant of each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.methods.objectives import margin

# Pixels of exactly 0 or 1 lie at infinity in tanh space; this factor keeps them finite.
_SHRINK = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """Minimises |delta|^2 + constant * max(z_y - max_{j != y} z_j + confidence, 0) by Adam in tanh space.

    z are the logits, y is the label. The defaults are the settings of the AdaAD paper's evaluation: one constant, no
    search and no radius.

    Args:
        num_steps: Largest number of steps of Adam for each constant.
        search_steps: Number of constants that the binary search tries for each image.
        constant: First constant.
        confidence: Lead in logits that an adversarial image must have.
        learning_rate: Learning rate of Adam.
        within_epsilon: If True, an image counts as broken only within the l2 radius of the threat model; otherwise at
            any distance.
    """

    num_steps: int = 1000
    search_steps: int = 1
    constant: float = 0.1
    confidence: float = 0.01
    learning_rate: float = 0.01
    within_epsilon: bool = False
    is_random = False

    def check(self, threat_model: ThreatModel) -> None:
        """Raises ValueError if the attack needs an l2 radius and the threat model has another norm."""
        if self.within_epsilon and threat_model.norm != "l2":
            raise ValueError(f"cw-l2 needs an l2 radius, and the threat model's norm is {threat_model.norm}: use cw")

    def adversarial_images(
        self,
        network: nn.Module,
        threat_model: ThreatModel,
        x_natural: Tensor,
        labels: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Attacks a batch.

        Args:
            network: Network in eval mode or its folded copy, from pixels to logits [B, N].
            threat_model: Radius, if the attack has one.
            x_natural: Images [B, C, H, W], fp32 in [0, 1].
            labels: Class numbers [B], int64.
            generators: Not used, as the attack has no random start.

        Returns:
            x_adv [B, C, H, W]; the natural image if no adversarial image was found.
        """
        x_adv, distance = self.perturb(network, x_natural, labels)
        if not self.within_epsilon:
            return x_adv
        return torch.where((distance > threat_model.epsilon).view(-1, 1, 1, 1), x_natural, x_adv)

    def perturb(self, model: nn.Module, x_natural: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Searches for the closest adversarial images.

        Args:
            model: Network in eval mode, from pixels to logits [B, N].
            x_natural: Images [B, C, H, W], fp32 in [0, 1].
            labels: Class numbers [B], int64.

        Returns:
            x_adv [B, C, H, W] and the l2 distances [B] from x_natural. If no adversarial image was found, x_adv is the
            natural image and the distance is infinite.
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
        """Runs Adam with one constant [B] per image; returns the same as perturb."""
        w = torch.atanh(_SHRINK * (2 * x_natural - 1)).requires_grad_()
        optimizer = torch.optim.Adam([w], lr=self.learning_rate)
        best_x_adv, best_distance = x_natural.clone(), torch.full_like(constant, math.inf)
        check_every, last_loss = max(self.num_steps // 10, 1), math.inf
        for step in range(self.num_steps):
            x_adv = (w.tanh() + 1) / 2
            squared_distance = (x_adv - x_natural).square().sum((1, 2, 3))
            lead = -margin(model(x_adv), labels)  # of the right class; negative if the image is adversarial
            loss = (squared_distance + constant * (lead + self.confidence).clamp(min=0)).sum()
            with torch.no_grad():
                distance = squared_distance.sqrt()
                better = (lead <= -self.confidence) & (lead < 0) & (distance < best_distance)
                best_x_adv = torch.where(better.view(-1, 1, 1, 1), x_adv, best_x_adv)
                best_distance = torch.where(better, distance, best_distance)
            if step % check_every == 0:  # the authors' rule: stop if a tenth of the steps did not reduce the loss
                total = loss.item()
                if not math.isfinite(total):
                    raise ValueError("the model returns NaN or inf (attack cw): repair its weights")
                if total > 0.9999 * last_loss:
                    break
                last_loss = total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return best_x_adv, best_distance
