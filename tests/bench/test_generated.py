"""Counts in the code that torch.compile generates for CUDA."""

import csv
import subprocess
import sys

import pytest

from bench import pretend
from bench.generated_code import GeneratedCode, MachineCode
from bench.rows import RESULTS

NARROW = {
    "poi_fused_add_div_linf_step",  # images, whose three channels do not fill 128 bits
    "poi_fused_clone_div_sub",
    "poi_fused__to_copy",  # logits
    "poi_fused__to_copy_kl_grad",
    "poi_fused_relu",  # sums of two biases, which a fused convolution adds
}


def kernel(name: str, axes: str, gb: float, shape: tuple[int, ...] = (8, 64, 4, 4)) -> str:
    return f"""
{name} = async_compile.triton('{name}', '''
@triton_heuristics.pointwise(
    size_hints={{{axes}}},
    inductor_meta={{'kernel_num_gb': {gb}}},
)
def get_args():
    arg_0 = rand_strided({shape}, (1024, 1, 256, 64), device='cuda:0', dtype=torch.bfloat16)
''', device_str='cuda')
"""


CODE = (
    kernel("triton_poi_fused_relu_0", "'x': 1024", 0.5)
    + kernel("triton_poi_fused_clone_1", "'y': 64, 'x': 32", 0.25)
    + """
def call(args):
    buf0 = extern_kernels.convolution(arg0, arg1)
    triton_poi_fused_relu_0.run(buf0, 1024, stream=raw_stream0)
    triton_poi_fused_clone_1.run(buf0, 64, 32, stream=raw_stream0)
    triton_poi_fused_relu_0.run(buf0, 1024, stream=raw_stream0)
    buf1 = torch.ops.aten.convolution_backward.default(buf0, arg0, arg1)
    extern_kernels.mm(buf0, buf1, out=buf2)

def benchmark_compiled_module(times=10):
    triton_poi_fused_relu_0.run(buf0, 1024, stream=raw_stream0)
"""
)


def test_counts_of_a_graph():
    code = GeneratedCode(CODE)
    assert len(code.operations) == 6
    assert [launch.name[-1] for launch in code.launches] == ["0", "1", "0"]
    assert len(code.kernels) == 2
    assert len(code.convolutions) == 2
    assert code.num_bytes == pytest.approx(1.25e9)


@pytest.mark.parametrize(
    ("shape", "num_copies"),
    [((8, 64, 4, 4), 1), ((8, 3, 32, 32), 0), ((8, 64, 3, 3), 0), ((64, 8, 4, 4), 0), ((8, 64), 0)],
    ids=["activations", "pictures", "weights", "other batch", "matrix"],
)
def test_a_kernel_over_two_axes_copies_the_layout_of_activations(shape, num_copies):
    copying = kernel("triton_poi_fused_clone_1", "'y': 64, 'x': 32", 0.25, shape)
    code = GeneratedCode(CODE.replace(kernel("triton_poi_fused_clone_1", "'y': 64, 'x': 32", 0.25), copying))
    assert [copy.name for copy in code.layout_copies(8)] == ["triton_poi_fused_clone_1"] * num_copies


def test_a_kernel_is_narrow_if_no_configuration_is_wide():
    def compiled(kernel: str, accesses_128: int) -> MachineCode:
        return MachineCode(kernel=kernel, registers=16, spills=0, accesses=4, accesses_128=accesses_128)

    code = GeneratedCode("", [compiled("a", 1), compiled("a", 3), compiled("b", 0), compiled("b", 1)])
    assert code.narrow_kernels == ["b"]


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_inner_step_is_generated_no_worse_than_the_committed_row(tmp_path):
    pytest.importorskip("pretend_gpu")
    if pretend.why_not():
        pytest.skip(pretend.why_not())
    path = tmp_path / "generated.csv"
    command = ["-m", "bench", "generated", "--pair", "cifar", "--target", "80", "--query", "--output", str(path)]
    subprocess.run([sys.executable, *command], check=True)
    (now,) = rows(path)
    shared = ("pair", "policy", "part", "target", "precision", "torch")
    (committed,) = [
        row for row in rows(RESULTS / "generated.csv") if all(row[column] == now[column] for column in shared)
    ]
    assert int(now["layout_copies"]) == 0
    assert int(now["spills"]) == 0
    assert set(now["narrow_kernels"].split()) <= NARROW
    for column in ("device_operations", "generated_launches", "kernels", "gb", "max_registers", "peak_mib"):
        assert float(now[column]) <= float(committed[column]), column
