"""The command `lmppl serve`. Part of the command line."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import click

from lmppl.commands.options import debug_option, models_option, program_argument
from lmppl.errors import BadArgument

LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command()
@program_argument
@click.option(
    "--engine", default="smc", show_default=True, metavar="NAME:KEY=VALUE,…", help="As for run."
)
@models_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--api-key",
    envvar="LMPPL_SERVE_KEY",
    default="",
    help="What clients must send; better as LMPPL_SERVE_KEY. Needed to listen beyond this machine.",
)
@click.option("--name", help="What clients call the model; the program's name when left out.")
@click.option("--seed", type=int, help="Of requests that name none; a fresh one when left out.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests that share a batch.",
)
@click.option(
    "--waiting",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests that may wait; one more is refused with 429.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Bytes of a request.",
)
@debug_option
def serve(**options: Any) -> int:
    """Answer chat clients with a program: an OpenAI-compatible server.

    A question is the last user message. An answer is the most probable one of the posterior, or
    n draws of it; the whole posterior is in the field `lmppl` of a response.
    """
    from lmppl.commands.console import say
    from lmppl.commands.loading import load_models, load_program, parse_models
    from lmppl.inference.specs import parse_engine

    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise BadArgument(
                f"serving needs the Python package {package}",
                fix='run: pip install "lmppl-lang[serve]"',
            )
    host, port, key = options["host"], options["port"], options["api_key"]
    if host not in LOCAL and not key:
        raise BadArgument(
            f"--host {host} opens the server to others, and there is no API key",
            fix="set LMPPL_SERVE_KEY, or leave --host out",
        )
    spec = parse_engine(options["engine"])
    sources = parse_models(options["models"])
    loaded = load_program(options["program"])

    from lmppl.commands.serve import Service, Settings, accepted_hosts, run
    from lmppl.inference.questions.arrivals import Arrivals

    settings = Settings(
        options["name"] or loaded.name,
        key=key,
        seed=options["seed"],
        max_body=options["max_body"],
        hosts=accepted_hosts(host, port),
    )
    line = Arrivals(
        loaded.program,
        engine=spec.engine,
        lm=load_models(sources) or None,
        concurrency=options["concurrency"],
        waiting=options["waiting"],
    )
    with line:
        told = f"{settings.model} by {spec.text}: http://{host}:{port}/v1 (Ctrl-C ends it)"
        run(Service(loaded.program, line, settings).app(), host, port, lambda: say(told))
    return 0
