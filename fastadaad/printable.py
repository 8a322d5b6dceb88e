"""Names and texts out of other people's files, in messages: one line of bounded length that no terminal obeys."""

from rich.console import Console

HEAD, TAIL = 800, 200  # characters that are kept of a longer text: what is wrong is at its front, the remedy at its end


def printable(text: str) -> str:
    """`text` with escapes for what ends a line or is not shown, and without its middle where it is long."""
    if len(text) > HEAD + TAIL:
        text = f"{text[:HEAD]}...{text[-TAIL:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def say(console: Console, line: str) -> None:
    """Print `line`, in which brackets are brackets and no markup."""
    console.print(printable(line), markup=False, soft_wrap=True)
