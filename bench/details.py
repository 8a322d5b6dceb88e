"""Details of a variant in `python -m bench step`: stages, launches, host syncs, memory and overhead."""

from collections.abc import Mapping
from statistics import median

import torch

from fastadaad import InnerConfig, methods
from fastadaad.runtime.timing import Spread, alternate, ratios

from .launches import host_synchronisations, launches_per_inner_step
from .limits import fastest_bare_networks
from .memory import peak_bytes
from .networks import Pair, Program, reference_in
from .stages import STAGES, stage_milliseconds

ROUNDS = 3
OVERHEAD = "overhead_{}"
# Columns of the CSV file; a column that was not measured is empty.
COLUMNS = (
    *STAGES,
    *Spread(0, 0, 0, 0).columns(OVERHEAD),
    "launches_per_inner_step",
    "launches_unit",
    "host_synchronisations",
    "inner_peak_mib",
    "inner_peak_of_reference",
)

Details = dict[str, dict[str, object]]  # columns by name of the variant


def stages(program: Program, device: torch.device) -> dict[str, object]:
    """Milliseconds of each stage, the median of ROUNDS steps."""
    measured = [stage_milliseconds(program, device) for _ in range(ROUNDS)]
    return {stage: round(median(step[stage] for step in measured), 3) for stage in measured[0]}


def counts(pair: Pair, method: str, program: Program, device: torch.device) -> dict[str, object]:
    """Launches of an inner step and host syncs of a training step."""
    launches, unit = launches_per_inner_step(pair, method, program.variant, program.inner, device)
    waits = host_synchronisations(program.step, program.variant.mode, device)
    return {"launches_per_inner_step": launches, "launches_unit": unit, "host_synchronisations": waits}


def overheads(pair: Pair, programs: Mapping[str, Program], inner: InnerConfig, device: torch.device) -> Details:
    """Overhead of Distiller's exact inner loop: its time over that of the bare networks' passes, per round.

    The baseline runs the bare networks forward and backward num_steps times.
    """
    exact = {
        name: program.inner_loop
        for name, program in programs.items()
        if not program.variant.is_reference and program.variant.policy.kind == "exact"
    }
    bare = fastest_bare_networks(pair, device)
    runs = {"bare": lambda: [bare() for _ in range(inner.num_steps)], **exact}
    timings = alternate(runs, device, rounds=ROUNDS, warmup=1)
    return {name: ratios(timings[name], timings["bare"]).columns(OVERHEAD) for name in exact}


def peaks(pair_name: str, pair: Pair, method: str, programs: Mapping[str, Program], device: torch.device) -> Details:
    """Peak memory of each variant's inner loop, in MiB and over that of the reference."""
    peak = {
        name: peak_bytes(pair_name, method, program.variant, program.inner, pair.batch_size, device)
        for name, program in programs.items()
    }
    of_reference = {name: reference_in(peak, program.variant) for name, program in programs.items()}
    return {
        name: {"inner_peak_mib": round(size / 2**20, 1)}
        | ({"inner_peak_of_reference": round(size / peak[baseline], 3)} if (baseline := of_reference[name]) else {})
        for name, size in peak.items()
    }


def details(
    pair_name: str,
    pair: Pair,
    method: str,
    programs: Mapping[str, Program],
    inner: InnerConfig,
    device: torch.device,
) -> Details:
    """Returns the COLUMNS that apply to each variant.

    Args:
        pair_name: Key of PAIRS, for measurements in a fresh process.
        pair: The networks and the batch.
        method: Name of the method.
        programs: Variants by name.
        inner: Configuration of the inner loop.
        device: Device of the networks.
    """
    known: Details = {
        name: stages(program, device) | counts(pair, method, program, device) for name, program in programs.items()
    }
    further = [peaks(pair_name, pair, method, programs, device)]
    if methods.get(method).through_teacher:  # otherwise the loop runs the student alone
        further.append(overheads(pair, programs, inner, device))
    for columns_of in further:
        for name, columns in columns_of.items():
            known[name] |= columns
    return known
