"""AutoAttack (Croce and Hein, 2020) through its authors' library pyautoattack, one part and one batch at a time.

The library's own loop is not used: it cannot be interrupted between batches, and its check for changing models sets
the interpreter's trace function, which switches debuggers and coverage off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel

# The standard version, in its order.
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2"}
# The targeted DLR loss of apgd-t compares the four largest logits.
MIN_CLASSES_OF_DLR = 4
MAX_TARGETS = 9


@dataclass(frozen=True)
class PartAttack:
    """One of PARTS with the settings of the standard version, for any number of classes."""

    part: str
    is_random = False

    def note(self, model: nn.Module, x_natural: Tensor) -> str | None:
        """Why the part does nothing for this model, if so."""
        num_classes = count_classes(model, x_natural)
        if self.part != "apgd-t" or num_classes >= MIN_CLASSES_OF_DLR:
            return None
        return f"apgd-t is left out: its loss needs {MIN_CLASSES_OF_DLR} classes, and the model has {num_classes}"

    def survives(
        self,
        model: nn.Module,
        threat_model: ThreatModel,
        x_natural: Tensor,
        labels: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Which images [B] are classified as `labels` after the attack, a bool [B]; the seed is the first generator's.

        Raises ValueError without pyautoattack.
        """
        num_classes = count_classes(model, x_natural)
        if self.note(model, x_natural) is not None:
            return torch.ones_like(labels, dtype=torch.bool)
        devices = [x_natural.device] if x_natural.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            attack = self._attack(model, threat_model, generators[0].initial_seed(), num_classes, x_natural.device)
            x_adv = attack.perturb(x_natural.clone(), labels.clone())
            return model(x_adv).argmax(dim=1) == labels

    def _attack(self, model: nn.Module, threat_model: ThreatModel, seed: int, num_classes: int, device: Any) -> Any:
        library = import_pyautoattack()
        norm, epsilon = NORMS[threat_model.norm], threat_model.epsilon
        attacks = library.AutoAttack(model, norm=norm, eps=epsilon, seed=seed, device=device, version="standard")
        attacks.apgd.loss = "ce"
        attacks.fab.targeted = True
        attacks.apgd_targeted.n_target_classes = min(MAX_TARGETS, num_classes - 1)
        attacks.fab.n_target_classes = min(MAX_TARGETS, num_classes - 1)
        by_part = {
            "apgd-ce": attacks.apgd,
            "apgd-t": attacks.apgd_targeted,
            "fab-t": attacks.fab,
            "square": attacks.square,
        }
        return by_part[self.part]


def count_classes(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return model(x[:1]).shape[1]


def import_pyautoattack() -> Any:
    """The library. Raises ValueError where it is not installed."""
    try:
        import pyautoattack
    except ImportError as error:
        raise ValueError("AutoAttack needs pyautoattack: pip install 'fastadaad[aa]'") from error
    return pyautoattack
