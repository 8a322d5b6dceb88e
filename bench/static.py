"""Resource table of every Triton kernel, compiled ahead of time in the configurations that the launchers use.

Needs no GPU: the launch functions run on meta tensors while a stand-in for the driver names the target. Each launch
compiles instead of running, with the same specialisation (alignment, unit strides) as on the device. The numbers are
properties of the machine code, not speeds.
"""

import dataclasses
import json
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import triton
from rich.table import Column, Table
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from .tables import print_table

TARGETS = (80, 90, 100)  # compute capability times ten
WARP_SIZE = 32
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # bytes; 4 if the opcode names no width
_PER_ROW = ("kl_ptr", "loss_ptr")  # one element for each row of the block
_BROADCAST = ("labels_ptr",)  # one element for each row in which the thread holds an element
_PER_PROGRAM = ("indices_ptr", "top_ptr", "left_ptr", "flip_ptr", "cutout_center_ptr")  # one element for each program


@dataclasses.dataclass(frozen=True)
class Case:
    """One launch on meta tensors, and the pointers that it must read and write, repeated once per access."""

    name: str
    launch: Callable[[], object]
    loads: tuple[str, ...]
    stores: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel. Loads and stores are per thread; *_min is the minimum of the case."""

    kernel: str
    case: str
    target: str
    threads: int
    registers: int
    shared_bytes: int
    spills: int
    local_bytes: int
    stack_bytes: int
    fused_multiply_adds: int
    loads: int
    loads_128: int
    load_bytes: int
    load_bytes_min: int
    stores: int
    stores_128: int
    store_bytes: int
    store_bytes_min: int


class _TargetOnly:
    """Stand-in for triton's CUDA driver that only names the target to compile for."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, WARP_SIZE)

    def get_current_device(self) -> int:
        return self.capability  # key of triton's cache of compiled kernels

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _launches_compile(capability: int) -> Iterator[list]:
    """Makes each launch compile for the target instead of running; yields a list of (kernel, arguments by name)."""
    compiled = []
    run = JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **options):
        arguments = dict(zip(kernel.arg_names, args, strict=True))
        compiled.append((run(kernel, *args, grid=grid, warmup=True, **options), arguments))

    driver = triton.runtime.driver
    with mock.patch.object(JITFunction, "run", compile_only), mock.patch.object(driver, "_active", None):
        driver.set_active(_TargetOnly(capability))
        yield compiled


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def disassemble(cubin: bytes) -> tuple[dict[str, int], list[str]]:
    """Returns resource usage ({"REG": 32, "STACK": 0, ...}) and opcodes of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    # The first line is common to all kernels of the file; the kernel's own line comes last.
    usage = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", usage.rpartition("Function")[2])}
    return usage, re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)


def widths(opcodes: list[str], *names: str) -> list[int]:
    """Returns the bytes per thread of each instruction with one of these names."""
    parts = [opcode.split(".") for opcode in opcodes]
    return [next((_WIDTHS[p] for p in rest if p in _WIDTHS), 4) for name, *rest in parts if name in names]


def _elements_per_thread(pointer: str, blocks: dict[str, int], threads: int) -> int:
    rows = blocks.get("BLOCK_ROWS", 1)
    block = math.prod(blocks.values())
    if pointer in _PER_PROGRAM:
        return 1
    if pointer in _PER_ROW:
        return max(1, rows // threads)
    if pointer in _BROADCAST:
        return max(1, min(rows, block // threads))
    return max(1, block // threads)


def _minimum_bytes(pointers: tuple[str, ...], arguments: dict, threads: int) -> int:
    """Bytes that each thread moves if every pointer's block is divided evenly among the threads."""
    blocks = {name: value for name, value in arguments.items() if name.startswith("BLOCK_")}
    return sum(arguments[p].element_size() * _elements_per_thread(p, blocks, threads) for p in pointers)


def measure(case: Case, capability: int) -> Resources:
    """Compiles the kernel that the case launches for the capability, and reads its machine code."""
    with _launches_compile(capability) as compiled:
        case.launch()
    [(kernel, arguments)] = compiled
    usage, opcodes = disassemble(kernel.asm["cubin"])
    loads = widths(opcodes, "LDG", "LDGSTS")
    stores = widths(opcodes, "STG")
    threads = WARP_SIZE * kernel.metadata.num_warps
    return Resources(
        kernel=kernel.name.removeprefix("_").removesuffix("_kernel"),
        case=case.name,
        target=f"sm_{capability}",
        threads=threads,
        registers=usage["REG"],
        shared_bytes=kernel.metadata.shared,
        spills=len(widths(opcodes, "STL", "LDL")),
        local_bytes=usage.get("LOCAL", 0),
        stack_bytes=usage["STACK"],
        fused_multiply_adds=len(widths(opcodes, "FFMA", "FFMA2")),
        loads=len(loads),
        loads_128=loads.count(16),
        load_bytes=sum(loads),
        load_bytes_min=_minimum_bytes(case.loads, arguments, threads),
        stores=len(stores),
        stores_128=stores.count(16),
        store_bytes=sum(stores),
        store_bytes_min=_minimum_bytes(case.stores, arguments, threads),
    )


def resource_table(rows: list[Resources]) -> Table:
    """Table of the rows: instructions (128-bit ones), bytes per thread / minimum; local bytes include the stack."""
    names = "kernel", "case", "target", "threads", "registers", "shared B", "spills", "local B", "FMA"
    accesses = "loads (128)", "load B / min", "stores (128)", "store B / min"
    table = Table(*(Column(name, no_wrap=True) for name in names + accesses))
    for row in rows:
        counts = row.threads, row.registers, row.shared_bytes, row.spills, row.local_bytes + row.stack_bytes
        counts = map(str, (*counts, row.fused_multiply_adds))
        loads = f"{row.loads} ({row.loads_128})", f"{row.load_bytes} / {row.load_bytes_min}"
        stores = f"{row.stores} ({row.stores_128})", f"{row.store_bytes} / {row.store_bytes_min}"
        table.add_row(row.kernel, row.case, row.target, *counts, *loads, *stores)
    return table


def report(cases: Iterable[Case], as_json: bool) -> None:
    """Compiles every case for every target and prints the resources."""
    rows = [measure(case, capability) for case in cases for capability in TARGETS]
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print_table(resource_table(rows))
