"""Evaluation attacks by name, and the gradient attacks among them.

An attack returns which images of a batch survive it. `natural`, `fgsm`, `pgdN`, `pgdN-targeted` and `cw-linfN` are
projected gradient ascent on the cross-entropy or on the margin, run by the inner loop of the training; see
carlini_wagner.py and autoattack.py for the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import (
    InnerConfig,
    Layout,
    Mode,
    PrecisionConfig,
    Start,
    ThreatModel,
    require,
    require_bool,
    require_choice,
)
from fastadaad.evaluation.attack_names import AUTOATTACK_STAGES, RANDOM_AUTOATTACK, split_attack_name
from fastadaad.evaluation.autoattack import RANDOM_STAGES, AutoAttackStage, import_pyautoattack
from fastadaad.evaluation.carlini_wagner import CarliniWagner
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.methods.objectives import CROSS_ENTROPY, MARGIN, TARGETED_CROSS_ENTROPY, InnerObjective
from fastadaad.runtime.precision import STRICT_FP32, tensor_cores

# Target classes of a targeted attack, those of AutoAttack's targeted stages: all other classes of CIFAR-10.
NUM_TARGETS = 9


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Execution of the search for adversarial images; none of it changes the network that classifies them.

    Args:
        mode: `eager`, `compiled`, or `auto`: compiled if the attack is long enough to gain by it.
        precision: Arithmetic of the search.
        layout: Memory layout of the folded copy's convolutions.
        fold: Search on a folded copy of the network.
    """

    mode: Mode = "auto"
    precision: PrecisionConfig = STRICT_FP32
    layout: Layout = "auto"
    fold: bool = True

    def __post_init__(self) -> None:
        require(
            self.mode in ("eager", "compiled", "auto"),
            f"mode is {self.mode!r}: choose eager, compiled or auto",
        )
        require_choice("layout", self.layout, Layout)
        require_bool("fold", self.fold)


@dataclass(frozen=True, kw_only=True)
class GradientAttack:
    """Projected gradient ascent (Madry et al., 2018) from the natural image or from random starts.

    Args:
        num_steps: Number of steps; 0 runs no attack.
        relative_step_size: Step size as a multiple of epsilon.
        start: "natural", or "uniform" in the ball around the image.
        objective: Quantity to maximise: the cross-entropy, or the margin max_{j != y} z_j - z_y of the logits z.
        num_targets: Number of classes that the image is attacked towards, one after the other: those with the largest
            logits of the natural image other than its label's, or all others if there are fewer. 0: away from the
            label.
    """

    num_steps: int
    relative_step_size: float = 0.0
    start: Start = "natural"
    objective: InnerObjective = CROSS_ENTROPY
    num_targets: int = 0

    @property
    def is_random(self) -> bool:
        """True if another restart can find more adversarial images."""
        return self.start == "uniform"

    def goals(self, model: nn.Module, x_natural: Tensor, labels: Tensor) -> Sequence[Tensor]:
        """Returns the class numbers [B] that each search of a restart gets: the labels, or the targets in turn."""
        if not self.num_targets:
            return [labels]
        with torch.no_grad(), tensor_cores(STRICT_FP32, x_natural.device):
            logits = model(x_natural)
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return others.topk(min(self.num_targets, logits.shape[1] - 1), dim=1).indices.unbind(1)

    def maximizer(self, model: nn.Module, threat_model: ThreatModel, settings: SearchSettings) -> InnerMaximizer:
        """Returns the search for adversarial images, a function (x_natural, labels) -> x_adv."""
        inner = InnerConfig(
            threat_model=threat_model,
            step_size=self.relative_step_size * threat_model.epsilon,
            num_steps=self.num_steps,
            start=self.start,
        )
        return InnerMaximizer(
            model,
            method=replace(methods.get("pgd-at"), name="attack", objective=self.objective),
            inner=inner,
            precision=settings.precision,
            layout=settings.layout,
            fold=settings.fold,
            mode="eager" if settings.mode == "auto" else settings.mode,
        )


Attack = GradientAttack | CarliniWagner | AutoAttackStage


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """A named attack as a sequence of stages, each of which attacks the survivors of the stages before."""

    name: str
    stages: tuple[tuple[str, Attack], ...]
    """Name and attack of each stage; a single one except for autoattack and autoattack-rand."""


