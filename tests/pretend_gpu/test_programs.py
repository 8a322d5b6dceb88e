"""Whole programs on the pretend GPU, as a user starts them: they end, in each mode, and what they write is right."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import images_and_labels, student_and_teacher, tiny_network

import bench.data
import bench.gpu
import bench.ops
import bench.step
from bench import data_contests, gpu_plan
from fastadaad import adaad_inner_loss, cli, evaluate
from fastadaad.config import ThreatModel
from fastadaad.runtime import machine_cache
from fastadaad.training.self_check import CHECKS
from fastadaad.training.self_check_result import SECTION

SMALL = [
    "device=cuda",
    "student.name=cnn-4-s1",
    "optim.epochs=2",
    "data.num_samples=48",
    "data.validation_size=16",
    "data.batch_size=16",
    "inner.num_steps=2",
    "evaluation.attacks=[natural,pgd2]",
    "evaluation.validation_attack=pgd2",
    "evaluation.num_images=16",
    "teacher_check=16",
]


@pytest.fixture(autouse=True)
def checked(tmp_path, monkeypatch) -> None:
    """Takes the self-check as passed; tests/gpu has a test of it."""
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path / "cache"))
    result = {"passed": CHECKS, "failures": {}, "not_run": {}, "device": "cuda", "seconds": 0.0}
    machine_cache.store(SECTION, machine_cache.machine_key("cuda"), result)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", ["eager", "compiled", "auto"])
def test_train_demo_ends_and_resumes(tmp_path, mode, capsys):
    command = ["train", "demo", *SMALL, f"mode={mode}", "--run-folder", str(tmp_path / "run")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    in_use = "graph" if mode == "auto" else mode
    assert f"student bf16, teacher bf16 (first convolutions TF32), {in_use} mode on cuda:0" in " ".join(printed.split())
    assert len(rows(tmp_path / "run" / "metrics.csv")) == 2
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert cli.main([*command, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out


def test_compare_trains_and_attacks_two_cells(tmp_path, capsys):
    assert cli.main(["compare", "demo", *SMALL, "--methods", "adaad,rslad", "--run-folder", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert "adaad" in printed
    assert "rslad" in printed


def test_every_kind_of_attack_runs():
    network = tiny_network(1).cuda().eval()
    x_natural, labels = (tensor.cuda() for tensor in images_and_labels(8))
    attacks = ("natural", "fgsm", "pgd2", "cw-linf2", "cw2", "apgd-ce")
    results = evaluate(network, (x_natural, labels), attacks, threat_model=ThreatModel(epsilon=0.2))
    on_cpu = evaluate(
        network.cpu(), (x_natural.cpu(), labels.cpu()), ("natural", "fgsm"), threat_model=ThreatModel(epsilon=0.2)
    )
    assert [result.accuracy for result in results[:2]] == [result.accuracy for result in on_cpu]
    assert all(result.accuracy <= results[0].accuracy for result in results)


def test_the_drop_in_keeps_its_callers_switches():
    student, teacher = (network.cuda() for network in student_and_teacher())
    x_natural = images_and_labels(8)[0].cuda()
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    x_adv = adaad_inner_loss(student.train(), teacher.eval(), x_natural, steps=2)
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before
    assert 0 < (x_adv - x_natural).abs().max() <= 8 / 255 + 1e-6


def test_benchmark_measures_captured_steps_and_their_share_of_the_cards_peak(tmp_path):
    command = ["benchmark", "demo", *SMALL, "teacher.name=cnn-6-s1", "--batch-sizes", "4", "--rounds", "1"]
    folder = tmp_path / "benchmark"
    assert cli.main([*command, "--precisions", "bf16", "--modes", "graph", "--output", str(folder)]) == 0
    written = rows(folder / "benchmark.csv")
    assert [row["mode"] for row in written] == ["graph"]
    for row in written:
        assert row["status"] == row["plain_status"] == "measured"
        tflops = 1e-3 * float(row["images_per_s"]) * float(row["gflop_per_image"])
        assert float(row["of_peak"]) == pytest.approx(tflops / 312, rel=1e-2)  # the data sheet of the A100
        assert float(row["peak_mib"]) > 0
    assert "312 TFLOP/s in bf16" in (folder / "benchmark.md").read_text()
    assert (folder / "benchmark.png").exists()


def test_bench_step_writes_its_rows(tmp_path, monkeypatch):
    options = ["--device", "cuda", "--pair", "demo", "--batch-sizes", "4", "--num-steps", "2", "--rounds", "1"]
    options += ["--modes", "compiled,graph", "--no-details", "--output", str(tmp_path / "step.csv")]
    bench.step.main(options)
    written = rows(tmp_path / "step.csv")
    assert {row["precision"] for row in written} >= {"fp32", "tf32", "auto"}
    assert {row["mode"] for row in written} >= {"reference", "compiled", "graph"}
    assert all("Pretend A100" in row["hardware"] for row in written)


def test_bench_ops_writes_rows_of_the_triton_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.ops, "NUM_CLASSES", (10,))
    monkeypatch.setattr(bench.ops, "BATCHES_OF_IMAGES", ((2, 8),))
    monkeypatch.setattr(bench.ops, "NUM_IMAGES", 16)
    monkeypatch.setattr(bench.ops, "ROUNDS", 1)
    bench.ops.main(["--device", "cuda", "--output", str(tmp_path / "ops.csv"), "--rewrite"])
    written = rows(tmp_path / "ops.csv")
    operations = {row["op"] for row in written}
    assert operations == {"kl_grad", "cross_entropy_grad", "linf_step_", "l2_step_", "random_start_", "crop_flip"}
    assert {row["op"] for row in written if row["implementation"] == "triton"} == operations
    assert all("Pretend A100" in row["hardware"] and float(row["p50_us"]) > 0 for row in written)


def test_bench_data_writes_its_rows(tmp_path, monkeypatch):
    """Without DALI, whose kernels need a real driver."""
    monkeypatch.setattr(data_contests, "ARRAY_BATCH", 4)
    contest = data_contests.arrays

    def without_dali(*arguments):
        whole = contest(*arguments)
        return replace(whole, entrants={name: one for name, one in whole.entrants.items() if name != "dali"})

    monkeypatch.setattr(data_contests, "arrays", without_dali)
    options = ["--parts", "arrays", "--rounds", "1", "--arrays", "48", "--workers", "1", "--device", "cuda"]
    bench.data.main([*options, "--output", str(tmp_path / "data.csv"), "--rewrite"])
    engines = [row["engine"] for row in rows(tmp_path / "data.csv")]
    assert engines == ["resident", "torch", "DataLoader"]


def test_bench_gpu_measures_its_plan_and_reports(tmp_path, monkeypatch):
    run = gpu_plan.Run(file="batch", pair="paper", precisions=("bf16",), batch_sizes=(4, 8), rounds=1)
    monkeypatch.setattr(bench.gpu, "PLAN", (run,))
    monkeypatch.setitem(gpu_plan.RECIPES, "paper", ("demo", "inner.num_steps=2"))
    bench.gpu.main(["--output", str(tmp_path)])
    table = (tmp_path / "tables.md").read_text()
    assert [line.split(" | ")[1:3] for line in table.splitlines() if "distiller" in line] == [
        ["4", "distiller-graph"],
        ["8", "distiller-graph"],
    ]
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
