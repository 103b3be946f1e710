"""Options that several commands share. Part of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

program_argument = click.argument("program", metavar="PROGRAM.py[:name]")
models_option = click.option(
    "--lm", "models", multiple=True, metavar="[NAME=]MODEL", help="As for run."
)


def debug_option(command: F) -> F:
    """`--debug` is read before everything else, and accepted everywhere."""
    return click.option(
        "--debug",
        is_flag=True,
        help="Show tracebacks.",
        expose_value=command.__name__ in ("run", "compare"),
    )(command)
