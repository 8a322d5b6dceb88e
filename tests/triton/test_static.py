"""Machine code of every launched configuration: no spills, vector access, no byte moved twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {
    *("kl_grad", "kl_grad_looped", "cross_entropy_grad", "cross_entropy_grad_looped"),
    *("linf_step", "l2_step", "l2_step_looped", "random_start", "crop_flip", "crop_flip_cutout"),
}
UNFUSED = {"linf_step", "random_start"}  # as in torch, each product and each sum is rounded
# Kernels whose tensors are aligned and contiguous in every case of the table.
VECTORISED = {"linf_step", "l2_step", "l2_step_looped", "random_start"}
WRITTEN_WIDE = VECTORISED | {"crop_flip", "crop_flip_cutout"}  # these two read single bytes


def _resources(*command: str) -> list[dict]:
    """Returns the JSON that a new process prints, as this process interprets kernels and cannot compile them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _faults(row: dict) -> list[str]:
    """Returns the faults of one row's machine code in words."""
    expected = {"spills": 0, "local_bytes": 0, "stack_bytes": 0, "store_bytes": row["store_bytes_min"]}
    # The compiler may read half of an int64 that is used as an int32.
    expected["load_bytes"] = min(row["load_bytes"], row["load_bytes_min"])
    if row["kernel"] in VECTORISED:
        expected |= {"loads_128": row["loads"]}
    if row["kernel"] in WRITTEN_WIDE:
        expected |= {"stores_128": row["stores"]}
    if row["kernel"] in UNFUSED:
        expected["fused_multiply_adds"] = 0
    return [f"{name} {row[name]}, not {value}" for name, value in expected.items() if row[name] != value]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return _resources("-m", "bench", "ops", "--static", "--json")


@pytest.mark.slow
def test_every_kernel_is_in_the_table_for_every_target(rows: list[dict]):
    assert {(row["kernel"], row["target"]) for row in rows} == {
        (kernel, target) for kernel in KERNELS for target in ("sm_80", "sm_90", "sm_100")
    }


@pytest.mark.slow
def test_no_spills_and_minimal_traffic(rows: list[dict]):
    faults = {f"{row['kernel']} {row['case']} {row['target']}": _faults(row) for row in rows}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.slow
def test_planted_faults_are_found():
    twice, spilling = _resources(str(Path(__file__).with_name("planted.py")))
    assert _faults(twice) == ["load_bytes 64, not 32"]
    assert _faults(spilling)[0].startswith("spills")
