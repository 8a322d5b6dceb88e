"""Train and evaluate several methods beside the recipe's teacher."""

import argparse

from rich.console import Console

from fastadaad.commands.arguments import add_overrides, add_run_folder, commas, new_run_folder, seeds

EXAMPLE = "fastadaad compare fashion-mnist --seeds 0,1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(parser)
    parser.add_argument("--methods", default="pgd-at,adaad", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--seeds", type=seeds, default="0", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher first")
    add_run_folder(parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.compare import compare
    from fastadaad.doctor import summarize_ops

    folder = new_run_folder(arguments.run_folder, arguments.recipe, "compare")
    console.print(summarize_ops())
    compare(
        arguments.recipe,
        arguments.overrides,
        folder=folder,
        method_names=commas(arguments.methods),
        seeds=arguments.seeds,
        from_scratch=arguments.from_scratch,
        console=console,
    )
    console.print(f"curves: {folder / 'curves.png'}\nrun folder: {folder}")
