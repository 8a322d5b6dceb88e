"""Accuracy under attack, over all images of a set, each exactly once."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation.attacks import AttackSpec, parse_attack
from fastadaad.inner_maximization import frozen

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One row of the table of results."""

    attack: str
    restarts: int
    norm: str
    epsilon: float
    num_images: int
    accuracy: float
    """Share of images classified correctly, before the attack and after each restart of it."""
    seconds: float

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval that so many images leave (normal approximation of the binomial)."""
        return 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_images)

    def row(self) -> dict:
        """The fields as columns of a table."""
        return asdict(self) | {"margin": self.margin}


def correct(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Which of the images x [B, C, H, W] the model classifies as labels [B], a bool [B]."""
    with torch.no_grad():
        return model(x).argmax(dim=1) == labels


def robust(
    model: nn.Module,
    attack: AttackSpec,
    threat_model: ThreatModel,
    x_natural: Tensor,
    labels: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Which images stay correctly classified, natural and after one attack per generator of starts, a bool [B]."""
    survives = correct(model, x_natural, labels)
    if attack.num_steps == 0:
        return survives
    maximizer = attack.maximizer(model, threat_model)
    for generator in generators:
        survives = survives & correct(model, maximizer(x_natural, labels, generator=generator), labels)
    return survives


def evaluate(
    model: nn.Module,
    batches: Callable[[], Batches],
    attacks: Iterable[str],
    *,
    threat_model: ThreatModel,
    restarts: int = 1,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda attack, num_images: None,
) -> list[AttackResult]:
    """One result per attack on all images of `batches()`, which yields (x_natural [B, C, H, W], labels [B]).

    The model is evaluated in eval mode and comes back in its own. `progress(attack, num_images)` is called after each
    batch. Raises ValueError for an unknown attack (before anything runs) or no images.
    """
    specs = [parse_attack(name) for name in attacks]
    device = next(model.parameters()).device
    results = []
    with frozen(model):
        for spec in specs:
            num_restarts = restarts if spec.start == "uniform" else 1
            # One per restart, so that more restarts only add to the starts of fewer.
            generators = [torch.Generator(device).manual_seed(seed + restart) for restart in range(num_restarts)]
            started, num_images, num_robust = time.perf_counter(), 0, torch.zeros((), dtype=torch.int64, device=device)
            for x_natural, labels in batches():
                num_robust += robust(model, spec, threat_model, x_natural, labels, generators).sum()
                num_images += len(labels)
                progress(spec.name, len(labels))
            if num_images == 0:
                raise ValueError("no images to evaluate on: the data set or its split is empty")
            results.append(
                AttackResult(
                    attack=spec.name,
                    restarts=num_restarts,
                    norm=threat_model.norm,
                    epsilon=threat_model.epsilon,
                    num_images=num_images,
                    accuracy=num_robust.item() / num_images,
                    seconds=time.perf_counter() - started,
                )
            )
    return results
