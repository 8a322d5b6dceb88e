"""The evaluation attacks: names -> settings.

Each attack says which images of a batch survive it. `natural`, `fgsm`, `pgdN` and `cw-linfN` are projected gradient
ascent on one of two objectives, by the engine of the training; the others have files of their own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import InnerConfig, Start, ThreatModel
from fastadaad.evaluation.autoattack import PARTS, PartAttack, import_pyautoattack
from fastadaad.evaluation.carlini_wagner import CarliniWagner
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.methods.objectives import CROSS_ENTROPY, MARGIN, InnerObjective

DEFAULT_STEPS = {"cw-linf": 20, "cw": 1000}
CHOICES = (
    "natural, fgsm, pgdN and cw-linfN with N steps such as pgd20, cw or cwN, cw-l2, autoattack, "
    f"or one of its parts {', '.join(PARTS)}"
)


@dataclass(frozen=True, kw_only=True)
class GradientAttack:
    """An attack by its number of steps and its step size in units of epsilon; num_steps 0: no attack."""

    num_steps: int
    relative_step_size: float = 0.0
    start: Start = "natural"
    objective: InnerObjective = CROSS_ENTROPY

    @property
    def is_random(self) -> bool:
        """Whether another restart can find more."""
        return self.start == "uniform"

    def maximizer(self, model: nn.Module, threat_model: ThreatModel) -> InnerMaximizer:
        """The search for the adversarial image, as (x_natural, labels) -> x_adv."""
        inner = InnerConfig(
            threat_model=threat_model,
            step_size=self.relative_step_size * threat_model.epsilon,
            num_steps=self.num_steps,
            start=self.start,
        )
        method = replace(methods.get("pgd-at"), name="attack", objective=self.objective)
        return InnerMaximizer(model, method=method, inner=inner)

    def survives(
        self,
        model: nn.Module,
        threat_model: ThreatModel,
        x_natural: Tensor,
        labels: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Which images are classified as `labels` [B] after one search per generator of starts, a bool [B]."""
        survives = torch.ones_like(labels, dtype=torch.bool)
        if self.num_steps == 0:
            return survives
        maximizer = self.maximizer(model, threat_model)
        for generator in generators:
            survives &= correct(model, maximizer(x_natural, labels, generator=generator), labels)
        return survives


Attack = GradientAttack | CarliniWagner | PartAttack


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """What a name stands for: one attack, or several of which each gets the images that survived those before."""

    name: str
    parts: tuple[tuple[str, Attack], ...]


def correct(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Which of the images x [B, C, H, W] the model classifies as labels [B], a bool [B]."""
    with torch.no_grad():
        return model(x).argmax(dim=1) == labels


def parse_attack(name: str) -> AttackSpec:
    """The attack called `name`.

    natural: none. fgsm: one step of epsilon from the image. pgdN: N steps of epsilon/4 (2/255 at the usual 8/255) on
    the cross-entropy from a uniform start. cw-linfN (N = 20 if absent): the same on the margin. cw, cwN: the paper's
    Carlini-Wagner attack with 1000 or N iterations. N has at most five digits. cw-l2: the full one, within an l2
    radius. apgd-ce, apgd-t, fab-t, square: the parts of autoattack. Raises ValueError for any other name.
    """
    if name == "autoattack":
        return AttackSpec(name=name, parts=tuple((part, PartAttack(part)) for part in PARTS))
    return AttackSpec(name=name, parts=((name, _single(name)),))


def check_attacks(names: Iterable[str], threat_model: ThreatModel) -> None:
    """Raises ValueError for an attack that is unknown, does not fit the threat model or lacks its library."""
    for name in names:
        for _, attack in parse_attack(name).parts:
            if isinstance(attack, PartAttack):
                import_pyautoattack()
            if isinstance(attack, CarliniWagner):
                attack.check(threat_model)


def _single(name: str) -> Attack:
    if name == "natural":
        return GradientAttack(num_steps=0)
    if name == "fgsm":
        return GradientAttack(num_steps=1, relative_step_size=1.0)
    if name == "cw-l2":
        return CarliniWagner(num_steps=1000, search_steps=9, constant=1e-3, confidence=0.0, within_epsilon=True)
    if name in PARTS:
        return PartAttack(name)
    match = re.fullmatch(r"(pgd|cw-linf|cw)([1-9][0-9]{0,4})?", name)
    if match is None or (match[1] == "pgd" and match[2] is None):
        raise ValueError(f"unknown attack {name!r}: choose {CHOICES}")
    num_steps = int(match[2] or DEFAULT_STEPS[match[1]])
    if match[1] == "cw":
        return CarliniWagner(num_steps=num_steps)
    objective = MARGIN if match[1] == "cw-linf" else CROSS_ENTROPY
    return GradientAttack(num_steps=num_steps, relative_step_size=0.25, start="uniform", objective=objective)
