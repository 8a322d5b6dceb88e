"""Escapes and truncates untrusted text for one-line messages."""

from rich.console import Console

HEAD, TAIL = 800, 200  # characters kept of a longer text: its start names the mistake, its end the remedy


def printable(text: str) -> str:
    """Returns `text` with line breaks and unprintable characters escaped, and without the middle of a long text."""
    if len(text) > HEAD + TAIL:
        text = f"{text[:HEAD]}...{text[-TAIL:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class InputError(ValueError):
    """Base class of errors about the user's files: the message is one line that names the file and the remedy.

    Control characters of the message are escaped, and a long message loses its middle (see printable).
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def line_of(error: Exception) -> str:
    """Returns the message of an error in one line; errors of the system get a remedy."""
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename} cannot be used ({error.strerror}): make it possible, or give another place"
    else:
        message = str(error)
    return printable(" ".join(message.split()))


def print_line(console: Console, line: str) -> None:
    """Prints an escaped line, with brackets as brackets and not as rich's markup."""
    console.print(printable(line), markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units, such as 3 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def pixels_text(value: float) -> str:
    """Formats a radius or step size as it is usually written: short decimals as `0.1`, whole 255ths as `8/255`."""
    decimal, steps = f"{value:g}", 255 * value
    is_whole = float(decimal) != value and abs(steps - round(steps)) < 1e-6
    return f"{round(steps)}/255" if is_whole else decimal
