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
json_option = click.option("--json", "as_json", is_flag=True, help="The same as JSON.")

_ASKED = (
    click.option("--data", required=True, help="Questions: one JSON object a line."),
    click.option("--limit", type=click.IntRange(1), help="Only the first N questions."),
    click.option("--seed", default=0, show_default=True, help="All randomness follows from it."),
)
_KEPT = (
    click.option(
        "--resume", is_flag=True, help="Go on: questions with a result are not run again."
    ),
    click.option("--fork", is_flag=True, help="Start anew beside --out when it holds a run."),
    click.option("--retry-failed", is_flag=True, help="With --resume, run failed questions again."),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        default=16,
        show_default=True,
        help="Questions that share a batch; several engines take turns after as many.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["raise", "kill", "retry"]),
        default="raise",
        show_default=True,
        help="An exception in one particle: fail the question, kill the particle, or try again.",
    ),
    click.option(
        "--driver",
        type=click.Choice(["greenlet", "coroutine", "eager"]),
        help="How programs are suspended.",
    ),
)


def questions_options(command: F) -> F:
    """Which questions are asked: `--data`, `--limit`, `--seed`."""
    return _all(_ASKED, command)


def keeping_options(command: F) -> F:
    """How many questions run and how their results are kept: `--resume` to `--driver`."""
    return _all(_KEPT, command)


def check_keeping(options: dict[str, Any]) -> None:
    """Refuse `--resume` with `--fork`."""
    if options["resume"] and options["fork"]:
        raise click.UsageError(
            "--resume goes on with a run and --fork starts a new one: leave one out"
        )


def _all(options: tuple[Callable[[F], F], ...], command: F) -> F:
    for option in reversed(options):  # decorators nest: the last one is the innermost
        command = option(command)
    return command


def debug_option(command: F) -> F:
    """`--debug` is read before everything else, and accepted everywhere."""
    return click.option(
        "--debug",
        is_flag=True,
        help="Show tracebacks.",
        expose_value=command.__name__ in ("run", "compare"),
    )(command)
