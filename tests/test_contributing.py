"""The files and names in CONTRIBUTING.md exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = sorted({path for path in re.findall(r"`([\w.-]+/[\w./-]*)`", PAGE) if "<" not in path})
NAMES = sorted(set(re.findall(r"`(\w+)` (?:in|of) `([\w./-]+\.py)`", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_a_file_of_the_page_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("name", "path"), NAMES)
def test_a_name_of_the_page_is_in_its_file(name, path):
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text())


@pytest.mark.parametrize("target", re.findall(r"^    make ([\w-]+)", PAGE, re.MULTILINE))
def test_a_target_of_the_page_is_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
