"""A plain call of a program: every site is drawn or scored at once, nothing resamples."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from lmppl import context
from lmppl.batches import run_now
from lmppl.context import Context, check_awaited, local
from lmppl.distributions import score_or_zero
from lmppl.errors import LmpplWarning
from lmppl.frames import EagerFrame, is_async, run_coroutine
from lmppl.jobs import Env
from lmppl.ledger import Ledger
from lmppl.messages import Message
from lmppl.outside import run_here
from lmppl.proposals import check_proposal
from lmppl.random import Chance, GumbelMax, fold
from lmppl.strands import Launch, Strand
from lmppl.text import Text
from lmppl.trace import Entry, Trace
from lmppl.types import Key
from lmppl.values import freeze, memo_key
from lmppl.weights import check_log_weight


class EagerContext(Context):
    """Runs a program from start to end and keeps its trace.

    Args:
        key: root of all draws.
        chance: who answers them.
        models: language models by name.
    """

    def __init__(
        self, key: Key, chance: Chance | None = None, models: dict[str, Any] | None = None
    ) -> None:
        """Take the ambient handlers and models along."""
        super().__init__(list(local.ambient))
        from lmppl.lm.load import shared

        self.key = key
        self.env = Env({**local.models, **(models or {})}, chance or GumbelMax(), shared)
        self.ledger = Ledger()
        self.head: Entry | None = None
        self.result: Any = None
        self.memo: dict[Hashable, Any] = {}

    def enter(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run `fn` in this context to its value."""
        before = local.active
        local.active = self
        context.engines_running += 1
        try:
            self.result = self._call(fn, args, kwargs)
        finally:
            context.engines_running -= 1
            local.active = before
        check_awaited(self)
        self._warn_unmet(fn)
        return self.result

    def _warn_unmet(self, fn: Any) -> None:
        """A condition that met no site of this one run may be a misspelt one."""
        handlers = list(self.handlers)
        while hasattr(fn, "process"):
            handlers.append(fn)
            fn = fn.fn
        for handler in handlers:
            for address in handler.unmet(self.met):
                near = difflib.get_close_matches(address, [e.address for e in self.trace.sites], 1)
                warnings.warn(
                    f"{type(handler).__name__} on {address!r} met no site in this run"
                    + (f"; did you mean {near[0]!r}?" if near else ""),
                    LmpplWarning,
                    stacklevel=4,
                )

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outer, self.is_async = self.is_async, is_async(fn)
        try:
            return self.drive(fn(*args, **kwargs))
        finally:
            self.is_async = outer

    def drive(self, value: Any) -> Any:
        """Run a coroutine, whose awaits are answered at once."""
        if not inspect.iscoroutine(value):
            return value
        colour, self.is_async = self.is_async, True
        try:
            return run_coroutine(value)
        finally:
            self.is_async = colour

    @property
    def trace(self) -> Trace:
        """What has happened."""
        return Trace(self.head, self.result)

    def mark(self) -> Entry | None:
        """The newest entry."""
        return self.head

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        """Keep the inner entries behind one."""
        if self.head is not base:
            self.head = Entry(base, op, address, value, inside=self.head, note=note)
        else:
            self.head = Entry(base, op, address, value, note=note)

    def answer(self, message: Message) -> None:
        """Draw, score or run now."""
        op = message.op
        if op == "sample":
            self._sample(message)
        elif op == "observe":
            message.logp = 0.0 if message.masked else self._score(message) * message.scale
            self._record(message, message.logp)
        elif op == "factor":
            w = check_log_weight(message.value, site=message.address) * message.scale
            self._record(message, 0.0 if message.masked else w)
        elif op == "reward":
            step = message.dist.score(message.value, self.env)
            message.value = float(run_now(step, self.env, self.ledger))
            self._record(message, 0.0)
        elif op == "plate":
            self._plate(message)
        elif op == "cached":
            key = memo_key(message.fn, message.args)
            if key not in self.memo:
                self.memo[key] = freeze(message.fn(*message.args))
            message.value = self.memo[key]
            self._record(message, 0.0)
        elif op == "effect":
            message.value = freeze(_effect(message))
            self.ledger.effects += 1
            self._record(message, 0.0)
        else:
            self._record(message, 0.0)
        message.done = True

    def _record(self, message: Message, logw: float) -> None:
        self.head = Entry(
            self.head, message.op, message.address, message.value, message.logp, message.logq, logw
        )

    def _score(self, message: Message) -> float:
        logp = run_now(message.dist.score(message.value, self.env), self.env, self.ledger)
        return check_log_weight(logp, site=message.address, term="log-probability")

    def _sample(self, message: Message) -> None:
        if message.done:
            message.logp = self._score(message) * (1.0 if message.masked else message.scale)
            self._record(message, message.logp)
            return
        source = message.proposal or message.dist
        if message.proposal is not None:
            check_proposal(message.dist, message.proposal, self.env, message.address)
        drawn = run_now(
            source.draw(fold(self.key, message.address), self.env), self.env, self.ledger
        )
        value = drawn.value
        if isinstance(value, str):
            text = value if isinstance(value, Text) else Text(value)
            value = text.at(message.address)
        message.value = value
        message.logq = drawn.logq
        message.logp = drawn.logp
        if message.proposal is not None:
            step = score_or_zero(message.dist, drawn.value, self.env)
            logp = run_now(step, self.env, self.ledger)
            message.logp = check_log_weight(logp, site=message.address, term="log-probability")
        if not message.masked:
            message.logp *= message.scale
        self._record(message, message.logp - message.logq)

    def _plate(self, message: Message) -> None:
        if message.grow is not None:
            self._graph(message)
            return
        base, scope, results = self.head, self.scope, []
        branches: list[Entry | None] = []
        for i, item in enumerate(message.args):
            self.scope = f"{message.address}[{i}]/"
            self.head = None
            try:
                results.append(self._call(message.fn, (item,), {}))
            finally:
                self.scope = scope
            branches.append(self.head)
        message.value = tuple(results)
        self.head = Entry(base, "plate", message.address, message.value, inside=tuple(branches))

    def _graph(self, message: Message) -> None:
        """The sequential program of a graph: one node after the other, in their order."""
        base, scope, growth = self.head, self.scope, message.grow.fork()
        branches: list[Strand] = []
        waiting = deque(growth.begin(False)[0])
        while waiting:
            start = waiting.popleft()
            branch = Strand(Launch(start.fn, (start.values,), {}, EagerFrame))
            branch.place, self.scope, self.head = start.node, start.scope, None
            try:
                branch.result = self._call(start.fn, (start.values,), {})
            finally:
                self.scope = scope
            branch.head, branch.done = self.head, True
            branches.append(branch)
            starts, cancelled = growth.ended(branch.place, branch.result, branch.head)
            waiting.extend(starts)
            if cancelled:
                waiting = deque(w for w in waiting if w.node not in cancelled)
                branches = [b for b in branches if b.place not in cancelled]
        self.head = growth.join(base, message, branches)
        message.value = self.head.value


def _effect(message: Message) -> Any:
    """Run an effect; nothing can be killed in a plain call, so "kill" raises too."""
    on_error, timeout, retries = message.options
    left = retries if on_error == "retry" else 0
    while True:
        try:
            return run_here(
                message.fn, message.args, message.kwargs or {}, timeout, message.address
            )
        except Exception:
            if left == 0:
                raise
            left -= 1
