"""Draw a training batch as the networks see it.

Natural images above adversarial ones above their scaled difference: of a recipe before its first update,
of a run folder with the student of its best epoch.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad.cli.arguments import add_download, add_overrides, positive
from fastadaad.runtime.text import print_line

EXAMPLE = "fastadaad show-batch demo data.padding=2 --images 6 --output batch.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe_or_run", metavar="RECIPE_OR_RUN", help="see fastadaad recipes; or a run folder")
    add_overrides(parser)
    add_download(parser)
    parser.add_argument("--method", help="of a recipe; default: its own")
    parser.add_argument("--images", type=positive, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--epoch", type=int, default=0, help="whose crops and flips are shown, default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=Path("batch.png"), help="default: %(default)s")


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad import recipes
    from fastadaad.cli.batch_picture import plot_batch, shown_batch
    from fastadaad.cli.run_folder import read_run
    from fastadaad.config_io import override
    from fastadaad.runtime.files import check_output
    from fastadaad.training.build import resolve_device
    from fastadaad.training.data import training_data

    check_output(arguments.output)
    folder = Path(arguments.recipe_or_run)
    if folder.is_dir():
        config = read_run(folder)
        config = replace(config, student=replace(config.student, checkpoint=str(folder / "best.safetensors")))
    else:
        method = {} if arguments.method is None else {"method": arguments.method}
        config = recipes.get(arguments.recipe_or_run, **method)
    config = override(config, arguments.overrides)
    data = training_data(config, resolve_device(config.device))
    batch = shown_batch(config, data, min(arguments.images, config.data.batch_size), arguments.epoch)
    if batch.x_adv is None:
        console.print("only natural images are shown: the teacher has no weights, set teacher.checkpoint=FILE")
    student = f"untrained {config.student.name}" if config.student.checkpoint is None else config.student.name
    plot_batch(arguments.output, batch, f"{config.recipe}, {config.method}, student: {student}")
    print_line(console, f"drawn: {arguments.output}")
