"""Attacks in parts, each on the images that survived those before; what has been attacked is kept in a file."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation.attacks import AttackSpec, correct
from fastadaad.runtime.files import write_atomically


@dataclass(kw_only=True)
class Survival:
    """Which images survive so far, and how far the attack has come."""

    survives: list[bool]
    attacked: list[bool]
    """By the current part."""
    accuracies: list[float]
    """After each finished part."""
    seconds: list[float]
    """Of each part, the current one included."""

    def __post_init__(self) -> None:
        kinds = {"survives": bool, "attacked": bool, "accuracies": float, "seconds": float}
        lists = {name: getattr(self, name) for name in kinds}
        if not all(isinstance(lists[name], list) and set(map(type, lists[name])) <= {kinds[name]} for name in kinds):
            raise TypeError("a list is none, or holds something else")
        if len(self.survives) != len(self.attacked) or not 0 <= len(self.seconds) - len(self.accuracies) <= 1:
            raise ValueError("two lists do not belong together")

    def advance(self, indices: Sequence[int], survives: Tensor, seconds: float) -> None:
        """Enter the outcome of the current part for the images `indices`."""
        for index, survived in zip(indices, survives.tolist(), strict=True):
            self.survives[index], self.attacked[index] = survived, True
        self.seconds[-1] += seconds


class Keeper:
    """Writes a Survival after each batch and reads it back; without a folder it does neither."""

    def __init__(self, folder: Path | None, name: str, facts: object) -> None:
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        self._path = None if folder is None else folder / f"{name}_{digest}.json"

    def load(self) -> Survival | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            return Survival(**json.loads(self._path.read_text()))
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{self._path} is not what an evaluation kept: delete it, and this attack begins anew"
            ) from error

    def save(self, survival: Survival) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(asdict(survival)).encode())


def fingerprint(*tensors: Tensor) -> str:
    """sha256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def attack_survivors(
    model: nn.Module,
    spec: AttackSpec,
    threat_model: ThreatModel,
    x_natural: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    generators: Sequence[torch.Generator],
    keeper: Keeper,
    progress: Callable[[str, int], None],
) -> Survival:
    """Run the parts of `spec` on x_natural [M, C, H, W] in batches, going on from what `keeper` has kept."""
    survival = keeper.load() or _before_attack(model, x_natural, labels, batch_size)
    for number, (part, attack) in enumerate(spec.stages):
        if number < len(survival.accuracies):
            progress(part, len(labels))
            continue
        if number == len(survival.seconds):
            survival.attacked = [False] * len(labels)
            survival.seconds.append(0.0)
        pairs = enumerate(zip(survival.survives, survival.attacked, strict=True))
        pending = [index for index, (survives, attacked) in pairs if survives and not attacked]
        progress(part, len(labels) - len(pending))
        for start in range(0, len(pending), batch_size):
            indices = pending[start : start + batch_size]
            started = time.perf_counter()
            survives = attack.survives(model, threat_model, x_natural[indices], labels[indices], generators)
            survival.advance(indices, survives, time.perf_counter() - started)
            keeper.save(survival)
            progress(part, len(indices))
        survival.accuracies.append(sum(survival.survives) / len(labels))
        keeper.save(survival)
    return survival


def _before_attack(model: nn.Module, x_natural: Tensor, labels: Tensor, batch_size: int) -> Survival:
    batches = zip(x_natural.split(batch_size), labels.split(batch_size), strict=True)
    survives = torch.cat([correct(model, x, y) for x, y in batches]).tolist()
    return Survival(survives=survives, attacked=[False] * len(labels), accuracies=[], seconds=[])
