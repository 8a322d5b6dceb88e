"""Rewrites the tables of docs/speed.md from the rows of bench/results: `python -m bench speed`."""

import argparse
from pathlib import Path

from .pages import Row, markdown, rewritten, rows_of
from .rows import RESULTS

PAGE = RESULTS.parents[1] / "docs" / "speed.md"
MODES = ("eager", "compiled")
ROOFLINE_RECIPE, ROOFLINE_PRECISION = "cifar10-rn18", "tf32"


def _ratio(row: Row | None) -> str:
    if row is None or not row["ratio_p50"]:
        return ""
    return f"{float(row['ratio_p50']):.2f} ({float(row['ratio_p20']):.2f} to {float(row['ratio_p80']):.2f})"


def _figure(row: Row, column: str) -> str:
    return f"{float(row[column]):.2f}" if row[column] else ""


def _networks(row: Row) -> str:
    return f"{row['student']} from {row['teacher']}, {row['batch_shape']}"


def _groups(rows: list[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Groups rows by networks and method, then by variant; a later row replaces an earlier one."""
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((_networks(row), row["method"]), {})[row["variant"]] = row
    return groups


def step_table(rows: list[Row]) -> str:
    """Table of each pair and method: reference, Distiller's modes, and the last measured mode against the limits."""
    columns = ("networks, batch", "method", "reference, images/s", *[f"{mode}, times the reference" for mode in MODES])
    columns += ("of convolutions", "of matrix product", "overhead", "memory over the reference's")
    lines = []
    for (networks, method), variants in _groups(rows).items():
        modes = [variants.get(f"distiller-{mode}") for mode in MODES]
        best = next(row for row in reversed(modes) if row is not None)
        shares = ("of_convolutions", "of_matrix_product", "overhead_p50", "inner_peak_of_reference")
        rate = f"{float(variants['reference']['images_per_s']):.1f}"
        lines.append([networks, f"`{method}`", rate, *map(_ratio, modes), *[_figure(best, share) for share in shares]])
    return markdown(columns, lines)


def policy_table(rows: list[Row]) -> str:
    """Table of the teacher policies: images/s, and their ratio to the exact step in the same mode."""
    lines = []
    for (networks, method), variants in _groups(rows).items():
        for row in variants.values():
            if row["policy"] != "exact":
                exact = float(variants[f"distiller-{row['mode']}"]["images_per_s"])
                rate = float(row["images_per_s"])
                cells = [networks, f"`{method}`", row["mode"], f"`{row['policy']}`", f"{rate:.1f}"]
                lines.append([*cells, f"{rate / exact:.2f}"])
    return markdown(("networks, batch", "method", "mode", "teacher policy", "images/s", "times exact"), lines)


def ops_table(rows: list[Row]) -> str:
    """Table of the registered C++ backend of each operation, on 32x32 images and ten classes."""
    shown = [row for row in rows if row["implementation"] == "c++" and row["shape"].endswith(("x3x32x32", "x10"))]
    columns = ("operation", "shape", "µs", "times eager torch", "times torch.compile", "GB/s", "over copying")
    figures = ("times_reference", "times_compiled", "gb_per_s", "of_copy")
    return markdown(
        columns,
        [
            [f"`{row['op']}`", row["shape"], f"{float(row['p50_us']):.0f}", *[_figure(row, name) for name in figures]]
            for row in shown
        ],
    )


def roofline_table(rows: list[Row]) -> str:
    """Table of one recipe in TF32: FLOPs of a step, and the upper bound of images/s on each GPU."""
    shown = [row for row in rows if (row["recipe"], row["precision"]) == (ROOFLINE_RECIPE, ROOFLINE_PRECISION)]
    devices = list(dict.fromkeys(row["device"] for row in shown))
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in shown):
        by_device = {row["device"]: row for row in shown if row["policy"] == policy}
        first = by_device[devices[0]]
        rates = [f"{float(by_device[device]['best_images_per_s']):.0f}" for device in devices]
        gflop, gain = float(first["gflop_per_image"]), float(first["flops_gain"])
        lines.append([f"`{policy}`", f"{gflop:.0f}", f"{gain:.1f}", *rates])
    return markdown(
        ("teacher policy", "GFLOP per image", "times fewer", *[f"{name}, images/s" for name in devices]), lines
    )


def block(results: Path = RESULTS) -> str:
    """Returns the text between the markers: the tables that have rows, each under its heading."""
    steps = rows_of(results / "step.csv")
    sections = (
        ("One training iteration; ratios of the rounds, p50 (p20 to p80):", step_table(steps)),
        ("Teacher policies:", policy_table(steps)),
        ("Operations in C++:", ops_table(rows_of(results / "ops.csv"))),
        (
            f"Computed from data sheets, not measured: upper bounds of `{ROOFLINE_RECIPE}` in TF32.",
            roofline_table(rows_of(results / "roofline.csv")),
        ),
    )
    return "\n\n".join(f"{heading}\n\n{table}" for heading, table in sections if table)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench speed", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/speed.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: bench/results")
    options = parser.parse_args(argv)
    options.page.write_text(rewritten(options.page.read_text(), block(options.results), "speed"))
