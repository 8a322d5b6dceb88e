"""Command line: `fastadaad COMMAND`, one module of fastadaad/cli per command.

A command's module has its help as docstring, an EXAMPLE, `add_arguments(parser)` and `run(arguments, console)`. Heavy
imports belong into `run`, so that --help answers at once.
"""

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import NoReturn

from rich.console import Console

from fastadaad.config_io import setting_named
from fastadaad.runtime.host_memory import keep_freed_memory
from fastadaad.runtime.messages import LEVELS, messages_on
from fastadaad.runtime.output import end_output, open_standard_streams, reason
from fastadaad.runtime.signals import Interrupted, without_terminal
from fastadaad.runtime.text import line_of, printable
from fastadaad.runtime.version import version

COMMANDS = (
    "train", "evaluate", "compare", "sweep-epsilon", "benchmark", "recipes", "methods", "teachers", "inspect", "export",
    "pack", "show-batch", "compat", "doctor", "runs", "report",
)  # fmt: skip
# Commands whose results are in files, so that they go on without their output.
WITH_FILES = ("train", "compare", "sweep-epsilon", "benchmark", "compat")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with one line instead of the whole usage, and exit code 2."""
        if unknown := re.match(r"argument COMMAND ARGUMENTS: invalid choice: '(.*)' \(choose from", message):
            close = difflib.get_close_matches(unknown[1], COMMANDS, n=1)
            remedy = f"did you mean {close[0]}?" if close else "fastadaad --help lists all"
            self.exit(2, f"{self.prog}: {printable(f'unknown command {unknown[1]!r}: {remedy}')}\n")
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastadaad",
        usage="fastadaad [OPTIONS] COMMAND ARGUMENTS",
        description="Robust students from robust teachers, fast; example: fastadaad train demo",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=22),  # one line for the longest option
        add_help=False,
    )
    # Not listed, so that the list of commands is short.
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument(
        "--version", action="version", help="show the version", version=f"fastadaad {version('fastadaad')}"
    )
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.add_argument("--log-level", choices=LEVELS, metavar="LEVEL", help="debug, info (default), warning or error")
    subparsers = parser.add_subparsers(
        prog="fastadaad",
        dest="command",
        required=True,
        metavar="COMMAND ARGUMENTS",
        parser_class=_Parser,
    )
    for name in COMMANDS:
        module = importlib.import_module(f"fastadaad.cli.{name.replace('-', '_')}")
        description = (module.__doc__ or "").strip()
        epilog = f"example: {module.EXAMPLE}"
        summary = description.partition("\n")[0]
        command = subparsers.add_parser(name, help=summary, description=description, epilog=epilog)
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command, options=[*command._option_string_actions])
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line, with overrides anywhere on it."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        from fastadaad.cli.completion import complete

        complete(parser)
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        parser.exit()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives `overrides` only the words that directly follow the recipe; words after an option are left over.
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in arguments):
        hint = _suggestion(rest, arguments.options, has_settings="overrides" in arguments)
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        arguments.overrides += rest
    if getattr(arguments, "download", False):
        arguments.overrides.append("data.download=true")
    return arguments


def _suggestion(words: Sequence[str], options: Sequence[str], *, has_settings: bool) -> str:
    """Suggests the option of the command that is closest to one of `words`, or the setting that it names."""
    for word, value in zip(words, [*words[1:], ""], strict=True):
        option, _, given = word.removeprefix("--").partition("=")
        if has_settings and word.startswith("--") and (setting := setting_named(option.replace("-", "_"))):
            return f": did you mean {setting}={given or value or 'VALUE'}?"
    close = [match for word in words for match in difflib.get_close_matches(word.partition("=")[0], options, n=1)]
    return f": did you mean {close[0]}?" if close else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        Exit code: 0, 2 for a user's mistake or a result that cannot be printed, 75 after the loss of a process that
        reads data, 130 after SIGINT, 141 if nobody reads the result, 143 after SIGTERM.
    """
    open_standard_streams()
    arguments = parse(argv)
    keep_freed_memory()
    console = Console()
    has_files = arguments.command in WITH_FILES and not getattr(arguments, "print_config", False)
    try:
        with messages_on(console, arguments.log_level), without_terminal() if has_files else nullcontext():
            if getattr(arguments, "config", None) is not None:
                from fastadaad.cli.config_file import take_config

                take_config(arguments)
            arguments.run(arguments, console)
            return 0 if has_files else _code_of_output()
    except (ValueError, OSError) as error:
        if arguments.traceback:
            raise
        _complain(line_of(error))
        return 2
    except RuntimeError as error:
        line, code = _explanation(error)
        if line is None or arguments.traceback:
            raise
        _complain(line)
        return code
    except Interrupted as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; what was saved so far is complete")
        return 130
    finally:
        end_output()


def _code_of_output() -> int:
    """Returns the exit code of a command whose result is only printed. Raises ValueError if it could not be printed."""
    if sys.stdout is None:  # it was closed before the start
        return 0
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)  # see TolerantStream
    if error is None:
        return 0
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    raise ValueError(f"standard output cannot be written ({reason(error)}): make room, or redirect it elsewhere")


def _explanation(error: RuntimeError) -> tuple[str | None, int]:
    """Returns a line and an exit code for an error that the machine is to blame for, or None."""
    from fastadaad.runtime.compile import damaged_cache  # both import torch
    from fastadaad.runtime.workers import lost_worker

    if lost := lost_worker(error):
        return line_of(lost), os.EX_TEMPFAIL
    damaged = damaged_cache(error)
    return None if damaged is None else printable(damaged), 2


def _complain(line: str) -> None:
    """Prints an error, on local rank 0 only."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError, ValueError):  # nobody may read it
            print(f"fastadaad: {line}", file=sys.stderr, flush=True)
