"""Compares the data engines with each other and with a plain DataLoader: `python -m bench data`.

Measures images/s on generated arrays and JPEG files, the fraction of a training spent waiting for data, and the
difference between dali's and torch's pixels. `--draw` writes the tables of docs/data.md from the rows instead.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastadaad.data import load_dataset

from . import data_contests, data_memory, data_speed, data_wait
from .data_table import beside, tables
from .image_tree import TreeSpec, image_tree
from .pages import rewritten
from .rows import RESULTS, write_rows
from .tables import print_rows

PAGE = RESULTS.parents[1] / "docs" / "data.md"
IMAGE_SIZE = 224
PIXEL_IMAGES = 256
SHOWN = {
    "speed": ("images", "engine", "images_per_s_p50", "times_torch_p50", "times_dataloader_p50", "first_batch_p50_ms"),
    "wait": ("recipe", "engine", "waiting_share_p50", "images_per_s_p50"),
    "pixels": ("path", "setting", "mean_difference", "max_difference"),
}

Rows = Iterable[dict[str, object]]


def arrays(options: argparse.Namespace) -> Rows:
    contest = data_contests.arrays(options.arrays, options.workers, options.device)
    return data_speed.rows(contest, options.rounds)


def files(options: argparse.Namespace) -> Rows:
    contest = data_contests.files(_tree(options), IMAGE_SIZE, options.workers, options.device)
    return data_speed.rows(contest, options.rounds)


def steps(options: argparse.Namespace) -> Rows:
    return data_wait.rows(data_wait.EPOCHS, options.rounds, options.workers, str(options.device))


def pixels(options: argparse.Namespace) -> Rows:
    from . import pixel_differences  # imports DALI

    images = load_dataset("folder", _tree(options), image_size=IMAGE_SIZE).train_images
    every = max(1, len(images) // PIXEL_IMAGES)
    return pixel_differences.rows(replace(images, names=images.names[::every]), options.device)


def memory(options: argparse.Namespace) -> Rows:
    return data_memory.rows(options.device)


def _tree(options: argparse.Namespace) -> Path:
    return image_tree(TreeSpec(num_images=options.images), Console())


# For each part: the kind of its rows (one CSV file per kind), and the function that measures them.
PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], Rows]]] = {
    "arrays": ("speed", arrays),
    "files": ("speed", files),
    "steps": ("wait", steps),
    "pixels": ("pixels", pixels),
    "memory": ("memory", memory),
}


def file_of(output: Path, kind: str) -> Path:
    """CSV file of a kind of rows; `output` itself for "speed"."""
    return output if kind == "speed" else beside(output, kind)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench data", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each engine; default: %(default)s")
    parser.add_argument("--arrays", type=int, default=50_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="JPEG files; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes or threads; default: %(default)s")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "data.csv", help="rows are added here and to files beside it"
    )
    parser.add_argument("--rewrite", action="store_true", help="overwrite the CSV files of the parts")
    parser.add_argument("--draw", action="store_true", help="write the tables of the page from the rows instead")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/data.md")
    options = parser.parse_args(argv)
    options.parts = options.parts.split(",")
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {','.join(PARTS)}")
    return options


def main(argv: list[str]) -> None:
    options = _parse(argv)
    if options.draw:
        options.page.write_text(rewritten(options.page.read_text(), tables(options.output), "data"))
        return
    torch.set_num_threads(options.workers)  # for all engines and the training
    if options.rewrite:
        for kind in {PARTS[part][0] for part in options.parts}:
            file_of(options.output, kind).unlink(missing_ok=True)
    for part in options.parts:
        kind, measure = PARTS[part]
        rows = list(measure(options))
        write_rows(file_of(options.output, kind), rows, options.device)  # at once: an interruption keeps them
        print_rows(rows, SHOWN.get(kind, tuple(rows[0])))
