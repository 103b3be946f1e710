"""`lmppl view`: what there is to see at a path, and the server for it. Only the roof imports it."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from lmppl.commands.console import clean, say
from lmppl.errors import DataError
from lmppl.inference.questions.rundir import CONFIG, REPORT
from lmppl.inference.view.server import Viewer, check_host


def view(path: str, *, host: str = "127.0.0.1", port: int = 0, opened: bool = True) -> int:
    """Serve until interrupted."""
    check_host(host)
    what, index = seen(Path(path))
    with Viewer(what, index, host=host, port=port) as server:
        print(f"{server.address} shows {clean(path)}; Ctrl-C ends it", flush=True)
        if opened and not webbrowser.open(server.address):
            say("no browser was found: open the address yourself")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("ended")
    return 0


def seen(path: Path) -> tuple[Path | bytes, str]:
    """What to serve for a path, and its first page.

    A run's folder is served as it is, its report written where it is missing; a page alone, without
    its folder; a saved posterior as the report made of it.

    Raises:
        DataError: nothing that can be shown.
    """
    if path.is_dir():
        if (path / CONFIG).is_file() and not (path / REPORT).is_file():
            from lmppl.commands import run as runner

            runner.write_report(runner.read_run(path), f"lmppl run {path.name}")
        if (path / REPORT).is_file():
            return path, REPORT
        raise DataError(
            f"{str(path)!r} is no folder of a run", fix="give what --out of `lmppl run` named"
        )
    if path.suffix.lower() == ".html":
        try:
            return path.read_bytes(), path.name
        except OSError as error:
            raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    from lmppl.inference.results.posterior import Posterior
    from lmppl.inference.view.page import report_page

    page = report_page(Posterior.load(path), title=path.name)
    return page.encode("utf-8", "backslashreplace"), path.name
