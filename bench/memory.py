"""Peak memory of an inner loop, in a fresh process: `python -m bench.memory PAIR METHOD MODE ...` prints bytes.

Counts the memory that the loop needs beside the networks, parameter gradients not included: the growth of resident
memory during the second loop (after compilation), plus the tensors kept from loop to loop. On CUDA it is the growth of
reserved memory: a CUDA graph keeps a pool of its own, of which only a part is allocated between two replays.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastadaad import InnerConfig
from fastadaad.config import TeacherPolicy
from fastadaad.runtime.resident_memory import resident_growth, tensor_bytes

from .networks import PAIRS, Pair, Program, Variant

# Freed blocks of this size go back to the system, so that resident memory equals the memory in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_bytes_here(pair: Pair, method: str, variant: Variant, inner: InnerConfig, device: torch.device) -> int:
    """Peak memory of the variant's inner loop in this process, in bytes."""
    if device.type == "cuda":
        program = Program(pair, method, variant, inner, device)
        gc.collect()  # what is freed later would count as negative memory
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        program.inner_loop()
        torch.cuda.empty_cache()  # of compilation and warm-up; the pool of a graph stays
        torch.cuda.reset_peak_memory_stats(device)
        program.inner_loop()
        return torch.cuda.max_memory_reserved(device) - before
    program = Program(pair, method, variant, inner, device)
    before = tensor_bytes()
    program.inner_loop()
    kept = tensor_bytes() - before
    return kept + resident_growth(program.inner_loop)


def peak_bytes(pair_name: str, method: str, variant: Variant, inner: InnerConfig, batch_size: int, device) -> int:
    """Peak memory of the variant's inner loop in a fresh process, in bytes.

    Args:
        pair_name: Key of PAIRS.
        method: Name of the method.
        variant: Reference or mode of Distiller.
        inner: Configuration of the inner loop; only num_steps is passed on.
        batch_size: Images of a batch.
        device: Device of the networks.
    """
    words = [pair_name, method, variant.mode, str(variant.policy), variant.precision]
    words += [str(inner.num_steps), str(batch_size), str(device)]
    return printed_json([sys.executable, "-m", "bench.memory", *words])


def printed_json(command: list[str]) -> Any:
    """Runs a command in the project's folder and returns its last line, which is JSON.

    Raises RuntimeError with the command's stderr if the command fails.
    """
    environment = {**os.environ, **ALLOCATOR}
    result = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {result.returncode}:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.splitlines()[0])
    for name in ("pair", "method", "mode", "policy", "precision"):
        parser.add_argument(name)
    parser.add_argument("num_steps", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("device", type=torch.device)
    arguments = parser.parse_args(argv)
    pair = replace(PAIRS[arguments.pair], batch_size=arguments.batch_size)
    policy = TeacherPolicy.parse(arguments.policy)
    variant = Variant(mode=arguments.mode, policy=policy, precision=arguments.precision)
    inner = InnerConfig(num_steps=arguments.num_steps)
    print(json.dumps(peak_bytes_here(pair, arguments.method, variant, inner, arguments.device)))


if __name__ == "__main__":
    main(sys.argv[1:])
