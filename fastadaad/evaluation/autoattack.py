"""Stages of AutoAttack (Croce and Hein, 2020), run one batch at a time by its authors' library pyautoattack.

The library's own loop is not used. It cannot be interrupted between batches, and its check for changing models sets
the interpreter's trace function, which switches debuggers and coverage off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2"}
# The targeted DLR loss of apgd-t compares the four largest logits, the DLR loss of apgd-dlr the three largest.
MIN_CLASSES = {"apgd-t": 4, "apgd-dlr": 3}
MAX_TARGETS = 9


@dataclass(frozen=True)
class AutoAttackStage:
    """A stage of AutoAttack's standard version or of its version rand, for any number of classes.

    Args:
        stage: One of attack_names.AUTOATTACK_STAGES, or apgd-dlr.
        num_draws: Forward and backward passes per step of apgd, whose gradients are averaged (EoT).
    """

    stage: str
    num_draws: int = 1
    is_random = False

    def note(self, model: nn.Module, x_natural: Tensor) -> str | None:
        """Returns the reason if the stage is left out for this model, otherwise None."""
        num_classes, least = count_classes(model, x_natural), MIN_CLASSES.get(self.stage, 0)
        if num_classes >= least:
            return None
        return f"{self.stage} is left out: its loss needs {least} classes, and the model has {num_classes}"

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
            threat_model: Norm and radius.
            x_natural: Images [B, C, H, W], fp32 in [0, 1].
            labels: Class numbers [B], int64.
            generators: The initial seed of the first generator seeds the library.

        Returns:
            x_adv [B, C, H, W].

        Raises:
            ValueError: pyautoattack is not installed.
        """
        num_classes = count_classes(network, x_natural)
        if self.note(network, x_natural) is not None:
            return x_natural
        devices = [x_natural.device] if x_natural.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            attack = self._attack(network, threat_model, generators[0].initial_seed(), num_classes, x_natural.device)
            return attack.perturb(x_natural.clone(), labels.clone())

    def _attack(self, model: nn.Module, threat_model: ThreatModel, seed: int, num_classes: int, device: Any) -> Any:
        library = import_pyautoattack()
        norm, epsilon = NORMS[threat_model.norm], threat_model.epsilon
        attacks = library.AutoAttack(model, norm=norm, eps=epsilon, seed=seed, device=device, version="standard")
        attacks.apgd.loss = "dlr" if self.stage == "apgd-dlr" else "ce"
        attacks.apgd.eot_iter = self.num_draws
        attacks.fab.targeted = True
        attacks.apgd_targeted.n_target_classes = min(MAX_TARGETS, num_classes - 1)
        attacks.fab.n_target_classes = min(MAX_TARGETS, num_classes - 1)
        by_stage = {
            "apgd-ce": attacks.apgd,
            "apgd-dlr": attacks.apgd,
            "apgd-t": attacks.apgd_targeted,
            "fab-t": attacks.fab,
            "square": attacks.square,
        }
        return by_stage[self.stage]


# Version rand of the library.
RANDOM_STAGES = (AutoAttackStage("apgd-ce", num_draws=20), AutoAttackStage("apgd-dlr", num_draws=20))


def count_classes(model: nn.Module, x: Tensor) -> int:
    """Returns the number of logits that the model gives for an image of x [B, C, H, W]."""
    with torch.no_grad():
        return model(x[:1]).shape[1]


def import_pyautoattack() -> Any:
    """Imports the library. Raises ValueError if it is not installed."""
    try:
        import pyautoattack
    except ImportError as error:
        raise ValueError("AutoAttack needs pyautoattack: pip install 'fastadaad[aa]'") from error
    return pyautoattack
