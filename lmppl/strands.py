"""A line of execution of a particle: its tape, how its frame starts, and how replay answers it.

`Strand` is the state that forks; `Launch` says how to make its frame again; `FrameContext` is
what primitives see inside the frame: a message is answered from the tape while that lasts, then
the frame suspends (`lmppl.frames`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from lmppl.context import Context, check_awaited
from lmppl.errors import ReplayDivergence
from lmppl.lines import caller
from lmppl.messages import Message, check_replay
from lmppl.trace import Entry

if TYPE_CHECKING:
    from lmppl.frames import Frame

INLINE = ("deterministic",)
"""Operations that need no answer: recorded without suspending."""
PATIENCE = 3
"""How often a program may catch what unwinds it before its frame is given up."""


class Strand:
    """One line of execution of a particle: its tape, its frame, and what it waits for.

    A particle has one strand; a running `plate` adds one per branch.
    """

    __slots__ = (
        "ahead",
        "branches",
        "done",
        "frame",
        "growth",
        "head",
        "job",
        "joining",
        "key",
        "launch",
        "nested",
        "outcomes",
        "parent",
        "pending",
        "place",
        "replayed",
        "result",
        "stepped",
    )

    def __init__(
        self, launch: Launch, head: Entry | None = None, parent: Strand | None = None
    ) -> None:
        """Not started yet."""
        self.launch = launch
        self.head = head
        self.parent = parent
        self.key = 0
        """The key of its particle: the root of nested inference."""
        self.frame: Frame | None = None
        self.pending: Message | None = None
        self.ahead = False
        """Whether the pending message is the next one, which nobody has begun to answer."""
        self.job: Any = None
        """The model job that the pending message waits for."""
        self.nested: Any = None
        """Jobs of an inference inside the program that are not done yet."""
        self.outcomes: Any = None
        """The support of the pending site, when an engine lists it in place of drawing."""
        self.branches: list[Strand] | None = None
        self.growth: Any = None
        """Of a running graph: which branches have ended, and which start next."""
        self.place: Any = None
        """The node of a graph that this branch is."""
        self.result: Any = None
        self.done = False
        self.joining = False
        """While its plate starts the branches."""
        self.stepped = False
        self.replayed = 0

    def leaves(self) -> Iterator[Strand]:
        """The strands that can move: itself, or the unfinished branches of its plate."""
        if self.branches is None:
            if not self.done:
                yield self
        else:
            for branch in self.branches:
                yield from branch.leaves()

    def kill(self) -> None:
        """Unwind its frames."""
        if self.frame is not None:
            self.frame.kill()
            self.frame = None
        for branch in self.branches or ():
            branch.kill()

    def cancel(self) -> None:
        """Unwind its frames, and take no answer any more: its particle goes on without it."""
        self.kill()
        strands = [self]
        while strands:
            s = strands.pop()
            strands += s.branches or ()
            s.pending = s.job = s.nested = s.outcomes = s.branches = None
            s.done = True


class Launch:
    """How to start a frame: the function, its arguments, and where it stands."""

    __slots__ = (
        "args",
        "chance",
        "driver",
        "fn",
        "handlers",
        "kwargs",
        "met",
        "models",
        "scope",
        "strict",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        driver: type[Frame],
        handlers: tuple[Any, ...] = (),
        scope: str = "",
        strict: bool = False,
    ) -> None:
        """Keep the parts."""
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.driver = driver
        self.handlers = handlers
        self.scope = scope
        self.strict = strict
        self.models: dict[str, Any] = {}
        """What nested inference inherits: the language models by name, and the chance."""
        self.chance: Any = None
        self.met: set[str] = set()
        """Sites that a handler's data has named, in any particle."""

    def branch(
        self, fn: Callable[..., Any], item: Any, handlers: tuple[Any, ...], scope: str
    ) -> Launch:
        """How to start one branch of a plate."""
        new = Launch(fn, (item,), {}, self.driver, handlers, scope, self.strict)
        new.models, new.chance, new.met = self.models, self.chance, self.met
        return new


class FrameContext(Context):
    """Answers from the tape while it lasts, then asks the frame to suspend."""

    def __init__(self, frame: Frame, strand: Strand, replay: list[Entry]) -> None:
        """Start at the beginning of a tape."""
        launch = strand.launch
        super().__init__(list(launch.handlers), launch.scope)
        self.strict = launch.strict
        self.met = launch.met
        self.frame = frame
        self.strand = strand
        self.replay = replay
        self.length = len(replay)
        self.position = 0
        self.leaving: type[BaseException] | None = None
        """What unwinds the frame: raised at every primitive, should the program catch it."""
        self.refusals = 0
        """How often the program has gone on in spite of it."""
        self.result: Any = None

    def perform(self, message: Message) -> Any:
        """As in any context; a new site without handlers goes straight to the engine."""
        if (
            self.position < self.length
            or self.handlers
            or self.is_async
            or self.leaving is not None
            or message.op in INLINE
        ):
            return super().perform(message)
        return self.frame.suspend(message).value

    def answer(self, message: Message) -> None:
        """From the tape, else by suspending."""
        if self._recorded(message):
            return
        message.take(self.frame.suspend(message))

    def answer_async(self, message: Message) -> Generator[Message, Entry, None]:
        """As `answer`; a trampoline gets the message by `yield`."""
        if self.leaving is not None and self.frame.yields and self.refusals >= PATIENCE:
            self.frame.zombie = caller()
            while True:
                yield message
        if self._recorded(message):
            return
        if self.frame.yields:
            message.take((yield message))
        else:
            message.take(self.frame.suspend(message))

    def _recorded(self, message: Message) -> bool:
        if self.leaving is not None:
            self.refusals += 1
            if self.refusals > PATIENCE:
                self.frame.abandon()
            raise self.leaving
        if self.position < self.length:
            entry = self.replay[self.position]
            self.position += 1
            self.strand.replayed += 1
            check_replay(entry, message)
            message.take(entry)
            return True
        if message.op in INLINE:
            strand = self.strand
            strand.head = Entry(
                strand.head,
                message.op,
                message.address,
                message.value,
                fingerprint=message.fingerprint(),
            )
            message.done = True
            return True
        return False

    def drive(self, value: Any) -> Any:
        """Run a coroutine inside a plain program, which cannot await it."""
        return self.frame.drive(value)

    def skip(self, op: str, address: str) -> Entry | None:
        """The next entry of the tape, if it is this folded part."""
        if self.position >= self.length:
            return None
        entry = self.replay[self.position]
        if entry.op != op or entry.address != address:
            return None
        self.position += 1
        self.strand.replayed += 1
        return entry

    def mark(self) -> Entry | None:
        """The newest entry so far."""
        if self.position < self.length:
            return self.replay[self.position].prev
        return self.strand.head

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        """One entry in place of those since `base`."""
        strand = self.strand
        if strand.head is base and op != "loop":
            strand.head = Entry(base, op, address, value, note=note)
        else:
            strand.head = Entry(base, op, address, value, inside=strand.head, note=note)

    def check_finished(self) -> None:
        """At the return of the program: the whole tape was read."""
        if self.position < self.length:
            entry = self.replay[self.position]
            raise ReplayDivergence(
                f"{entry.op} {entry.address!r}", "the end of the program", address=entry.address
            )
        check_awaited(self)
