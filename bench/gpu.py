"""Measures training steps on a GPU, and compares them with the model of gpu_model.py: `python -m bench gpu`.

Writes the folders of `fastadaad benchmark`, tables.md and step.png to bench/results/gpu.
`--estimate A100` only predicts how long that takes.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fastadaad import cli
from fastadaad.evaluation.plots import COLORS, MARKERS, new_figure

from . import step
from .gpu_plan import PLAN, Run, minutes, predicted_images_per_s
from .pages import Row, markdown, rows_of
from .predict import CARDS
from .rows import RESULTS

GPU = RESULTS / "gpu"
COLUMNS = ("pair", "batch", "variant", "precision", "images/s", "times the authors'", "predicted images/s", "verdict")


def card_of(hardware: str) -> str | None:
    """Returns the name of the model's card in the hardware's name, if it knows the card."""
    return next((name for name in CARDS if name in hardware), None)


def verdict(measured: float, predicted: Mapping[str, float]) -> str:
    """Says whether a measurement is inside the error bars of the prediction."""
    if predicted["worst"] <= measured <= predicted["best"]:
        return "inside"
    return f"wrong: {measured / predicted['likely']:.2f} times the prediction"


def table(rows: Sequence[Row]) -> str:
    """Returns Markdown: each measured step with its prediction, if the model knows the card."""
    lines = []
    for row in rows:
        cells = [row["pair"], row["batch_shape"].split("x")[0], row["variant"], row["precision"]]
        cells += [row["images_per_s"], row["ratio_p50"]]
        name = card_of(row["hardware"])
        if name is None or row["mode"] == "eager" or row["variant"].startswith("reference"):
            cells += ["", ""]
        else:
            predicted = predicted_images_per_s(name, row)
            bars = f"{predicted['likely']:.0f} ({predicted['worst']:.0f} to {predicted['best']:.0f})"
            cells += [bars, verdict(float(row["images_per_s"]), predicted)]
        lines.append(cells)
    return markdown(COLUMNS, lines)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draws images/s over the batch size for each variant: measured as points, the prediction's error bars as bands.

    Args:
        path: PNG file.
        rows: Rows of one pair at several batch sizes.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for index, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        of_variant = [row for row in rows if row["variant"] == variant]
        sizes = [int(row["batch_shape"].split("x")[0]) for row in of_variant]
        style = {"color": COLORS[index % len(COLORS)]}
        measured = [float(row["images_per_s"]) for row in of_variant]
        axes.plot(sizes, measured, marker=MARKERS[index % len(MARKERS)], label=f"{variant}, measured", **style)
        name = card_of(of_variant[0]["hardware"])
        if name is not None and not variant.startswith("reference"):
            predicted = [predicted_images_per_s(name, row) for row in of_variant]
            bounds = ([one[word] for one in predicted] for word in ("worst", "best"))
            axes.fill_between(sizes, *bounds, alpha=0.15, label=f"{variant}, computed", **style)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="images/s", title=rows[0]["hardware"])
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def measured_rows(folder: Path, run: Run) -> list[Row]:
    """Returns the rows of a run in the columns of `python -m bench step`; an empty list if it was not made."""
    if run.details:
        return rows_of(folder / f"{run.name}.csv")
    rows = []
    for row in rows_of(folder / run.name / "benchmark.csv"):
        columns = {**row, "pair": run.pair, "batch_shape": f"{row['batch_size']}x3x32x32"}
        plain = {"variant": "reference", "images_per_s": row["plain_images_per_s"], "ratio_p50": "1.0"}
        policy = "" if row["policy"] == "exact" else f" {row['policy']}"
        own = {"variant": f"distiller-{row['mode']}{policy}", "ratio_p50": row["speedup_p50"]}
        rows += [columns | plain] if row["policy"] == "exact" else []
        rows.append(columns | own)
    return [row for row in rows if row["images_per_s"]]  # others did not fit into memory


def report(folder: Path) -> None:
    """Writes tables.md and step.png from the rows in a folder."""
    found = {run.name: measured_rows(folder, run) for run in PLAN}
    rows = {name: of_run for name, of_run in found.items() if of_run}
    sections = [f"## {name}\n\n{table(of_name)}\n" for name, of_name in rows.items()]
    (folder / "tables.md").write_text("\n".join(["# Measured training steps, and their predictions\n", *sections]))
    if "batch-paper" in rows:
        draw(folder / "step.png", rows["batch-paper"])


def measure(run: Run, folder: Path) -> None:
    """Makes one run in place of an earlier one. Raises SystemExit if `fastadaad benchmark` fails."""
    if run.details:
        step.main([*run.arguments, "--rewrite", "--output", str(folder / f"{run.name}.csv")])
        return
    shutil.rmtree(folder / run.name, ignore_errors=True)
    if code := cli.main([*run.arguments, "--output", str(folder / run.name)]):
        raise SystemExit(code)


def main(argv: list[str]) -> None:
    """Estimates, or measures and reports, or reports what was measured before."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--estimate", choices=CARDS, help="predict the minutes on this card, and measure nothing")
    parser.add_argument("--draw", action="store_true", help="write tables and picture of earlier measurements")
    parser.add_argument("--output", type=Path, default=GPU, help="folder of the files")
    options = parser.parse_args(argv)
    if options.estimate:
        print(f"about {minutes(options.estimate):.0f} minutes on one {options.estimate}: computed, not measured")
        return
    if not options.draw:
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device: run it on a machine with a GPU, or use --estimate A100")
        for run in PLAN:
            measure(run, options.output)
    report(options.output)
