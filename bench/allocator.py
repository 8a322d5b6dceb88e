"""Training steps on the CPU with freed memory given back to the system and kept: `python -m bench allocator`.

Each variant has a process of its own, as malloc is set once for a process; the processes take turns.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch

from fastadaad import InnerConfig
from fastadaad.runtime.host_memory import keep_freed_memory
from fastadaad.runtime.timing import Spread, ratios

from .networks import PAIRS, Program, Variant
from .tables import rewrite_rows

CPU = torch.device("cpu")
# Name -> mode of the program, and whether freed memory is kept.
VARIANTS = {
    "reference": ("reference", False),
    "eager": ("eager", False),
    "eager, freed memory kept": ("eager", True),
}
SHOWN = ("pair", "variant", "ratio_p20", "ratio_p50", "ratio_p80", "p50_ms", "cpu_p50_ms")


def serve(requests: Connection, pair_name: str, variant: str, num_steps: int) -> None:
    """Makes a step per request and answers with its milliseconds, of the clock and of the processor."""
    mode, kept = VARIANTS[variant]
    if kept and not keep_freed_memory():
        raise SystemExit("malloc cannot be set here: another C library, or the environment sets it")
    program = Program(PAIRS[pair_name], "adaad", Variant(mode=mode), InnerConfig(num_steps=num_steps), CPU)
    program.step()
    requests.send(None)
    while requests.recv():
        begin, cpu_begin = time.perf_counter(), time.process_time()
        program.step()
        requests.send((1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - cpu_begin)))


def times(pair_name: str, num_steps: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Returns milliseconds of the clock and of the processor, by variant and round."""
    context = multiprocessing.get_context("spawn")
    ends, measured = {}, {name: [] for name in VARIANTS}
    for name in VARIANTS:
        ends[name], requests = context.Pipe()
        context.Process(target=serve, args=(requests, pair_name, name, num_steps), daemon=True).start()
        requests.close()
        ends[name].recv()
    for _ in range(rounds):
        for name, end in ends.items():
            end.send(True)
            measured[name].append(end.recv())
    for end in ends.values():
        end.send(False)
    return measured


def rows(pair_name: str, num_steps: int, rounds: int) -> Iterator[dict[str, object]]:
    measured = times(pair_name, num_steps, rounds)
    clock = {name: [wall for wall, _ in values] for name, values in measured.items()}
    for name, values in measured.items():
        yield {
            "pair": pair_name,
            "num_steps": num_steps,
            "variant": name,
            **ratios(clock["reference"], clock[name]).columns("ratio_{}"),
            **Spread.of(clock[name]).columns("{}_ms"),
            **Spread.of([cpu for _, cpu in values]).columns("cpu_{}_ms"),
            "n": rounds,
        }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench allocator", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="small,cifar", help="default: %(default)s")
    parser.add_argument("--num-steps", type=int, default=10, help="inner steps; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each variant; default: %(default)s")
    options = parser.parse_args(argv)
    groups = (rows(pair, options.num_steps, options.rounds) for pair in options.pairs.split(","))
    rewrite_rows("allocator.csv", groups, CPU, SHOWN, title="freed memory given back and kept")
