"""`python -m bench NAME [options]`: run one of the benchmarks."""

import importlib
import sys

BENCHMARKS = {
    "data": "images/s of the data engines, what a training waits for them, and how far their pixels are apart",
    "faults": "trainings that are killed or lose their disk again and again: do they end as one that is left alone?",
    "measures": "the inner loop with one measure after the other, from the plain program to ours",
    "ops": "each operation against plain torch, eager and compiled; --static: resources of the Triton kernels",
    "policies": "what asking the teacher less often costs in accuracy, over several seeds",
    "readme": "writes the README's tables of speed anew from bench/results",
    "roofline": "what each recipe's step must compute and move, and what GPUs could do at best: computed",
    "run": "a recipe's teacher and students: accuracies, or the time to one",
    "scaling": "what communication leaves of the speed of 8 to 512 GPUs: computed",
    "step": "one training step of each method: Distiller against a plain restatement of its authors' program",
}


def main(argv: list[str]) -> None:
    """Hand the options to `main(argv)` of the module that the first argument names; exit code 2 for an unknown name."""
    name, *options = argv or [""]
    if name not in BENCHMARKS:
        lines = [f"  {benchmark:8} {purpose}" for benchmark, purpose in BENCHMARKS.items()]
        print("usage: python -m bench NAME [options]", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(0 if name in ("-h", "--help") else 2)
    importlib.import_module(f"bench.{name}").main(options)


if __name__ == "__main__":
    main(sys.argv[1:])
