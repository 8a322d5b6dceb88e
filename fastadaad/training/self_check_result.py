"""Result of the self-check of this machine, and the mode of a step that it allows."""

from dataclasses import dataclass, field
from datetime import datetime

import torch

from fastadaad.config import Mode
from fastadaad.runtime import machine_cache

SECTION = "self_check"

# Mode of a step -> checks that it depends on. If one of them failed, the next mode replaces it.
MODES = {"graph": ("compiled", "captured"), "compiled": ("compiled",), "eager": ()}


@dataclass(frozen=True, kw_only=True)
class SelfCheckResult:
    """Checks that passed, that failed and that were not run, by the names in CHECKS, with reasons."""

    passed: tuple[str, ...]
    failures: dict[str, str]
    not_run: dict[str, str]
    device: str
    seconds: float
    report_path: str | None = None
    """Path of the file for a bug report; None if no check failed, or if the file could not be written."""
    date: str = field(default_factory=lambda: datetime.now().isoformat(timespec="seconds"))

    def status(self, check: str) -> str:
        """Returns `passed`, `failed` or `not run`."""
        return "failed" if check in self.failures else "passed" if check in self.passed else "not run"

    @property
    def summary(self) -> str:
        """One line with the failed checks, which are switched off on this machine, and the path of the report."""
        if not self.failures:
            return f"self-check on {self.device}: all of {', '.join(self.passed)} passed"
        check, reason = next(iter(self.failures.items()))
        where = f"please report it with {self.report_path}" if self.report_path else "no report could be written"
        failed = ", ".join(self.failures)
        return f"self-check on {self.device}: {failed} failed, off on this machine ({check}: {reason[:160]}); {where}"

    def usable_mode(self, mode: str) -> str:
        """Returns `mode`, or the next slower mode that passed if it failed on this machine."""
        slower_modes = list(MODES)[list(MODES).index(mode) :]
        return next(slower for slower in slower_modes if not self.failures.keys() & set(MODES[slower]))


def cached_result(device: torch.device | str) -> SelfCheckResult | None:
    """Returns the result of the last self-check on this machine, or None."""
    return machine_cache.load(SECTION, machine_cache.machine_key(device), SelfCheckResult)


def remembered_mode(mode: Mode, device: torch.device) -> Mode:
    """Returns graph for `auto` on a CUDA device on which captured steps passed the self-check, otherwise `mode`."""
    if mode != "auto" or device.type != "cuda":
        return mode
    known = cached_result(device)
    return "graph" if known is not None and known.status("captured") == "passed" else mode
