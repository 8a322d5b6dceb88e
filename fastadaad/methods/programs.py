"""Settings that turn each row into its authors' released program; docs/methods.md has the whole table.

The rows themselves keep one form for all methods. The recipes of the papers apply these settings.
"""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Program:
    """Settings in which a program differs from its row."""

    source: str
    """Repository or paper, and file."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method."""
    options_by_data: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further options, by the name of the data set."""
    inner: dict[str, Any] = field(default_factory=dict)
    """Settings of the search."""
    optim: dict[str, Any] = field(default_factory=dict)
    """Settings of the optimiser."""


_TRAIN_MODE = {"start": "uniform-unclipped", "student_eval": False}
_DECAY = {"weight_decay": 2e-4}
_IGDM_WEIGHT: dict[str, dict[str, Any]] = {"cifar10": {"igdm_weight": 1.0}, "cifar100": {"igdm_weight": 10.0}}

PROGRAMS = {
    "adaad": Program(
        source="AdaAD main.py",
        options_by_data={"cifar10": {"kl_reduction": "mean"}, "cifar100": {"kl_reduction": "batchmean"}},
    ),
    "adaiad": Program(
        source="AdaAD main.py, AdaAD_with_IAD1",
        options={"statistics": ("natural", "adversarial", "natural-introspective", "natural")},
    ),
    "pgd-at": Program(source="AdaAD main.py, Plain_Madry", options={"statistics": ("adversarial", "natural")}),
    "trades": Program(
        source="TRADES trades.py", options={"statistics": ("natural", "adversarial", "natural")}, optim=_DECAY
    ),
    "mart": Program(source="MART train_resnet.py", optim={"learning_rate": 0.01, "weight_decay": 3.5e-3}),
    "lbgat-fixed": Program(source="LBGAT lbgat.py", options={"statistics": ("adversarial", "natural")}, optim=_DECAY),
    "ard": Program(
        source="ARD main.py",
        options={"statistics": ("adversarial", "natural"), "kl_reduction": "mean"},
        inner=_TRAIN_MODE,
        optim=_DECAY,
    ),
    "iad": Program(
        source="IAD IAD-I.py",
        options={"statistics": ("adversarial", "natural", "natural-introspective"), "temperature": 1.0},
        inner=_TRAIN_MODE,
        optim=_DECAY,
    ),
    "rslad": Program(
        source="RSLAD resnet18_rslad_cifar10.py",
        options={"statistics": ("adversarial", "natural"), "kl_reduction": "mean"},
        options_by_data={"cifar100": {"loss_scale": 10.0}},
        optim=_DECAY,
    ),
    "akd": Program(source="IAD AKD2.py", options={"temperature": 1.0}, inner=_TRAIN_MODE, optim=_DECAY),
    "saad": Program(
        source="SAAD saad.py",
        options={"statistics": ("adversarial", "opposite", "natural")},
        options_by_data=_IGDM_WEIGHT,
        optim=_DECAY,
    ),
    "adaad+igdm": Program(
        source="SAAD igdm.py",
        options={"statistics": ("adversarial", "opposite")},
        options_by_data=_IGDM_WEIGHT,
        optim=_DECAY,
    ),
}


def program_of(method: str, data: str) -> Program:
    """Returns the program of a method, with the options for the data set called `data` among its options.

    A row with IGDM's term and without a program of its own has its base's program, and the pass of the term last. A row
    without a program has settings of its own alone.
    """
    base, plus, _ = method.partition("+")
    program = PROGRAMS.get(method) or PROGRAMS.get(base) or Program(source="")
    options = program.options | program.options_by_data.get(data, {})
    if plus and method not in PROGRAMS:
        options |= _IGDM_WEIGHT.get(data, {})
        if "statistics" in options:
            options["statistics"] = (*options["statistics"], "opposite")
    return replace(program, options=options, options_by_data={})
