"""What the command line shows: progress, tables, and texts made safe for a terminal.

Texts of models, data and programs may hold escape sequences that move the cursor, change colours or
hide what stands there; `clean` makes every such character visible. Markup is off everywhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY = 5.0
"""Seconds between lines of progress where there is no terminal."""


def clean(text: object, most: int | None = None) -> str:
    r"""A text in one line, with control and format characters written as escapes.

    >>> clean("a\x1b[31mb\n\u202ec")
    'a\\x1b[31mb \\u202ec'
    """
    line = " ".join(str(text).split())
    if most is not None and len(line) > most:
        line = line[: most - 1] + "…"
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )


def console(stream: IO[str]) -> Console:
    """A rich console that reads no markup; NO_COLOR and dumb terminals are respected by rich."""
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False, emoji=False)


def say(text: str) -> None:
    """A line for people, beside the output."""
    print(text, file=sys.stderr, flush=True)


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table on standard output; columns of numbers are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, title=clean(title) or None, title_justify="left", pad_edge=False
    )
    for k, name in enumerate(header):
        number = bool(rows) and all(str(row[k])[:1] in "0123456789-–<" for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    screen = console(sys.stdout)
    if not screen.is_terminal:  # a file is not 80 columns wide
        screen.width = 200
    screen.print(table)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(0.25), duration(59.4), duration(61), duration(3700)
    ('0.2 s', '59 s', '1:01', '1:01:40')
    """
    whole = round(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )


class Progress:
    """Questions done, their rate, tokens a second, time left: a bar, or plain lines.

    Args:
        total: how many questions are to be answered.
        tokens: how many tokens the models have computed so far.
        stream: where to; a terminal gets the bar.
    """

    def __init__(
        self, total: int, tokens: Callable[[], int] = lambda: 0, stream: IO[str] | None = None
    ) -> None:
        """Show nothing yet."""
        self.total = total
        self.done = self.failed = 0
        self._tokens = tokens
        self._first = tokens()
        self._began = self._spoke = time.monotonic()
        self._screen = console(stream or sys.stderr)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        """Draw the bar, where there is a terminal."""
        if self.total and self._screen.is_terminal and not self._screen.is_dumb_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.completed}/{task.total}"),
                _Numbers(self),
                console=self._screen,
            )
            self._task = self._bar.add_task("answers", total=self.total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done:
            self._line()

    def beat(self, label: str) -> None:
        """A batch is about to run."""
        if self._bar is not None:
            self._bar.update(self._task, description=clean(label, 40))
        elif time.monotonic() - self._spoke >= PLAIN_EVERY:
            self._line(label)

    def advance(self, label: str, failed: bool) -> None:
        """A question has ended."""
        self.done += 1
        self.failed += failed
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=clean(label, 40))
        elif time.monotonic() - self._spoke >= PLAIN_EVERY:
            self._line(label)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._screen.print(text, soft_wrap=True)

    def numbers(self) -> str:
        """Failures, rates and what is left."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        parts = [f"{self.failed} failed"] if self.failed else []
        computed = self._tokens() - self._first
        if computed:
            parts.append(f"{computed / seconds:,.0f} tokens/s")
        if self.done:
            parts.append(f"{60 * self.done / seconds:,.1f} answers/min")
            left = seconds / self.done * (self.total - self.done)
            parts.append(f"{duration(left)} left" if left else f"{duration(seconds)}")
        return " · ".join(parts)

    def _line(self, label: str = "") -> None:
        self._spoke = time.monotonic()
        head = f"{self.done}/{self.total} answers"
        self.note(" · ".join(p for p in (head, clean(label, 40), self.numbers()) if p))


def _Numbers(progress: Progress) -> Any:  # noqa: N802
    """A column of the bar with the numbers of a `Progress`."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(progress.numbers())

    return Numbers()
