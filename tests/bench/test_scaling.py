"""Model of communication between ranks: bytes, all-reduces, limits, and the rows behind docs/scaling.md."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from networks import images_and_labels
from torch import Tensor, nn

from bench import scaling
from bench.communication import CLUSTERS, Cluster, Link, all_reduce_seconds, messages, ring_seconds, tree_seconds
from bench.flops import OUTER_PASSES
from bench.pages import rows_of
from bench.scaling_table import plot, tables
from fastadaad import Distiller, InnerConfig, ThreatModel, load_model
from fastadaad.runtime.distributed import ProcessGroup

ROOT = Path(__file__).parents[2]
LINK = Link(gb_per_s=10, latency_us=5)
ADAAD = OUTER_PASSES["adaad"]


def test_the_message_of_resnet18_equals_the_manual_count():
    """Counts the stem and four pairs of blocks; the first block of each pair but the first widens, with a shortcut."""
    widths = (64, 128, 256, 512)
    weights, channels = 3 * 64 * 9, [64]
    for before, width in zip((64, *widths), widths, strict=False):
        weights += before * width * 9 + 3 * width * width * 9 + (before * width if before != width else 0)
        channels += [width] * (5 if before != width else 4)
    parameters = weights + 2 * sum(channels) + 512 * 10 + 10
    assert parameters == 11_173_962
    student = load_model("resnet18")
    assert messages(student, "local", ADAAD) == [4 * (parameters + 2 * sum(channels) + 2)]
    assert messages(student, "sync", ADAAD)[-1] == 4 * (parameters + 2)


@dataclass(frozen=True, kw_only=True)
class RecordingGroup(ProcessGroup):
    """One of two ranks with equal tensors; records the bytes of each all-reduce."""

    sent: list[int] = field(default_factory=list)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.numel() * tensor.element_size())
        return tensor.mul_(2)


@pytest.mark.parametrize("batch_norm", ["local", "sync"])
@pytest.mark.parametrize("method", ["adaad", "pgd-at", "rslad"])
def test_the_messages_of_a_step_equal_those_of_distiller(method, batch_norm):
    layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.BatchNorm2d(7)
    student = nn.Sequential(*layers, nn.Flatten(), nn.Linear(28, 10))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    inner = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=2)
    process_group = RecordingGroup(rank=0, size=2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    settings = {"method": method, "inner": inner, "optimizer": optimizer, "mode": "eager"}
    distiller = Distiller(student, teacher, process_group=process_group, batch_norm=batch_norm, **settings)
    expected = messages(student, batch_norm, OUTER_PASSES[method])
    distiller.step(*images_and_labels(4))
    assert process_group.sent[-1] == expected[-1]
    assert sorted(process_group.sent) == sorted(expected)


def simulated_ring(num: int, num_bytes: float, link: Link) -> float:
    """Seconds of an all-reduce, phase by phase: each rank sends one chunk to the next rank, which adds or stores it."""
    own = [[float(rank == chunk) for chunk in range(num)] for rank in range(num)]  # the sum of each chunk is 1
    seconds = 0.0
    for phase in range(2 * (num - 1)):
        chunks = [(rank - phase) % num for rank in range(num)]
        if phase >= num - 1:  # the complete chunk
            chunks = [(rank + 1 - (phase - (num - 1))) % num for rank in range(num)]
        sent = [own[rank][chunk] for rank, chunk in enumerate(chunks)]
        for rank, chunk in enumerate(chunks):
            neighbour = own[(rank + 1) % num]
            neighbour[chunk] = sent[rank] + (neighbour[chunk] if phase < num - 1 else 0.0)
        seconds += link.latency_us / 1e6 + num_bytes / num / (link.gb_per_s * 1e9)
    assert own == [[1.0] * num] * num
    return seconds


@pytest.mark.parametrize("num", [1, 2, 3, 8, 13])
def test_a_ring_takes_the_time_of_its_phases(num):
    assert ring_seconds(3e6, num, LINK) == pytest.approx(simulated_ring(num, 3e6, LINK), rel=1e-12)


def test_a_large_message_is_bound_by_bandwidth_and_a_small_one_by_latency():
    assert ring_seconds(1e12, 64, LINK) == pytest.approx(2 * 63 / 64 * 1e12 / 10e9, rel=1e-4)
    assert ring_seconds(1, 64, LINK) == pytest.approx(2 * 63 * 5e-6, rel=1e-4)
    assert tree_seconds(1, 64, LINK) == pytest.approx(2 * 6 * 5e-6, rel=1e-4)
    assert tree_seconds(1, 65, LINK) == pytest.approx(2 * 7 * 5e-6, rel=1e-4)


def test_one_gpu_sends_nothing():
    assert [all_reduce_seconds(4e7, 1, cluster) for cluster in CLUSTERS.values()] == [0.0] * 3


def test_a_node_is_a_ring_and_nodes_divide_the_message():
    cluster = Cluster(device="H100-SXM", inside=LINK, between=Link(gb_per_s=1, latency_us=50))
    inside = ring_seconds(4e7, 8, LINK)
    assert all_reduce_seconds(4e7, 8, cluster) == inside
    assert all_reduce_seconds(4e7, 16, cluster) == pytest.approx(inside + 2 * (5e6 / 2 / 1e9 + 50e-6))
    # A large message: a ring over eighths. A small one: a tree.
    assert all_reduce_seconds(4e7, 128, cluster) == pytest.approx(inside + 2 * 15 * (5e6 / 16 / 1e9 + 50e-6))
    assert all_reduce_seconds(8, 128, cluster) == pytest.approx(14 * 5e-6 + 2 * 4 * 50e-6, rel=1e-3)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return list(scaling.computed_rows("cifar10-rn18"))


def test_each_setting_has_each_number_of_gpus_and_efficiency_falls(rows):
    names = ("cluster", "policy", "batch_norm", "scaling")
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    assert len(groups) == len(CLUSTERS) * len(scaling.POLICIES) * len(scaling.BATCH_NORMS) * len(scaling.SCALINGS)
    for setting, group in groups.items():
        assert tuple(row["num_gpus"] for row in group) == scaling.NUM_GPUS
        efficiencies = [row["efficiency"] for row in group]
        assert efficiencies[0] == 1
        assert efficiencies == sorted(efficiencies, reverse=True), setting
        for row in group:
            fraction = row["compute_ms"] / (row["compute_ms"] + row["exchange_ms"])
            total = 128 * row["num_gpus"] if row["scaling"] == "weak" else 4096
            assert row["images_per_gpu"] * row["num_gpus"] == total
            assert row["images_per_s"] == pytest.approx(1e3 * total / row["compute_ms"] * fraction, rel=2e-3)
            # The computation is bound by FLOPs, which are the same for each image.
            assert row["efficiency"] == pytest.approx(fraction, abs=2e-3)
    assert {row["kind"] for row in rows} == {"computed"}


def test_more_communication_or_faster_steps_scale_worse(rows):
    def efficiency(**setting: object) -> float:
        setting = {"cluster": "A100, InfiniBand HDR", "scaling": "weak", "num_gpus": 512} | setting
        (row,) = [row for row in rows if all(row[name] == value for name, value in setting.items())]
        return row["efficiency"]

    best = efficiency(policy="exact", batch_norm="local")
    assert best > efficiency(policy="exact", batch_norm="sync")
    assert best > efficiency(policy="refreshed(every=10)", batch_norm="local")
    assert best > efficiency(policy="exact", batch_norm="local", cluster="A100, 100 GbE")
    assert best > efficiency(policy="exact", batch_norm="local", cluster="H100, InfiniBand NDR")


@pytest.mark.slow
def test_the_rows_of_the_results_are_up_to_date(tmp_path):
    path = tmp_path / "scaling.csv"
    scaling.main(["--output", str(path)])
    assert path.read_text() == (scaling.RESULTS / "scaling.csv").read_text(), "run python -m bench scaling"


def test_the_tables_of_the_page_are_up_to_date():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert tables(rows_of(scaling.RESULTS / "scaling.csv")) in page, "run python -m bench scaling --draw"
    assert "computed, not measured" in page


def test_the_picture_is_drawn(tmp_path):
    plot(tmp_path / "scaling.png", rows_of(scaling.RESULTS / "scaling.csv"))
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
