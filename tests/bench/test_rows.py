"""Rows of bench/results: their files and their commit."""

import csv
import subprocess

import pytest

from bench.pages import rows_of
from bench.rows import commit_of, replace_rows, write_rows

KEYS = ("student", "seed")


def test_a_file_with_other_columns_is_not_appended_to(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [{"kind": "computed", "x": 1}], None)
    write_rows(path, [{"kind": "computed", "x": 2}], None)
    with open(path, newline="") as file:
        assert [row["x"] for row in csv.DictReader(file)] == ["1", "2"]
    with pytest.raises(ValueError, match="its columns are"):
        write_rows(path, [{"y": 1}], None)


def test_the_commit_of_a_row_is_dirty_if_more_than_results_has_changed(tmp_path):
    code, results = tmp_path / "code" / "step.py", tmp_path / "bench" / "results" / "step.csv"
    for path in (code, results):
        path.parent.mkdir(parents=True)
        path.write_text("old\n")
    assert commit_of(code.parent) == "unknown"
    author = ("-c", "user.name=a", "-c", "user.email=a")
    for command in (["init"], ["add", "."], [*author, "commit", "--message=a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    results.write_text("new\n")
    commit = commit_of(code.parent)
    assert len(commit) == 12
    code.write_text("new\n")
    assert commit_of(code.parent) == f"{commit}-dirty"


def test_replaced_rows_are_those_of_the_same_students(tmp_path):
    path = tmp_path / "rows.csv"
    replace_rows(path, [{"student": name, "seed": seed, "x": 1} for name in ("a", "b") for seed in (0, 1)], KEYS)
    replace_rows(path, [{"student": "a", "seed": 1, "x": 2}, {"student": "c", "seed": 0, "x": 3}], KEYS)
    assert [(row["student"], row["seed"], row["x"]) for row in rows_of(path)] == [
        ("a", "0", "1"),
        ("b", "0", "1"),
        ("b", "1", "1"),
        ("a", "1", "2"),
        ("c", "0", "3"),
    ]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="its columns are"):
        replace_rows(path, [{"student": "a", "seed": 1, "y": 2}], KEYS)
    assert path.read_bytes() == before
