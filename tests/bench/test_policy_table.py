"""Table and picture of the teacher policies, from invented rows."""

from bench.policy_table import lines_of, plot, table

POLICIES = ("exact", "refreshed(every=8)")


def accuracy_rows() -> list[dict[str, str]]:
    """Rows of exact: natural 80 and 82 %, pgd20 60 and 61, autoattack 58 and 59; one point more for the other one."""
    exact = {"natural": (0.80, 0.82), "pgd20": (0.60, 0.61), "autoattack": (0.58, 0.59)}
    return [
        {
            "policy": policy,
            "teacher_precision": "fp32",
            "attack": attack,
            "accuracy": str(accuracy + 0.01 * POLICIES.index(policy)),
        }
        for policy in POLICIES
        for attack, accuracies in exact.items()
        for accuracy in accuracies
    ]


def speed_rows() -> list[dict[str, str]]:
    return [
        {"policy": policy, "teacher_precision": "fp32", "images_per_s": rate, "times_exact_p50": times}
        for policy, rate, times in (
            ("exact", "100.0", "1"),
            ("refreshed(every=8)", "310.4", "3.1"),
            ("other", "1", "1"),
        )
    ]


def test_the_table_has_means_spreads_and_differences_to_exact():
    lines = lines_of(accuracy_rows(), speed_rows())
    first, second = table(lines).splitlines()[2:]
    assert first == "| `exact` | 100 | 1.00 | 81.00 ± 1.41 | 60.50 ± 0.71 | 58.50 ± 0.71 |"
    assert second.startswith("| `refreshed(every=8)` | 310 | 3.10 | 82.00 ± 1.41 (+1.00) | 61.50 ± 0.71 (+1.00) |")


def test_the_picture_is_drawn(tmp_path):
    plot(tmp_path / "policies.png", lines_of(accuracy_rows(), speed_rows()))
    assert (tmp_path / "policies.png").read_bytes().startswith(b"\x89PNG")
