"""Web pages in place of data files, and one-line reasons."""

import pytest

from fastadaad.runtime.untrusted_files import is_web_page, one_line


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html>\n<html>",
        b"<!doctype HTML>",
        b"\r\n\t <HTML lang='en'>",
        b"\xef\xbb\xbf<html>",
        b"<head><title>403</title>",
        b"<!-- proxy --><html>",
    ],
)
def test_web_pages_are_recognised(tmp_path, content):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    assert is_web_page(path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"PK\3\4", b"\xff\xd8\xff\xe0", b"html", bytes(500) + b"<html>"])
def test_other_files_are_no_web_pages(tmp_path, content):
    path = tmp_path / "page.html"
    path.write_bytes(content)
    assert not is_web_page(path)
    assert not is_web_page(tmp_path / "missing")
    assert not is_web_page(tmp_path)


def test_errors_fit_one_line():
    assert one_line(OSError("no\n  space left")) == "no space left"
    assert one_line(MemoryError()) == "MemoryError"
