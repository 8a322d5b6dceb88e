"""The judge of teacher policies: the exact search is a plain loop, substitutes are exact where their model is."""

import copy

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from plain import inner_loop, kl_to_teacher, mean_kl
from torch import nn

from bench import policy_students
from bench.judge import judge
from bench.policy_candidates import CANDIDATES, SUBSTITUTES, Answer, orthogonal, sparse
from bench.policy_plot import best_of, plot
from fastadaad import InnerConfig, InnerMaximizer, ThreatModel, recipes
from fastadaad.config_io import override

INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=10, start="natural")


@pytest.fixture(scope="module")
def pair():
    return tuple(network.eval() for network in student_and_teacher())


def test_the_exact_search_is_the_plain_loop(pair):
    x, _ = images_and_labels()
    (row,) = judge(*pair, x, INNER, candidates=())
    expected = inner_loop(kl_to_teacher(*pair), x, x, norm="linf", epsilon=16 / 255, step_size=4 / 255, num_steps=10)
    assert row["mean_kl"] == pytest.approx(mean_kl(*pair, expected), rel=1e-3)
    assert (row["candidate"], row["teacher_passes"], row["kl_of_exact"]) == ("exact", 10, 1.0)


@pytest.mark.parametrize("substitute", SUBSTITUTES)
def test_a_substitute_that_always_asks_is_exact(pair, substitute):
    x, _ = images_and_labels()
    _, row = judge(*pair, x, INNER, candidates=[sparse(substitute, range(10))])
    assert row["kl_of_exact"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("substitute", "policy"), [("stale", "refreshed"), ("directional", "directional")])
def test_two_substitutes_are_policies_of_the_package(pair, substitute, policy):
    x, _ = images_and_labels()
    _, row = judge(*pair, x, INNER, candidates=[sparse(substitute, (0, 3, 6, 9))])
    x_adv = InnerMaximizer(*pair, inner=INNER, teacher_policy=f"{policy}(every=3)")(x)
    assert row["mean_kl"] == pytest.approx(mean_kl(*pair, x_adv), rel=1e-3)


def test_a_constant_difference_is_modelled_exactly():
    student, _ = student_and_teacher()
    student.eval()

    class Shifted(nn.Module):
        """The student with other logits, by constants."""

        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(student)

        def forward(self, x):
            logits = self.network(x)
            return logits + torch.linspace(-1, 1, logits.shape[1])

    x, _ = images_and_labels()
    candidates = [sparse("difference", (0,)), sparse("stale", (0,))]
    _, difference, stale = judge(student, Shifted().eval(), x, INNER, candidates)
    assert difference["kl_of_exact"] == pytest.approx(1, abs=1e-3)
    assert stale["kl_of_exact"] < 0.995


def test_rows_of_two_points_reproduce_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(2, 5, 12, generator=generator)
    directions = torch.randn(2, 2, 5, generator=generator)
    answers = [
        Answer(torch.zeros(2, 3, 2, 2), torch.zeros(2, 5), g, (g[:, None] @ jacobian).view(2, 3, 2, 2))
        for g in directions
    ]
    for wanted in directions:
        parts = [row * ((d * wanted).sum(1) / (d * d).sum(1))[:, None, None, None] for d, row in orthogonal(answers)]
        torch.testing.assert_close(sum(parts).flatten(1), (wanted[:, None] @ jacobian)[:, 0], rtol=1e-4, atol=1e-4)


def test_candidates_have_names_and_numbers_of_their_own():
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)
    assert all(1 <= candidate.teacher_passes <= candidate.student_passes <= 10 for candidate in CANDIDATES)


def test_the_picture_shows_the_best_candidate_of_a_kind(tmp_path):
    row = {"epoch": "5", "epsilon": "0.1", "kind": "stale"}
    rows = [row | {"teacher_passes": passes, "kl_of_exact": share} for passes, share in (("1", "0.5"), ("1", "0.7"))]
    assert best_of(rows, "stale") == [(1, 0.7)]
    plot(tmp_path / "judge.png", rows)
    assert (tmp_path / "judge.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_students_of_the_epochs_are_kept(tmp_path, monkeypatch):
    overrides = ["data.num_samples=64", "data.validation_size=32", "optim.epochs=2", "mode=eager"]
    small = override(recipes.get("demo"), overrides)
    monkeypatch.setattr(policy_students, "EPOCHS", (1,))
    monkeypatch.setattr(policy_students, "long_run", lambda: small)
    policy_students.train(tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("epoch-*"))] == ["epoch-1.safetensors"]
