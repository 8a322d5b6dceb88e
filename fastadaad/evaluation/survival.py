"""Attacks in stages, each on the survivors of the stages before it, with their progress saved in a file."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadaad.config import PrecisionConfig, ThreatModel
from fastadaad.evaluation.attacks import AttackSpec, GradientAttack, check_finite, correct
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.json_files import JsonError, read_json
from fastadaad.runtime.precision import tensor_cores
from fastadaad.runtime.untrusted_files import SUMMARY_BYTES

REMEDY = "delete it, and this attack starts again"


@dataclass(kw_only=True)
class Survival:
    """Progress of an attack: the surviving images and the finished stages.

    Attributes:
        survives: True for each image that is classified correctly before the attack and after it, so far.
        attacked: True for each image that the current stage has attacked.
        accuracies: Accuracy after each finished stage, a fraction.
        seconds: Duration of each stage, including the current one.
    """

    survives: list[bool]
    attacked: list[bool]
    accuracies: list[float]
    seconds: list[float]

    def __post_init__(self) -> None:
        if len(self.survives) != len(self.attacked) or not 0 <= len(self.seconds) - len(self.accuracies) <= 1:
            raise ValueError("the lengths of two lists do not match")

    def advance(self, indices: Sequence[int], survives: Tensor, seconds: float) -> None:
        """Records the outcome of the current stage for the images `indices`."""
        for index, survived in zip(indices, survives.tolist(), strict=True):
            self.survives[index], self.attacked[index] = survived, True
        self.seconds[-1] += seconds


class Keeper:
    """Saves a Survival after each batch and loads it again; does nothing without a folder.

    Args:
        folder: Folder of the files, or None.
        name: Name of the attack.
        facts: Everything that the outcome depends on, as JSON. Other facts have another file.
    """

    def __init__(self, folder: Path | None, name: str, facts: object) -> None:
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        self._path = None if folder is None else folder / f"{name}_{digest}.json"

    def load(self, num_images: int) -> Survival | None:
        """Loads the progress of an attack on `num_images` images.

        Returns:
            The progress, or None if no file has these facts.

        Raises:
            ValueError: The file is damaged.
        """
        if self._path is None or not self._path.exists():
            return None
        survival = read_json(self._path, Survival, REMEDY, limit=SUMMARY_BYTES)
        if len(survival.survives) != num_images:
            raise JsonError(f"{self._path} is of {len(survival.survives)} images, not {num_images}: {REMEDY}")
        return survival

    def save(self, survival: Survival) -> None:
        """Writes the progress in one piece."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(asdict(survival)).encode())


def sha256_of_tensors(*tensors: Tensor) -> str:
    """Returns the sha256 of the bytes of all tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def attack_survivors(
    model: nn.Module,
    network: nn.Module,
    spec: AttackSpec,
    threat_model: ThreatModel,
    x_natural: Tensor,
    labels: Tensor,
    *,
    precision: PrecisionConfig,
    batch_size: int,
    generators: Sequence[torch.Generator],
    keeper: Keeper,
    progress: Callable[[str, int], None],
) -> Survival:
    """Runs the stages of an attack, each on the images that survived the stages before it.

    Args:
        model: Network in eval mode, from pixels to logits [B, N], which decides in fp32 whether an image survives.
        network: The network or its folded copy, on which adversarial images are searched.
        spec: Attack and its stages.
        threat_model: Norm and radius.
        x_natural: Images [M, C, H, W], fp32 in [0, 1].
        labels: Class numbers [M], int64.
        precision: Arithmetic of `network`.
        batch_size: Images per batch.
        generators: One generator of random starts per restart.
        keeper: Saved progress, from which the attack resumes.
        progress: Function that is called with the name of the stage and the number of images after each batch.

    Returns:
        The survival of each image, and the accuracy and the seconds of each stage.
    """
    survival = keeper.load(len(labels)) or _before_attack(model, x_natural, labels, batch_size)
    for number, (stage, attack) in enumerate(spec.stages):
        assert not isinstance(attack, GradientAttack)  # it makes one pass over all images; see gradient_pass.py
        if number < len(survival.accuracies):
            progress(stage, len(labels))
            continue
        if number == len(survival.seconds):
            survival.attacked = [False] * len(labels)
            survival.seconds.append(0.0)
        pairs = enumerate(zip(survival.survives, survival.attacked, strict=True))
        pending = [index for index, (survives, attacked) in pairs if survives and not attacked]
        progress(stage, len(labels) - len(pending))
        for start in range(0, len(pending), batch_size):
            indices = pending[start : start + batch_size]
            started = time.perf_counter()
            attacked = x_natural[indices], labels[indices]
            with tensor_cores(precision, labels.device):
                x_adv = attack.adversarial_images(network, threat_model, *attacked, generators)
            survives = correct(model, x_adv, labels[indices])
            survival.advance(indices, survives, time.perf_counter() - started)
            keeper.save(survival)
            progress(stage, len(indices))
        survival.accuracies.append(sum(survival.survives) / len(labels))
        keeper.save(survival)
    return survival


def _before_attack(model: nn.Module, x_natural: Tensor, labels: Tensor, batch_size: int) -> Survival:
    batches = zip(x_natural.split(batch_size), labels.split(batch_size), strict=True)
    nonfinite = torch.zeros((), dtype=torch.int64, device=labels.device)
    survives = torch.cat([correct(model, x, y, nonfinite) for x, y in batches]).tolist()
    check_finite("natural", nonfinite.item())
    return Survival(survives=survives, attacked=[False] * len(labels), accuracies=[], seconds=[])
