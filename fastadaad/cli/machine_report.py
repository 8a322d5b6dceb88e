"""Report on this machine: versions, devices, backends of the operations, missing packages and their remedies."""

import os
import platform

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fastadaad import ops
from fastadaad.data.engines import dali_status
from fastadaad.inner import layout
from fastadaad.runtime.compile import compile_cache
from fastadaad.runtime.text import print_line, printable
from fastadaad.runtime.version import version
from fastadaad.training import self_check

PACKAGES = ("torch", "torchvision", "triton", "numpy", "scikit-learn", "safetensors", "tensorboard", "matplotlib")


def _devices() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({torch.get_num_threads()} of {os.cpu_count()} threads, {torch.backends.cpu.get_cpu_capability()})"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def compile_cache_status() -> str:
    """Folder and size of the compiled graphs; after deleting them the next start compiles again."""
    folder = compile_cache()
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}, {num_bytes / 2**20:,.0f} MiB"


def device_in_use() -> str:
    """Type of the device that device=auto selects."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def without_kernels() -> str | None:
    """Line for an installation without usable C++ kernels, with the reason; None if some are in use."""
    on_cpu = [row for row in ops.report() if row.device == "cpu"]
    if any(row.backend != "reference" for row in on_cpu):
        return None
    return f"no C++ kernels ({on_cpu[0].reason}): operations on the CPU run in plain torch, which is slower"


def summarize_ops() -> str:
    """One line with the backend of each operation on the device in use, and the reason for a reference backend."""
    device = device_in_use()
    _known_self_check()
    used: dict[str, list[str]] = {}
    for row in ops.report():
        if row.device == device:
            why = f" ({row.reason})" if row.backend == "reference" else ""
            used.setdefault(row.backend + why, []).append(row.op)
    return f"operations on {device}: " + "; ".join(f"{', '.join(names)}: {backend}" for backend, names in used.items())


def verify(console: Console) -> self_check.SelfCheckResult:
    """Runs all checks of the self-check on the device in use, whatever the cache holds."""
    with console.status(f"self-check on {device_in_use()}: compiling takes a while"):
        return self_check.self_check(device_in_use(), force=True, checks=self_check.CHECKS)


def print_report(console: Console, *, layouts: bool = False) -> None:
    """Prints the report; operations that failed the self-check are switched off first.

    Args:
        console: Console to print on.
        layouts: List the cached layouts, of which there may be hundreds, instead of their number.
    """
    result = _known_self_check()
    if lacking := without_kernels():
        print_line(console, lacking)
    table = Table(title=f"fastadaad {version('fastadaad')}", show_header=False)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        table.add_row(package, version(package))
    table.add_row("device", _devices())
    table.add_row("NVIDIA DALI", escape(dali_status()))  # [dali] is no markup
    table.add_row("compile cache", compile_cache_status())
    console.print(table)
    for table in (_ops_table(), _self_check_table(result)):
        console.print(table)
    if layouts:
        console.print(_layout_table())
    else:
        count = len(layout.remembered_choices())
        console.print(f"cached layouts of networks: {count:,}" + (" (--layouts lists them)" if count else ""))


def _known_self_check() -> self_check.SelfCheckResult | None:
    """Returns the cached result of the self-check, applied as a training applies it, or None."""
    result = self_check.cached_result(device_in_use())
    if result is not None:
        self_check.apply(result)
    return result


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    return table


def _ops_table() -> Table:
    table = _table("operations", "op", "device", "backend", "why")
    for row in ops.report():
        table.add_row(row.op, row.device, row.backend, escape(row.reason))
    return table


def _self_check_table(result: self_check.SelfCheckResult | None) -> Table:
    device = device_in_use()
    if result is None:
        table = _table(f"self-check on {device}", "check", "result", "why")
        table.add_row("all", "not run", "the first training on this machine runs it, and fastadaad doctor --verify")
        return table
    table = _table(f"self-check on {device} of {result.date}, {result.seconds:.1f} s", "check", "result", "why")
    for check in self_check.CHECKS:
        why = result.failures.get(check) or result.not_run.get(check) or ""
        table.add_row(check, result.status(check), escape(why))
    if result.report_path:
        table.caption = f"please report it with {result.report_path}"
    return table


def _layout_table() -> Table:
    columns = (
        "network",
        "batch",
        "precision",
        "layout",
        "compiled",
        "contiguous ms",
        "channels-last ms",
        "measured",
        "on",
    )
    table = _table("layouts", *columns)
    choices = layout.remembered_choices()
    if not choices:
        table.add_row("none measured yet")
    for entry in choices:
        choice: layout.LayoutChoice = entry.value
        texts = (
            choice.network,
            "x".join(map(str, choice.shape)),
            choice.precision,
            choice.choice,
            choice.compiled_choice,
            f"{choice.contiguous_ms:.1f}",
            f"{choice.channels_last_ms:.1f}",
            entry.date,
            choice.hardware,
        )
        table.add_row(*[Text(printable(text)) for text in texts])  # a cache folder may be shared
    return table
