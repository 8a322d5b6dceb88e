"""Runs a benchmark: `python -m bench NAME [options]`."""

import importlib
import sys

from rich.console import Console

from fastadaad.runtime.messages import messages_on

BENCHMARKS = {
    "agreement": "pixels and kl of the search against those of the plain program with the same seed",
    "allocator": "training steps on the CPU with freed memory given back to the system and kept",
    "border": "AdaAD against PGD-AT by number of training images and size of the student",
    "cifar10": "every method on CIFAR-10 at CPU scale, over several seeds",
    "data": "images/s of the data engines, time that a training waits for data, pixel differences between engines",
    "evaluate": "a PGD evaluation against a plain loop of the usual libraries and against foolbox",
    "faults": "trainings that are killed or lose their disk, compared with an undisturbed run",
    "generated": "launches, bytes and machine code that torch.compile generates for a GPU: counted, needs none",
    "gpu": "training steps on a GPU: precisions, batch sizes, modes; against the model of predict",
    "hours": "hours of the paper's trainings on A100 and H100: computed",
    "judge": "what a search that asks the teacher less often reaches, over a long training",
    "measures": "the inner loop with one measure after the other, from the plain program to ours",
    "ops": "each operation against plain torch, eager and compiled; --static: resources of the Triton kernels",
    "policies": "accuracy under each teacher policy, over several seeds",
    "predict": "time of each recipe's step on A100, H100 and H200, by a model of layers, bytes and launches: computed",
    "precisions": "accuracy of students trained with networks in fp32 and bf16, emulated on the CPU",
    "refresh": "filling the folded copies with the present weights, against the search that follows",
    "roofline": "FLOPs and bytes of each recipe's step, and the upper bound of images/s on each GPU: computed",
    "run": "a recipe's teacher and students: accuracies, or the time to one",
    "scaling": "efficiency of 8 to 512 GPUs, limited by communication: computed",
    "speed": "rewrites the tables of docs/speed.md from bench/results",
    "stems": "gradient signs in bf16 with the first convolution in fp32 or TF32",
    "step": "one training step of each method: Distiller against a plain restatement of its authors' program",
    "tune": "a small search of each method's settings on the validation split",
}


def main(argv: list[str]) -> None:
    """Passes the options to `main(argv)` of the module named first; exits with 2 if the name is unknown."""
    name, *options = argv or [""]
    if name not in BENCHMARKS:
        lines = [f"  {benchmark:9} {purpose}" for benchmark, purpose in BENCHMARKS.items()]
        print("usage: python -m bench NAME [options]", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(0 if name in ("-h", "--help") else 2)
    with messages_on(Console()):
        try:
            importlib.import_module(f"bench.{name}").main(options)
        except ValueError as error:  # a setting or file; its message names the remedy
            print(f"python -m bench {name}: {error}", file=sys.stderr)
            raise SystemExit(2) from error


if __name__ == "__main__":
    main(sys.argv[1:])
