"""Settings that the weights of a run depend on, which tell two runs apart and identify a run that is resumed."""

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadaad.config import PrecisionConfig
from fastadaad.data.datasets import OWN_DATASETS
from fastadaad.models.shipped import checkpoint_path
from fastadaad.models.weights_reading import check_is_file
from fastadaad.run_config import DataConfig, RunConfig
from fastadaad.runtime.precision import resolved
from fastadaad.runtime.version import version
from fastadaad.training.build import resolve_device

# Item of a checkpoint's facts that identifies the images; a configuration only names them.
DATA = "data_sha256"

# Settings that change neither the weights of a run nor the choice of its best epoch.
IRRELEVANT = {
    "data": ("download", "num_workers"),
    "evaluation": ("attacks", "restarts", "batch_size", "mode", "precision", "num_images"),
}
IRRELEVANT_AT_THE_TOP = ("log_every", "checkpoint_every", "on_nonfinite", "teacher_check", "rank_timeout_s", "trackers")

# Settings that some checkpoints are older than: left out at their defaults, so that those runs are the same.
LATER = {
    "data": ("label_smoothing", "mixup", "cutmix", "auto_augment"),
    "optim": ("grad_clip", "awp_form"),
    "inner": ("step_factors",),
    "student": ("prefix", "mean", "std"),
    "teacher": ("prefix", "mean", "std", "beside", "beside_weight"),
}


def training_facts(config: RunConfig) -> dict[str, Any]:
    """Returns the settings that the weights of a run depend on, as JSON has them.

    The teacher is named by its sha256, and the precision `auto` is resolved for the run's device.
    """
    facts = asdict(config)
    facts["precision"] = asdict(precision_of(config))
    for name in IRRELEVANT_AT_THE_TOP:
        del facts[name]
    facts["data"]["root"] = place(config.data)
    for section, names in IRRELEVANT.items():
        for name in names:
            del facts[section][name]
    for section, names in LATER.items():
        for name in names:
            if facts[section] is not None and not facts[section][name]:
                del facts[section][name]
    if config.teacher is not None:
        facts["teacher"]["checkpoint"] = sha256_of(config.teacher.checkpoint)
        if config.teacher.beside is not None:
            facts["teacher"]["beside"] = sha256_of(config.teacher.beside)
    return json.loads(json.dumps(facts))


def precision_of(config: RunConfig) -> PrecisionConfig:
    """Returns the precision of a run of `config` on its device.

    Raises:
        ValueError: The device cannot be used.
    """
    return resolved(
        config.precision,
        resolve_device(config.device),
        student_folds=config.fold and config.inner.student_eval,
        teacher_folds=config.fold,
    )


def sha256_of(checkpoint: str | None) -> str | None:
    """Returns the sha256 of a file of weights, named as in a ModelConfig; None for None.

    Raises:
        ValueError: The file is missing.
    """
    if checkpoint is None:
        return None
    path = checkpoint_path(checkpoint)
    check_is_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def place(data: DataConfig) -> str | None:
    """Returns the folder of the images if it identifies them, as for a user's own data set."""
    return str(Path(data.root).resolve()) if data.name in OWN_DATASETS and data.root is not None else None


def differences(saved: dict[str, Any], present: dict[str, Any], prefix: str = "") -> list[str]:
    """Lists the settings that differ, both given as JSON has them: one string per setting, by its dotted name."""
    found = []
    for name in dict.fromkeys([*saved, *present]):
        before, now = saved.get(name), present.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{prefix}{name}.")
        elif before != now:
            is_hash = "sha256" in name or f"{prefix}{name}" in ("teacher.checkpoint", "teacher.beside")
            found.append(f"{prefix}{name} has other contents" if is_hash else f"{prefix}{name} {before} -> {now}")
    return found


def versions() -> dict[str, str]:
    """Returns the versions of the programs that compute the weights."""
    return {
        "fastadaad": version("fastadaad"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
