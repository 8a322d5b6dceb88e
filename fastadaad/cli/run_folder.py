"""Configuration of a run's folder, which may come from someone else: it describes the network, its data and attacks.

What would fetch files, start processes or take memory beyond that is left out, and said; the command line may set it.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

from fastadaad.config_io import read_config
from fastadaad.run_config import RunConfig
from fastadaad.training.changes import value_of

log = logging.getLogger(__name__)

MAX_BATCH = 4096
"""Images per batch that a folder may ask for."""


def read_run(folder: Path) -> RunConfig:
    """Reads config.json of a run, and logs the settings that are left out.

    Raises:
        ValueError: The file does not hold a configuration.
    """
    given = read_config(folder / "config.json")
    data, evaluation = given.data, given.evaluation
    kept = replace(
        given,
        data=replace(
            data,
            download=False,
            num_workers=min(data.num_workers, os.cpu_count() or 1),
            batch_size=min(data.batch_size, MAX_BATCH),
        ),
        evaluation=replace(evaluation, batch_size=min(evaluation.batch_size, MAX_BATCH)),
    )
    names = ("data.download", "data.num_workers", "data.batch_size", "evaluation.batch_size")
    changed = [name for name in names if value_of(kept, name) != value_of(given, name)]
    if changed:
        settings = ", ".join(f"{name}={str(value_of(given, name)).lower()}" for name in changed)
        log.info(f"left out of {folder / 'config.json'}: {settings}; give them on the command line if you want them")
    return kept
