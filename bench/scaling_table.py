"""Tables and picture of docs/scaling.md, from the rows of `python -m bench scaling`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastadaad.evaluation.plots import COLORS, LINES, MARKERS, new_figure

from .pages import Row, markdown

SHOWN_CLUSTER, DRAWN_RECIPE = "H100, InfiniBand NDR", "cifar10-rn18"
SCALING_TITLES = {"weak": "128 images per GPU", "strong": "4,096 images in total"}


def _where(rows: Iterable[Row], **values: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def _distinct(rows: Iterable[Row], *names: str) -> list[dict[str, str]]:
    """Returns the distinct combinations of values, in order of appearance."""
    return [
        dict(zip(names, values, strict=True))
        for values in dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    ]


def exchange_table(rows: Sequence[Row]) -> str:
    """Table of a step of 128 images, its computation and its messages, with a line per recipe."""
    shown = _where(rows, cluster=SHOWN_CLUSTER, scaling="weak")
    columns = ("recipe", "student from teacher", "computing, ms: `exact`", "`refreshed(every=10)`", "message, MB")
    columns += tuple(f"message, ms on {num_gpus} GPUs" for num_gpus in ("8", "64", "512"))
    columns += ("extra all-reduces with `sync`", "extra ms on 512 GPUs")
    lines = []
    for recipe in _distinct(shown, "recipe"):
        own = _where(shown, **recipe)
        local, sync = (_where(own, policy="exact", batch_norm=name) for name in ("local", "sync"))
        refreshed = _where(own, policy="refreshed(every=10)")[0]
        by_gpus = {row["num_gpus"]: float(row["exchange_ms"]) for row in local}
        lines.append(
            [
                f"`{local[0]['recipe']}`",
                f"{local[0]['student']} from {local[0]['teacher']}",
                *[f"{float(row['compute_ms']):.0f}" for row in (local[0], refreshed)],
                f"{float(local[0]['mb']):.1f}",
                *[f"{by_gpus[num_gpus]:.2f}" for num_gpus in ("8", "64", "512")],
                str(int(sync[0]["all_reduces"]) - 1),
                f"{float(sync[-1]['exchange_ms']) - by_gpus['512']:.0f}",
            ]
        )
    return markdown(columns, lines)


def efficiency_table(rows: Sequence[Row]) -> str:
    """Table with local batch-norm: a line per recipe, scaling and policy, a column per number of GPUs."""
    shown = [row for row in _where(rows, cluster=SHOWN_CLUSTER, batch_norm="local") if row["num_gpus"] != "1"]
    columns = (
        "recipe",
        "images of a step",
        "teacher policy",
        *[row["num_gpus"] for row in _distinct(shown, "num_gpus")],
    )
    return markdown(
        columns,
        [
            [
                f"`{line['recipe']}`",
                SCALING_TITLES[line["scaling"]],
                f"`{line['policy']}`",
                *[f"{100 * float(row['efficiency']):.1f}" for row in _where(shown, **line)],
            ]
            for line in _distinct(shown, "recipe", "scaling", "policy")
        ],
    )


def tables(rows: Sequence[Row]) -> str:
    """Both tables, each under its heading."""
    return "\n\n".join(
        (
            f"One step of 128 images per GPU, {SHOWN_CLUSTER}; computed, not measured:",
            exchange_table(rows),
            f"Efficiency in % by the number of GPUs, {SHOWN_CLUSTER}, `batch_norm=local`; computed, not measured:",
            efficiency_table(rows),
        )
    )


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draws one recipe's efficiency against the number of GPUs: a panel per cluster and scaling, a line per setting."""
    shown = _where(rows, recipe=DRAWN_RECIPE)
    clusters, scalings = _distinct(shown, "cluster"), _distinct(shown, "scaling")
    figure = new_figure(11, 6.4)
    grid = figure.subplots(len(scalings), len(clusters), sharex=True, sharey=True)
    for line, scaling in zip(grid, scalings, strict=True):
        for axes, cluster in zip(line, clusters, strict=True):
            _draw_panel(axes, _where(shown, **scaling, **cluster))
            axes.set_title(f"{cluster['cluster']}; {SCALING_TITLES[scaling['scaling']]}", fontsize="medium")
        line[0].set_ylabel("efficiency (%)")
    for axes in grid[-1]:
        axes.set_xlabel("GPUs")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{DRAWN_RECIPE}: computed from data sheets, not measured")
    figure.savefig(path, dpi=120)


def _draw_panel(axes: Any, rows: Sequence[Row]) -> None:
    for index, setting in enumerate(_distinct(rows, "policy", "batch_norm")):
        own = _where(rows, **setting)
        axes.plot(
            [int(row["num_gpus"]) for row in own],
            [100 * float(row["efficiency"]) for row in own],
            color=COLORS[index],
            marker=MARKERS[index],
            markersize=4,
            linestyle=LINES[index],
            label=f"{setting['policy']}, batch_norm={setting['batch_norm']}",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(row["num_gpus"]) for row in _distinct(rows, "num_gpus")])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.3)
