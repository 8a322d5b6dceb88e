"""What the weights of a run depend on, so that two runs can be told apart and a resumed one is the same run."""

import hashlib
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadaad.data.datasets import OWN_DATASETS
from fastadaad.models.shipped import checkpoint_path
from fastadaad.models.weights_reading import check_is_file
from fastadaad.run_config import DataConfig, RunConfig
from fastadaad.runtime.version import version

# The item of a checkpoint's facts that tells the images; a configuration only names them.
DATA = "data_sha256"

# What changes neither the weights of a run nor which epoch is its best.
IRRELEVANT = {
    "data": ("download", "num_workers"),
    "evaluation": ("attacks", "restarts", "batch_size", "num_images"),
}
IRRELEVANT_AT_THE_TOP = ("log_every", "checkpoint_every", "on_nonfinite", "teacher_check", "rank_timeout_s")


def training_facts(config: RunConfig) -> dict[str, Any]:
    """All that the weights of a run depend on, the teacher's by its contents."""
    facts = asdict(config)
    for name in IRRELEVANT_AT_THE_TOP:
        del facts[name]
    facts["data"]["root"] = place(config.data)
    for section, names in IRRELEVANT.items():
        for name in names:
            del facts[section][name]
    if config.teacher is not None:
        facts["teacher"]["checkpoint"] = sha256_of(config.teacher.checkpoint)
    return facts


def sha256_of(checkpoint: str | None) -> str | None:
    """Of the contents of a file of weights, named as in a ModelConfig. Raises ValueError where there is none."""
    if checkpoint is None:
        return None
    path = checkpoint_path(checkpoint)
    check_is_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def place(data: DataConfig) -> str | None:
    """Where the images are, as far as it tells which they are."""
    return str(Path(data.root).resolve()) if data.name in OWN_DATASETS and data.root is not None else None


def differences(saved: dict[str, Any], present: dict[str, Any], prefix: str = "") -> list[str]:
    """What is another in `present` than in `saved`, both as JSON has them: one text per setting, by its dotted name."""
    found = []
    for name in dict.fromkeys([*saved, *present]):
        before, now = saved.get(name), present.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{prefix}{name}.")
        elif before != now:
            is_hash = "sha256" in name or f"{prefix}{name}" == "teacher.checkpoint"
            found.append(f"{prefix}{name} has other contents" if is_hash else f"{prefix}{name} {before} -> {now}")
    return found


def versions() -> dict[str, str]:
    """Of what computes the weights."""
    return {
        "fastadaad": version("fastadaad"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
