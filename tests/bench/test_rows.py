"""Rows of bench/results: their files and their commit."""

import csv
import subprocess

import pytest

from bench.rows import commit_of, write_rows


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
