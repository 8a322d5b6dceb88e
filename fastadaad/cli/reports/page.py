"""Parts of a page in HTML that needs no other file and no network; all text is escaped."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; } h3 { margin-top: 1.5rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { border-bottom: 2px solid #888; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; height: auto; } summary { cursor: pointer; } .note { color: #555; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def page(title: str, sections: Iterable[str]) -> bytes:
    """Returns the file: a heading and the sections, which are HTML."""
    title = escape(title)
    return _PAGE.substitute(title=title, body="\n".join([f"<h1>{title}</h1>", *sections])).encode()


def heading(text: str, level: int = 2) -> str:
    """Returns a heading; levels 2 and 3 are below the page's own."""
    return f"<h{level}>{escape(text)}</h{level}>"


def note(text: str) -> str:
    """Returns a paragraph."""
    return f'<p class="note">{escape(text)}</p>'


def folded(summary: str, content: str) -> str:
    """Returns `content`, HTML, that a click on the summary shows."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """Returns a table; the columns from `numbers_from` on are aligned to the right. Default: none of them."""
    first_number = len(columns) if numbers_from is None else numbers_from

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if index >= first_number else "" for index in range(len(cells))]
        inside = "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, cells, strict=True))
        return f"<tr>{inside}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f"<table>\n<thead>{line('th', columns)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def picture(png: bytes, description: str) -> str:
    """Returns a PNG inside the page."""
    content = base64.b64encode(png).decode()
    return f'<p><img alt="{escape(description)}" src="data:image/png;base64,{content}"></p>'
