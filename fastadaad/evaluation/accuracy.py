"""Accuracy under attack, over all images of a set, each exactly once."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation.attacks import AttackSpec, GradientAttack, check_attacks, correct, parse_attack
from fastadaad.evaluation.autoattack import AutoAttackStage
from fastadaad.evaluation.survival import Keeper, attack_survivors, fingerprint
from fastadaad.inner.caller import bare
from fastadaad.inner.checks import check_values
from fastadaad.inner.folding import fold
from fastadaad.inner.maximizer import frozen

Batches = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[str, int], None]

# A gap this wide between gradient ascent and AutoAttack means that the gradients mislead. Adversarially trained
# networks show one to five points (the paper's own table: at most 5.4).
MASKING_GAP = 0.1


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One row of the table of results."""

    attack: str
    restarts: int
    norm: str
    epsilon: float
    num_images: int
    accuracy: float
    """Share of images classified correctly, before the attack and after each restart and part of it."""
    seconds: float
    parts: tuple[tuple[str, float, float], ...] = ()
    """Of an attack in several parts: name, accuracy after it, its seconds."""
    notes: tuple[str, ...] = ()
    """What a reader of the figure must know."""

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval that so many images leave (normal approximation of the binomial)."""
        return 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_images)

    def row(self) -> dict:
        """The fields as columns of a table; parts and notes as text."""
        row = asdict(self) | {"margin": self.margin}
        row["parts"] = "; ".join(f"{part} {accuracy:.4f} in {seconds:.1f} s" for part, accuracy, seconds in self.parts)
        row["notes"] = "; ".join(self.notes)
        return row

    @classmethod
    def from_json(cls, fields: dict) -> "AttackResult":
        """The inverse of dataclasses.asdict through JSON, which knows no tuples."""
        parts = tuple((part, accuracy, seconds) for part, accuracy, seconds in fields["parts"])
        return cls(**fields | {"parts": parts, "notes": tuple(fields["notes"])})


def evaluate(
    model: nn.Module,
    batches: Callable[[], Batches],
    attacks: Iterable[str],
    *,
    threat_model: ThreatModel,
    restarts: int = 1,
    seed: int = 0,
    progress: Progress = lambda part, num_images: None,
    state: Path | None = None,
) -> list[AttackResult]:
    """One result per attack on all images of `batches()`, which yields (x_natural [B, C, H, W], labels [B]).

    The model is evaluated in eval mode, without a wrapper of DistributedDataParallel or torch.compile, and comes back
    in its own; the caller may be in any grad mode or in inference mode. `progress(part, num_images)` is called after
    each batch of each part of an attack. In the folder `state` the attacks in parts keep what they have done, so that
    they go on from there. Raises ValueError for an unknown attack (before anything runs), one that does not fit the
    threat model, no images, or pixels outside [0, 1] in the first batch.
    """
    specs = [parse_attack(name) for name in attacks]
    check_attacks([spec.name for spec in specs], threat_model)
    device = next(model.parameters()).device
    results, model = [], bare(model)
    with torch.inference_mode(False), torch.enable_grad(), frozen(model):
        for spec in specs:
            num_restarts = restarts if any(attack.is_random for _, attack in spec.stages) else 1
            # One per restart, so that more restarts only add to the starts of fewer.
            generators = [torch.Generator(device).manual_seed(seed + restart) for restart in range(num_restarts)]
            attack = spec.stages[0][1]
            checked = _checked(batches())
            if isinstance(attack, GradientAttack):  # then it is the only part
                measured = _on_batches(model, attack, threat_model, checked, generators, spec.name, progress)
            else:
                measured = _on_survivors(model, spec, threat_model, checked, generators, progress, state)
            results.append(
                AttackResult(
                    attack=spec.name,
                    restarts=num_restarts,
                    norm=threat_model.norm,
                    epsilon=threat_model.epsilon,
                    **measured,
                )
            )
    return results


def _checked(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for number, (x_natural, labels) in enumerate(batches):
        if number == 0 and len(labels):
            check_values(x_natural)
        yield x_natural, labels


def _no_images() -> ValueError:
    return ValueError("no images to evaluate on: the data set or its split is empty")


def _on_batches(
    model: nn.Module,
    attack: GradientAttack,
    threat_model: ThreatModel,
    batches: Batches,
    generators: Sequence[torch.Generator],
    name: str,
    progress: Progress,
) -> dict[str, Any]:
    """num_images, accuracy and seconds of an attack that takes the images as they come."""
    device = next(model.parameters()).device
    started, num_images, num_robust = time.perf_counter(), 0, torch.zeros((), dtype=torch.int64, device=device)
    for x_natural, labels in batches:
        survives = attack.survives(model, threat_model, x_natural, labels, generators)
        num_robust += (correct(model, x_natural, labels) & survives).sum()
        num_images += len(labels)
        progress(name, len(labels))
    if num_images == 0:
        raise _no_images()
    accuracy = num_robust.item() / num_images
    return {"num_images": num_images, "accuracy": accuracy, "seconds": time.perf_counter() - started}


def _on_survivors(
    model: nn.Module,
    spec: AttackSpec,
    threat_model: ThreatModel,
    batches: Batches,
    generators: Sequence[torch.Generator],
    progress: Progress,
    state: Path | None,
) -> dict[str, Any]:
    """num_images, accuracy, seconds, parts and notes of an attack whose parts get the survivors only.

    All images are on the device at once; the batches are as large as the first of `batches`.
    """
    pairs = list(batches)
    if not pairs:
        raise _no_images()
    batch_size = len(pairs[0][1])
    x_natural, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    network, unfolded = fold(model, pairs[0][0], dtype=x_natural.dtype)
    left_out = [attack.note(network, x_natural) for _, attack in spec.stages if isinstance(attack, AutoAttackStage)]
    facts = [
        spec.name, asdict(threat_model), batch_size, [generator.initial_seed() for generator in generators],
        fingerprint(*model.state_dict().values()), fingerprint(x_natural, labels),
    ]  # fmt: skip
    survival = attack_survivors(
        network,
        spec,
        threat_model,
        x_natural,
        labels,
        batch_size=batch_size,
        generators=generators,
        keeper=Keeper(state, spec.name, facts),
        progress=progress,
    )
    names = [part for part, _ in spec.stages]
    return {
        "num_images": len(labels),
        "accuracy": survival.accuracies[-1],
        "seconds": sum(survival.seconds),
        "parts": tuple(zip(names, survival.accuracies, survival.seconds, strict=True)) if len(names) > 1 else (),
        "notes": tuple(note for note in (unfolded, *left_out) if note is not None),
    }


def merge(shards: Sequence[AttackResult]) -> AttackResult:
    """The result on all images, from those of the same attack on disjoint parts of them; seconds add up."""
    num_images = sum(shard.num_images for shard in shards)

    def mean(values: Iterable[float]) -> float:
        # Each is a whole number of images: counted, not averaged, they give what one evaluation of all would give.
        return sum(round(value * shard.num_images) for value, shard in zip(values, shards, strict=True)) / num_images

    return replace(
        shards[0],
        num_images=num_images,
        accuracy=mean(shard.accuracy for shard in shards),
        seconds=sum(shard.seconds for shard in shards),
        parts=tuple(
            (part[0][0], mean(accuracy for _, accuracy, _ in part), sum(seconds for _, _, seconds in part))
            for part in zip(*(shard.parts for shard in shards), strict=True)
        ),
        notes=tuple(dict.fromkeys(note for shard in shards for note in shard.notes)),
    )


def num_stages(attacks: Iterable[str]) -> int:
    """How often `evaluate` passes over the images: once for each part of each attack."""
    return sum(len(parse_attack(name).stages) for name in attacks)


def masking_warning(results: Iterable[AttackResult]) -> str | None:
    """What to say where AutoAttack, or its gradient-free part, falls far below gradient ascent on the same images."""
    accuracy = {result.attack: result.accuracy for result in results}
    ascent = [name for name in accuracy if name == "fgsm" or name.startswith(("pgd", "cw-linf"))]
    strong = [name for name in ("autoattack", "square") if name in accuracy]
    if not ascent or not strong:
        return None
    weakest, strongest = min(ascent, key=accuracy.__getitem__), min(strong, key=accuracy.__getitem__)
    if accuracy[weakest] - accuracy[strongest] <= MASKING_GAP:
        return None
    return (
        f"{strongest} leaves {100 * accuracy[strongest]:.1f} % where {weakest} leaves {100 * accuracy[weakest]:.1f} %: "
        "the gradients of this model are masked, and its accuracy under gradient attacks means little"
    )
