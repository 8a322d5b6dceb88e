"""Decode a folder of images once, into arrays.

FOLDER holds train and test (or val), each with one folder per class. After an
interruption, run the command again to resume. To train from OUT:
data.name=packed data.root=OUT.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastadaad.cli.arguments import positive
from fastadaad.runtime.text import print_line

if TYPE_CHECKING:
    from fastadaad.data.datasets.packed import Pack

EXAMPLE = "fastadaad pack pets pets-64 --image-size 64"
NUM_SHOWN = 20  # skipped files that are listed; pack.json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="side of the packed images")
    parser.add_argument(
        "--center-share",
        type=float,
        default=1.0,
        metavar="X",
        help="fraction of the shorter side that the center crop keeps; default: 1",
    )
    parser.add_argument("--skip-errors", action="store_true", help="leave out files that cannot be decoded")
    parser.add_argument("--workers", type=positive, metavar="N", help="number of threads; default: one per processor")
    parser.add_argument("--verify", action="store_true", help="only compare a finished OUT with its checksums")


def run(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.verify:
        verify(arguments.out, console)
        return
    if arguments.image_size is None:
        raise ValueError("--image-size is missing: give the side of the packed images in pixels, such as 64")
    from fastadaad.data import load_dataset
    from fastadaad.data.packing import pack
    from fastadaad.run_config import DataConfig

    config = DataConfig(
        name="folder",
        image_size=arguments.image_size,
        center_share=arguments.center_share,
        on_error="skip" if arguments.skip_errors else "raise",
    )
    dataset = load_dataset(
        config.name,
        arguments.folder,
        image_size=config.image_size,
        center_share=config.center_share,
        on_error=config.on_error,
    )
    num_workers = arguments.workers or len(os.sched_getaffinity(0))
    report(pack(dataset, arguments.out, num_workers=num_workers, console=console), arguments.out, console)


def verify(folder: Path, console: Console) -> None:
    from fastadaad.data.datasets.packed import read_pack, verify_pack
    from fastadaad.runtime.progress import image_progress

    pack = read_pack(folder)
    num_images = sum(split.num_images for split in pack.splits.values())
    with image_progress(console, f"verifying {folder.name}", num_images) as progress:
        verify_pack(folder, pack, progress.advance)
    print_line(console, f"{folder} is complete: all checksums agree")


def report(pack: "Pack", folder: Path, console: Console) -> None:
    """Prints the contents of `folder` and the files that were left out."""
    train, test = pack.splits["train"], pack.splits["test"]
    size = pack.origin.image_size
    megabytes = (train.num_images + test.num_images) * pack.origin.image_bytes / 1e6
    print_line(
        console,
        f"{folder}: {train.num_images:,} training and {test.num_images:,} test images of {size}x{size} pixels in "
        f"{len(pack.class_names)} classes, {megabytes:,.1f} MB",
    )
    reasons = [*train.skipped.values(), *test.skipped.values()]
    if reasons:
        print_line(console, f"files that were left out: {len(reasons)}")
    for reason in reasons[:NUM_SHOWN]:
        print_line(console, f"  {reason}")
    if len(reasons) > NUM_SHOWN:
        print_line(console, f"  and {len(reasons) - NUM_SHOWN} more, see {folder / 'pack.json'}")
    print_line(console, f"to train from it: fastadaad train RECIPE data.name=packed data.root={folder}")
