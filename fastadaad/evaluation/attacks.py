"""The evaluation attacks: names -> settings. Each maximises the cross-entropy of the model under attack."""

import re
from dataclasses import dataclass

from torch import nn

from fastadaad.config import InnerConfig, Start, ThreatModel
from fastadaad.inner_maximization import InnerMaximizer


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """An attack by its number of steps and its step size in units of epsilon; num_steps 0: no attack."""

    name: str
    num_steps: int
    relative_step_size: float = 0.0
    start: Start = "natural"

    def maximizer(self, model: nn.Module, threat_model: ThreatModel) -> InnerMaximizer:
        """The search for the adversarial image, as (x_natural, labels) -> x_adv."""
        inner = InnerConfig(
            threat_model=threat_model,
            step_size=self.relative_step_size * threat_model.epsilon,
            num_steps=self.num_steps,
            start=self.start,
        )
        return InnerMaximizer(model, method="pgd-at", inner=inner)


def parse_attack(name: str) -> AttackSpec:
    """natural; fgsm: one step of epsilon from the image; pgdN: N steps of epsilon/4 from a uniform start.

    epsilon/4 is 2/255 at the usual 8/255. Raises ValueError for any other name.
    """
    if name == "natural":
        return AttackSpec(name=name, num_steps=0)
    if name == "fgsm":
        return AttackSpec(name=name, num_steps=1, relative_step_size=1.0)
    match = re.fullmatch(r"pgd([1-9][0-9]*)", name)
    if match is None:
        raise ValueError(f"unknown attack {name!r}: choose natural, fgsm or pgdN with N steps, such as pgd20")
    return AttackSpec(name=name, num_steps=int(match[1]), relative_step_size=0.25, start="uniform")
