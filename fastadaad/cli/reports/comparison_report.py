"""Report on a comparison: table, pictures, and the curves of each run."""

import statistics
from pathlib import Path

from fastadaad.cli.reports.page import heading, note, picture, table
from fastadaad.cli.reports.run_facts import facts_of, run_folders
from fastadaad.cli.reports.run_report import csv_rows, curves, settings
from fastadaad.cli.run_folder import read_run
from fastadaad.runtime.text import InputError, pixels_text
from fastadaad.runtime.untrusted_files import check_size

PICTURES = {"table.png": "Figure", "curves.png": "Curves of all runs", "epsilon.png": "Figure"}
PICTURE_BYTES = 16 * 2**20


def comparison_report(folder: Path) -> str:
    """Returns the sections of a comparison's folder, finished or not."""
    runs = [(facts_of(path), read_run(path)) for path in run_folders(folder)]
    states = [
        [
            config.student.name, config.method, pixels_text(config.inner.threat_model.epsilon), str(config.seed),
            facts.status, f"{facts.epoch}/{facts.epochs or config.optim.epochs}",
        ]
        for facts, config in runs
    ]  # fmt: skip
    parts = [heading(f"Comparison {folder.name}"), _results(folder / "results.csv")]
    parts += [_picture(folder / name, title) for name, title in PICTURES.items() if (folder / name).exists()]
    parts += [
        heading("Runs", 3),
        table(["student", "method", "epsilon of the training", "seed", "status", "epoch"], states),
    ]
    for facts, config in runs:
        title = f"{config.student.name}, {config.method}, seed {config.seed}"
        parts += [heading(title), curves(facts.folder, config), heading("Settings", 3), settings(config)]
    if runs and runs[0][0].versions:
        versions = sorted(runs[0][0].versions.items())
        parts += [heading("Versions of the first run"), table(["program", "version"], versions)]
    return "\n".join(parts)


def _results(path: Path) -> str:
    """Returns the table of accuracies over the seeds."""
    rows, groups = csv_rows(path), dict[tuple[str, str], dict[str, list[float]]]()
    if not rows:
        return note("the comparison is not finished: start it again to resume, and it writes its table")
    try:
        for row in rows:
            accuracies = groups.setdefault((row["student"], row["method"]), {})
            accuracies.setdefault(row["attack"], []).append(100 * float(row["accuracy"]))
        facts = f"{row['num_images']} images, {row['norm']} epsilon {pixels_text(float(row['epsilon']))}"
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is not the table of a comparison ({error}): start the comparison again") from error
    attacks = list(dict.fromkeys(attack for accuracies in groups.values() for attack in accuracies))
    lines = [
        [student, method, *[_mean(accuracies.get(attack, [])) for attack in attacks]]
        for (student, method), accuracies in groups.items()
    ]
    title = f"Accuracy in % on {facts}; after ±, the standard deviation over the seeds"
    return heading("Table", 3) + note(title) + table(["student", "method", *attacks], lines, numbers_from=2)


def _mean(accuracies: list[float]) -> str:
    if not accuracies:
        return ""
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{statistics.fmean(accuracies):.1f}{spread}"


def _picture(path: Path, title: str) -> str:
    check_size(path, PICTURE_BYTES)
    return heading(title, 3) + picture(path.read_bytes(), f"{title}: {path.name}")
