"""Report on one run: state, curves, attacks, adversarial images, error of a teacher policy, settings and versions."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastadaad import recipes
from fastadaad.cli.batch_picture import plot_batch, shown_batch
from fastadaad.cli.reports.page import folded, heading, note, picture, table
from fastadaad.cli.reports.run_facts import RunFacts, facts_of
from fastadaad.cli.run_folder import read_run
from fastadaad.evaluation.plots import figure_title, plot_curves
from fastadaad.run_config import RunConfig
from fastadaad.runtime.text import InputError, duration, line_of, pixels_text
from fastadaad.runtime.untrusted_files import TEXT_BYTES, check_size
from fastadaad.training.build import resolve_device
from fastadaad.training.data import training_data
from fastadaad.training.folders import RESULTS
from fastadaad.training.log import read_metrics

NUM_EXAMPLES = 8
# Columns of metrics.csv that a teacher policy or low precision fills, and their titles. All are fractions.
ERRORS = {
    "policy_kl_share": "kl of the exact search",
    "teacher_kl_error": "error of the kl",
    "teacher_logit_error": "error of the teacher's logits",
    "teacher_top_class_differs": "images with another top class",
    "gradient_agreement": "pixel gradients with the sign of the networks' own",
}


def run_report(folder: Path, *, has_examples: bool) -> str:
    """Returns the sections of a run.

    Args:
        folder: Folder of the run.
        has_examples: Draw adversarial images, for which data set and weights are loaded.

    Raises:
        ValueError: The folder has no config.json of a run.
    """
    config, facts = read_run(folder), facts_of(folder)
    title = f"{config.recipe}, {config.method}, seed {config.seed}"
    return "\n".join(
        [
            heading(title),
            _summary(config, facts),
            curves(folder, config),
            _attacks(folder),
            _examples(config, folder) if has_examples else "",
            _errors(folder),
            heading("Settings", 3),
            settings(config),
            heading("Versions", 3),
            table(["program", "version"], sorted(facts.versions.items())) if facts.versions else note("no checkpoint"),
        ]
    )


def _summary(config: RunConfig, facts: RunFacts) -> str:
    threat_model = config.evaluation.threat_model
    rows = [
        ["folder", str(facts.folder)],
        ["status", f"{facts.status}, last change {duration(facts.age_s)} ago"],
        ["epochs", f"{facts.epoch} of {facts.epochs or config.optim.epochs}"],
        ["student", config.student.name],
        ["teacher", "none" if config.teacher is None else config.teacher.name],
        ["data", config.data.name],
        ["evaluation", f"{threat_model.norm}, epsilon {pixels_text(threat_model.epsilon)}"],
    ]
    if facts.robust_accuracy is not None and facts.natural_accuracy is not None:
        accuracies = f"natural {100 * facts.natural_accuracy:.1f} %, robust {100 * facts.robust_accuracy:.1f} %"
        rows.append(["best epoch, on the validation split", f"{accuracies} ({config.evaluation.validation_attack})"])
    return table(["", ""], rows)


def curves(folder: Path, config: RunConfig) -> str:
    """Returns the accuracies over the epochs as a picture, or a sentence on why they are missing."""
    text, evaluation = heading("Curves", 3), config.evaluation
    try:
        rows = read_metrics(folder)
    except InputError as error:
        return text + note(str(error))
    if not any("robust_accuracy" in row for row in rows):
        return text + note("no epoch has been evaluated on a validation split")
    png, name = io.BytesIO(), f"{config.method}, seed {config.seed}"
    title = figure_title(
        f"{config.student.name}, {name}", config.data.name, evaluation.threat_model, evaluation.validation_attack
    )
    plot_curves(png, {name: [rows]}, title=title)
    return text + picture(png.getvalue(), f"accuracy over the epochs: {config.student.name}, {name}")


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file of results; an empty list if it is missing.

    Raises:
        InputError: It cannot be read.
    """
    if not path.exists():
        return []
    try:
        check_size(path, TEXT_BYTES)
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""), strict=True))
        return [{name: row[name] for name in row if name is not None and row[name] is not None} for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): evaluate the run again") from error


def percent(row: Mapping[str, str], column: str, digits: int = 1) -> str:
    """Returns a fraction of a row in per cent; empty without one."""
    with suppress(KeyError, ValueError):
        return f"{100 * float(row[column]):.{digits}f}"
    return ""


def _attacks(folder: Path) -> str:
    text, rows = heading("Attacks on the test set", 3), csv_rows(folder / RESULTS)
    if not rows:
        return text + note("the run has not been evaluated on the test set")
    columns = ["attack", "norm", "epsilon", "restarts", "images", "accuracy (%)", "margin (%)", "seconds"]
    named = ("attack", "norm", "epsilon", "restarts", "num_images")
    lines = [
        [*[_short(row.get(name, "")) for name in named], percent(row, "accuracy"), f"± {percent(row, 'margin')}",
         _short(row.get("seconds", ""))]
        for row in rows
    ]  # fmt: skip
    remarks = [note(f"{row.get('attack')}: {row['notes']}") for row in rows if row.get("notes")]
    return text + table(columns, lines, numbers_from=2) + "".join(remarks)


def _short(text: str) -> str:
    """Returns a number with four digits; other text as it is."""
    with suppress(ValueError):
        return text if text.isdigit() else f"{float(text):.4g}"
    return text


def _examples(config: RunConfig, folder: Path) -> str:
    """Returns natural and adversarial images for the best epoch, or a sentence on why they are missing."""
    text = heading("Adversarial images of the training", 3)
    best = replace(config, student=replace(config.student, checkpoint=str(folder / "best.safetensors")))
    try:
        batch = shown_batch(best, training_data(best, resolve_device("cpu")), NUM_EXAMPLES)
    except (ValueError, OSError) as error:
        return text + note(f"not drawn: {line_of(error)}")
    if batch.x_adv is None:
        text += note("natural images only: the teacher's weights are not given")
    png = io.BytesIO()
    plot_batch(png, batch)
    return text + picture(png.getvalue(), "natural and adversarial images, and their difference")


def _errors(folder: Path) -> str:
    try:
        rows = read_metrics(folder)
    except InputError:
        return ""  # the curves name the file
    measured = [name for name in ERRORS if any(name in row for row in rows)]
    if not measured:
        return ""
    columns = ["epoch", *[f"{ERRORS[name]} (%)" for name in measured]]
    lines = [
        [f"{row['epoch']:.0f}", *[f"{100 * row[name]:.2f}" if name in row else "" for name in measured]]
        for row in rows
        if any(name in row for name in measured)
    ]
    all_epochs = folded(f"all {len(lines)} epochs", table(columns, lines, numbers_from=0))
    return heading("Error of the teacher policy and of the precision", 3) + table(columns, lines[-1:]) + all_epochs


def settings(config: RunConfig) -> str:
    """Returns a table of the settings that differ from the recipe, and a folded one of all."""
    own = dict(_flat(asdict(config)))
    standard: dict[str, str] = {}
    with suppress(ValueError):  # a recipe of another version or program
        standard = dict(_flat(asdict(recipes.get(config.recipe, method=config.method))))
    changed = [[name, text, standard.get(name, "")] for name, text in own.items() if text != standard.get(name, "")]
    shown = table(["setting", "value", "recipe's"], changed) if changed else note("all settings are the recipe's")
    return shown + folded(f"all {len(own)} settings", table(["setting", "value"], list(own.items())))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the settings by their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "" if value is None else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
