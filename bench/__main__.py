"""`python -m bench NAME [options]`: run one of the benchmarks."""

import importlib
import sys

BENCHMARKS = {
    "ops": "each operation: reference against the registered backend; --static: resources of the Triton kernels",
    "run": "a recipe's teacher and students: accuracies",
    "step": "one training step of each method: Distiller against a plain restatement of its authors' program",
}


def main(argv: list[str]) -> None:
    """Hand the options to `main(argv)` of the module that the first argument names; exit code 2 for an unknown name."""
    name, *options = argv or [""]
    if name not in BENCHMARKS:
        lines = [f"  {benchmark:6} {purpose}" for benchmark, purpose in BENCHMARKS.items()]
        print("usage: python -m bench NAME [options]", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(0 if name in ("-h", "--help") else 2)
    importlib.import_module(f"bench.{name}").main(options)


if __name__ == "__main__":
    main(sys.argv[1:])
