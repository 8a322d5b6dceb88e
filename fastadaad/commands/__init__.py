"""The commands of the command line, one module each.

A module has its help as docstring, an EXAMPLE, `add_arguments(parser)` and `run(arguments, console)`. What is heavy to
import is imported in `run`, so that --help answers at once.
"""
