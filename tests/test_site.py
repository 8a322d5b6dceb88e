"""The documentation site builds offline without a warning and has an entry for every public name."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastadaad

ROOT = Path(__file__).parents[1]

pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Builds the site as `make docs` does; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def entries(site: Path) -> set[str]:
    """Returns the anchors of the API reference: dotted names of modules, classes, functions and attributes."""
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    return set(re.findall(r'id="(fastadaad[\w.]*)"', pages))


@pytest.mark.slow
def test_every_public_name_has_an_entry(site):
    missing = []
    for name in fastadaad.__all__:
        value = getattr(fastadaad, name)
        if isinstance(value, ModuleType):
            found = any(entry.startswith(f"{value.__name__}.") for entry in entries(site))
        elif isinstance(value, str):  # __version__
            continue
        else:
            found = f"{value.__module__}.{value.__qualname__}" in entries(site)
        missing += [] if found else [name]
    assert missing == [], "add them to docs/api"


@pytest.mark.slow
def test_pages_load_nothing_from_another_server(site):
    loaded = [
        url
        for page in site.rglob("*.html")
        for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
    ]
    assert loaded == []