def correct(model: nn.Module, x: Tensor, labels: Tensor, nonfinite: Tensor | None = None) -> Tensor:
    """Classifies the images of x in fp32, without TF32, whatever the precision of the search.

    Args:
        model: Network in eval mode, from pixels to logits [B, N].
        x: Images [B, C, H, W].
        labels: Class numbers [B], int64.
        nonfinite: Counter, a scalar on the device, to which the number of images with NaN or inf in their logits is
            added. Their argmax is the position of a NaN.

    Returns:
        A bool tensor [B]: True if the model classifies the image as its label.
    """
    with torch.no_grad(), tensor_cores(STRICT_FP32, x.device):
        logits = model(x)
        if nonfinite is not None:
            nonfinite += (~logits.isfinite()).any(dim=1).sum()
        return logits.argmax(dim=1) == labels


def check_finite(attack: str, num_nonfinite: float) -> None:
    """Raises ValueError if `num_nonfinite` images had NaN or inf in their logits during `attack`."""
    if num_nonfinite:
        raise ValueError(
            f"the model returns NaN or inf (attack {attack}): its weights are damaged, or an image holds NaN; repair it"
        )


def parse_attack(name: str) -> AttackSpec:
    """Builds an attack from its name.

    Args:
        name: One of

            - natural: no attack.
            - fgsm: one step of epsilon from the natural image (Goodfellow et al., 2015).
            - pgdN: N steps of epsilon / 4 (2/255 at the usual 8/255) on the cross-entropy from a uniform start.
            - pgdN-targeted: the steps of pgdN towards each of the nine most likely wrong classes, or all if there are
              fewer, each from a uniform start of its own. The image survives if no search succeeds, whatever the class.
            - cw-linfN (N = 20 if absent): the steps of pgdN on the margin.
            - cw, cwN: the Carlini-Wagner attack of the AdaAD paper with 1000 or N iterations.
            - cw-l2: the full Carlini-Wagner attack, within an l2 radius.
            - autoattack: the four stages of AutoAttack; apgd-ce, apgd-t, fab-t and square run one of them alone.
            - autoattack-rand: AutoAttack's version for networks that use chance: apgd-ce and apgd-dlr on the mean
              gradient of 20 draws.

            N has at most five digits.

    Returns:
        The attack with its stages.

    Raises:
        ValueError: The name is unknown.
    """
    if name == RANDOM_AUTOATTACK:
        return AttackSpec(name=name, stages=tuple((stage.stage, stage) for stage in RANDOM_STAGES))
    stages = AUTOATTACK_STAGES if name == "autoattack" else (name,)
    return AttackSpec(name=name, stages=tuple((stage, _single(stage)) for stage in stages))


def check_attacks(names: Iterable[str], threat_model: ThreatModel) -> None:
    """Raises ValueError for an attack that is unknown, does not fit the threat model or lacks its library."""
    for name in names:
        for _, attack in parse_attack(name).stages:
            if isinstance(attack, AutoAttackStage):
                import_pyautoattack()
            if isinstance(attack, CarliniWagner):
                attack.check(threat_model)


def _single(name: str) -> Attack:
    family, num_steps = split_attack_name(name)
    if family in AUTOATTACK_STAGES:
        return AutoAttackStage(family)
    if family == "natural":
        return GradientAttack(num_steps=0)
    if family == "fgsm":
        return GradientAttack(num_steps=1, relative_step_size=1.0)
    if family == "cw-l2":
        return CarliniWagner(num_steps=1000, search_steps=9, constant=1e-3, confidence=0.0, within_epsilon=True)
    assert num_steps is not None
    if family == "cw":
        return CarliniWagner(num_steps=num_steps)
    objective = {"cw-linf": MARGIN, "pgd-targeted": TARGETED_CROSS_ENTROPY, "pgd": CROSS_ENTROPY}[family]
    num_targets = NUM_TARGETS if family == "pgd-targeted" else 0
    return GradientAttack(
        num_steps=num_steps, relative_step_size=0.25, start="uniform", objective=objective, num_targets=num_targets
    )
