"""Reads the code that torch.compile generates for a CUDA device: launches, bytes moved, layout copies, machine code.

Properties of the code, not speeds: nothing here needs a GPU that computes.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import torch._inductor.config as inductor_config
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from .static import disassemble, widths

# The code names the bytes of each kernel, every kernel is compiled here, and its machine code can be read.
SETTINGS = {
    "benchmark_kernel": True,
    "compile_threads": 1,
    "force_disable_caches": True,
    "use_static_triton_launcher": False,
}

_KERNEL = re.compile(r"^(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str", re.DOTALL | re.MULTILINE)
_CALL = re.compile(r"^\s+(?:\w+ = )?(triton_\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)(?:\.run)?\(", re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One generated Triton kernel."""

    name: str
    source: str

    @property
    def num_bytes(self) -> float:
        """Bytes that one launch reads and writes, by Inductor's count: each operand once."""
        return 1e9 * float(re.search(r"'kernel_num_gb': ([\d.e-]+)", self.source)[1])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operands."""
        return [tuple(map(int, shape.split(","))) for shape in re.findall(r"rand_strided\(\(([\d, ]+\d)", self.source)]

    @property
    def changes_layout(self) -> bool:
        """True if the kernel reads one layout and writes another: only then Inductor tiles an elementwise kernel."""
        return "@triton_heuristics.pointwise" in self.source and "'y':" in self.source


@dataclass(frozen=True)
class MachineCode:
    """Machine code of one configuration of a generated kernel."""

    kernel: str
    registers: int
    spills: int
    accesses: int
    """Loads and stores of global memory per thread."""
    accesses_128: int
    """Number of accesses of 128 bits."""


@dataclass(frozen=True)
class GeneratedCode:
    """The Python code of one compiled graph, and the machine code of its kernels in every configuration."""

    text: str
    machine_codes: list[MachineCode] = field(default_factory=list)

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        return {name: Kernel(name, source) for name, source in _KERNEL.findall(self.text)}

    @cached_property
    def operations(self) -> list[str]:
        """Names of the device operations of one call, in order: kernels, and calls of libraries and own operations."""
        body = self.text[self.text.rindex("def call(") :].partition("def benchmark_compiled_module")[0]
        return _CALL.findall(body)

    @property
    def launches(self) -> list[Kernel]:
        """Kernels in the order of their launches."""
        return [self.kernels[name] for name in self.operations if name in self.kernels]

    @property
    def convolutions(self) -> list[str]:
        return [name for name in self.operations if name not in self.kernels and "convolution" in name]

    @property
    def num_bytes(self) -> float:
        return sum(kernel.num_bytes for kernel in self.launches)

    @property
    def narrow_kernels(self) -> list[str]:
        """Kernels with fewer than half of their accesses in 128 bits, in every configuration that Inductor tries."""
        best: dict[str, float] = {}
        for code in self.machine_codes:
            fraction = code.accesses_128 / max(1, code.accesses)
            best[code.kernel] = max(best.get(code.kernel, 0.0), fraction)
        return [name for name, fraction in best.items() if fraction < 0.5]

    def layout_copies(self, batch_size: int) -> list[Kernel]:
        """Launches that change the layout of activations: more channels than a picture's, and pixels beyond 3x3."""
        return [
            kernel
            for kernel in self.launches
            if kernel.changes_layout
            and any(
                len(shape) == 4 and shape[0] == batch_size and shape[1] > 4 and shape[2] * shape[3] > 9
                for shape in kernel.shapes
            )
        ]


@contextmanager
def recorded() -> Iterator[list[GeneratedCode]]:
    """Compiles without caches inside the context, and yields the code that Inductor and Triton generate."""
    codes: list[GeneratedCode] = []
    generate, precompile = GraphLowering.codegen, CachingAutotuner.precompile

    def recording_generate(graph: GraphLowering, *arguments: Any, **keywords: Any) -> Any:
        result = generate(graph, *arguments, **keywords)
        code = result[0]
        codes.append(GeneratedCode(getattr(code, "value", code)))
        return result

    def recording_precompile(autotuner: CachingAutotuner, *arguments: Any, **keywords: Any) -> None:
        precompile(autotuner, *arguments, **keywords)
        if not codes:  # a candidate of Inductor's autotuner, before the code is written
            return
        for result in autotuner.compile_results:
            codes[-1].machine_codes.append(_machine_code(autotuner.fn.__name__, result.kernel.asm["cubin"]))

    with ExitStack() as context:
        context.enter_context(inductor_config.patch(SETTINGS))
        context.enter_context(mock.patch.object(GraphLowering, "codegen", recording_generate))
        context.enter_context(mock.patch.object(CachingAutotuner, "precompile", recording_precompile))
        yield codes


def _machine_code(kernel: str, cubin: bytes) -> MachineCode:
    usage, opcodes = disassemble(cubin)
    accesses = widths(opcodes, "LDG", "STG")
    return MachineCode(
        kernel=kernel,
        registers=usage["REG"],
        spills=len(widths(opcodes, "STL", "LDL")),
        accesses=len(accesses),
        accesses_128=accesses.count(16),
    )
