"""Checks the English of docstrings, comments and Markdown pages: `python tools/check_prose.py [PATH ...]`.

Three rules that a program can hold: a docstring opens with a noun or a verb; conditions are written with "if" or
"when", not with "where"; one idea has one word. `--report` prints the counts by folder instead.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDERS = ("fastadaad", "kernels", "bench", "examples", "tests", "tools", "docs")
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")

OPENERS = {"what", "whether", "of", "those", "as", "where", "how", "which", "who", "that"}
MAX_OPENERS = 0.02  # fraction of all docstrings

# Homely word -> the field's. Each is a regular expression over prose, not over code.
WORDS = {
    r"\btwins?\b": "folded copy",
    r"\bstrangers?\b": "untrusted",
    r"\banew\b": "again",
    r"\bgoes? on from\b": "resumes from",
    r"\b(?:is|are) (?:said|told)\b": "is reported, warns, raises",
    r"\bwithout a word\b": "silently",
    r"\bthat (?:is|are) none\b": "not a ...",
    r"\bthere (?:is|are) none\b": "none exists, missing",
    r"\bthat there (?:is|are) not\b": "that do not exist",
    r"\btak(?:es?|en|ing) back\b": "reverts",
    r"\bso many\b": "the number by its name",
    r"\ball the same\b": "anyway",
    r"\bin vain\b": "without effect",
    r"\bother people's\b": "third-party",
    r"\ba text\b": "a string",
    r"\bin (?:their|its) stead\b": "instead",
    r"\blast words\b": "failure report",
    r"\bsave in\b": "except in",
}
# Prose "where" per "if": a page about conditions uses "if".
MAX_WHERE_PER_IF = 1.0


class Prose(NamedTuple):
    """One docstring, comment or paragraph, and where it stands."""

    path: Path
    line: int
    kind: str
    text: str


def python_prose(path: Path) -> Iterator[Prose]:
    """Yields the docstrings and the comments of a Python file."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        is_owner = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for index, statement in enumerate(body):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str) and ((index == 0 and is_owner) or _documents_a_field(body, index)):
                    yield Prose(path, statement.lineno, "docstring", text)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(path, token.start[0], "comment", token.string)


def _documents_a_field(body: list[ast.stmt], index: int) -> bool:
    return index > 0 and isinstance(body[index - 1], (ast.Assign, ast.AnnAssign))


def markdown_prose(path: Path) -> Iterator[Prose]:
    """Yields the lines of a page outside code blocks and without inline code."""
    in_code = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith("    "):
            yield Prose(path, number, "page", line)


def prose_of(paths: list[Path]) -> Iterator[Prose]:
    """Yields the prose of files and folders."""
    for path in paths:
        files = sorted([*path.rglob("*.py"), *path.rglob("*.md")]) if path.is_dir() else [path]
        for file in files:
            yield from (markdown_prose if file.suffix == ".md" else python_prose)(file)


def without_code(text: str) -> str:
    """Removes inline code and URLs, which are not prose."""
    return re.sub(r"`[^`]*`|https?://\S+", "", text)


def opens_badly(text: str) -> bool:
    """Returns True if the first word of a docstring is one of OPENERS."""
    first = re.match(r"\s*([A-Za-z]+)", text)
    return first is not None and first[1].lower() in OPENERS


def count(pattern: str, prose: list[Prose]) -> int:
    """Counts a regular expression over prose."""
    return sum(len(re.findall(pattern, without_code(piece.text), re.IGNORECASE)) for piece in prose)


def findings(prose: list[Prose]) -> list[str]:
    """Returns one line per broken rule."""
    lines = []
    docstrings = [piece for piece in prose if piece.kind == "docstring"]
    bad = [piece for piece in docstrings if opens_badly(piece.text)]
    if len(bad) > MAX_OPENERS * len(docstrings):
        lines += [
            f"{place(piece)}: docstring opens with {piece.text.split()[0]!r}: use a noun or a verb" for piece in bad
        ]
    for piece in prose:
        text = without_code(piece.text)
        for pattern, plain in WORDS.items():
            if match := re.search(pattern, text, re.IGNORECASE):
                lines.append(f"{place(piece)}: {match[0]!r}: write {plain!r}")
    return lines


def place(piece: Prose) -> str:
    """Returns path:line relative to the project."""
    path = piece.path.relative_to(ROOT) if piece.path.is_relative_to(ROOT) else piece.path
    return f"{path}:{piece.line}"


def report(prose: list[Prose]) -> None:
    """Prints the fraction of badly opened docstrings and "where" against "if", by top folder."""
    by_folder: dict[str, list[Prose]] = {}
    for piece in prose:
        parts = piece.path.relative_to(ROOT).parts
        folder = "/".join(parts[:2]) if parts[0] == "fastadaad" and len(parts) > 2 else parts[0]
        by_folder.setdefault(folder, []).append(piece)
    for folder, pieces in {**by_folder, "all": prose}.items():
        docstrings = [piece for piece in pieces if piece.kind == "docstring"]
        bad = sum(opens_badly(piece.text) for piece in docstrings)
        where, if_ = count(r"\bwhere\b", pieces), count(r"\bif\b", pieces)
        openers = f"openers {bad:4}/{len(docstrings):<5}"
        print(f"{folder:24} {openers} where : if {where:4} : {if_:<4} words {len(findings(pieces)):4}")


def main() -> int:
    """Prints the findings; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--report", action="store_true", help="print counts by folder")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths] or [ROOT / name for name in (*FOLDERS, *PAGES)]
    prose = list(prose_of(paths))
    if arguments.report:
        report(prose)
        return 0
    lines = findings(prose)
    where, if_ = count(r"\bwhere\b", prose), count(r"\bif\b", prose)
    if where > MAX_WHERE_PER_IF * if_:
        lines.append(f'"where" {where} times, "if" {if_} times: write conditions with "if" or "when"')
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
