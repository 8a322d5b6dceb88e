"""Self-check on this machine: fused operations against the reference, compiled and captured steps against eager ones.

The first one on a machine takes a few seconds; the result is cached under machine_cache.machine_key. A failing kernel
falls back to the reference, and a failing mode to a slower one; a one-line warning names the report file.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import cast

import torch

from fastadaad.ops import registration
from fastadaad.runtime import machine_cache
from fastadaad.runtime.files import write_atomically
from fastadaad.training.self_check import ops as self_check_ops
from fastadaad.training.self_check import steps as self_check_steps
from fastadaad.training.self_check_result import SECTION, SelfCheckResult, cached_result

log = logging.getLogger(__name__)

OPS = tuple(op.removesuffix("_") for op in self_check_ops.CASES)
CHECKS = (*OPS, "compiled", "captured")

NOT_REQUESTED = "fastadaad doctor --verify runs it"


def default_checks(device: torch.device | str) -> tuple[str, ...]:
    """Returns the checks of a device; on a CPU only the operations, as compiling takes tens of seconds there."""
    return CHECKS if torch.device(device).type == "cuda" else OPS


def self_check(
    device: torch.device | str, *, force: bool = False, checks: Sequence[str] | None = None
) -> SelfCheckResult:
    """Runs checks, or returns their cached result; switches nothing off, see apply().

    Args:
        device: Device to check.
        force: Run the checks again even if there is a cached result.
        checks: Names in CHECKS. Default: default_checks(device).
    """
    device, checks = torch.device(device), checks or default_checks(device)
    known = cached_result(device)
    if known is not None and not force and all(known.not_run.get(check) != NOT_REQUESTED for check in checks):
        return known
    registration.switch_on(_kind(device))  # otherwise a reference would be compared with itself
    result = _run(device, checks)
    machine_cache.store(SECTION, machine_cache.machine_key(device), asdict(result))
    return result


def apply(result: SelfCheckResult) -> None:
    """Replaces the operations that failed by their references; for modes, see SelfCheckResult.usable_mode."""
    for op in OPS:
        if op in result.failures:
            registration.switch_off(op, _kind(result.device), f"self-check failed: {result.failures[op]}")


def ensure_checked(device: torch.device | str) -> SelfCheckResult:
    """Runs the self-check if this machine has not been checked, switches off what failed, and logs it in one line."""
    result = self_check(device)
    apply(result)
    if result.failures:
        log.warning(result.summary)
    return result


def _run(device: torch.device, checks: Sequence[str]) -> SelfCheckResult:
    begin = time.perf_counter()
    passed, failures, not_run, failing_cases = [], {}, {}, {}
    for check in CHECKS:
        why_not = _why_not(check, device, checks)
        if why_not:
            not_run[check] = why_not
            continue
        wrong = _wrong_cases(check, device)
        if wrong:
            failing_cases[check] = wrong
            failures[check] = wrong[0] + (f" (and {len(wrong) - 1} more cases)" if len(wrong) > 1 else "")
        else:
            passed.append(check)
    if "compiled" not in not_run:
        torch.compiler.reset()  # torch.compile keeps a few graphs per function, which the training needs
    return SelfCheckResult(
        passed=tuple(passed),
        failures=failures,
        not_run=not_run,
        device=str(device),
        seconds=round(time.perf_counter() - begin, 2),
        report_path=_write_report(device, failing_cases) if failing_cases else None,
    )


def _why_not(check: str, device: torch.device, checks: Sequence[str]) -> str | None:
    if check == "captured" and device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    return None if check in checks else NOT_REQUESTED


def _kind(device: torch.device | str) -> registration.Device:
    return cast(registration.Device, torch.device(device).type)


def _wrong_cases(check: str, device: torch.device) -> list[str]:
    """Returns one line per failing case; a check that raises has failed."""
    differences = {
        "compiled": partial(self_check_steps.compiled_difference, device),
        "captured": partial(self_check_steps.captured_difference, device),
    }
    if check in OPS:
        return self_check_ops.failing_cases(_schema_name(check), device)
    try:
        difference = differences[check]()
    except Exception as error:  # compilers and drivers may raise anything
        difference = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return [difference] if difference else []


def _schema_name(stem: str) -> str:
    return next(op for op in self_check_ops.CASES if op.removesuffix("_") == stem)


def _write_report(device: torch.device, failing_cases: dict[str, list[str]]) -> str | None:
    """Writes a bug report as JSON to the cache folder; returns its path, or None if it cannot be written."""
    report = {
        "device": str(device),
        "machine": machine_cache.machine_key(device),
        "cuda": torch.version.cuda,
        "operations": [row._asdict() for row in registration.report() if row.device == device.type],
        "seed": self_check_ops.SEED,
        "failing_cases": failing_cases,
        "again_with": "fastadaad doctor --verify",
    }
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    path = machine_cache.cache_folder() / "reports" / f"self-check-{device.type}-{now}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(report, indent=2).encode())
    except OSError:  # the summary mentions it
        return None
    return str(path)
