"""When a request is sent again, and after how long; and when no more are sent at all.

Only failures of the connection, 408, 425, 429, 5xx and responses that were cut off are tried
again. The pause before attempt k is uniform on 0 … min(cap, base·2^k) ("full jitter", Brooker,
2015), or what `Retry-After` asks for where that is no more than the cap. Clocks are monotonic, and
an argument, so that tests wait on a clock of their own.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from lmppl.errors import BadArgument
from lmppl.lm.http.errors import ServerBusy, ServerDown, ServerError

REST = 60.0
"""Seconds for which nothing is sent once too many requests in a row have failed."""


@dataclass(frozen=True)
class Policy:
    """Limits of one server's client.

    Args:
        concurrency: requests in flight at most.
        timeout: seconds until the response to one attempt must be complete.
        connect: seconds for the connection.
        attempts: of one request, at most.
        patience: seconds for all attempts of one request together.
        base, cap: of the pauses between attempts, in seconds.
        failures: in a row, over all requests, after which no more are sent (`ServerDown`).
        max_bytes: of one response, unpacked.
        on_unknown: whether a request that may have been computed and paid is sent again.
    """

    concurrency: int = 64
    timeout: float = 120.0
    connect: float = 10.0
    attempts: int = 5
    patience: float = 600.0
    base: float = 0.5
    cap: float = 60.0
    failures: int = 20
    max_bytes: int = 256 << 20
    on_unknown: Literal["retry", "raise"] = "retry"

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be asked."""
        for name in ("concurrency", "timeout", "connect", "attempts", "patience", "failures"):
            if not getattr(self, name) > 0:
                raise BadArgument(
                    f"{name} must be positive, got {getattr(self, name)!r}",
                    fix=f"leave it out for {name}={getattr(Policy, name)}",
                )
        if self.on_unknown not in ("retry", "raise"):
            raise BadArgument(
                f'on_unknown must be "retry" or "raise", got {self.on_unknown!r}',
                fix='"raise" never pays twice, "retry" loses no question to a broken connection',
            )


class Clock:
    """The real one."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def jitter(self, most: float) -> float:
        """Uniform on 0 … most; it moves no draw, only the time of a request."""
        return random.uniform(0.0, most)


def retry_after(text: str | None) -> float | None:
    """The seconds of a Retry-After header; None where it says nothing usable.

    >>> retry_after("2"), retry_after("-1"), retry_after("soon"), retry_after(None)
    (2.0, None, None, None)
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
        seconds = max(seconds, 0.0)
    return seconds if 0.0 <= seconds < float("inf") else None


def again(policy: Policy, error: ServerError, attempt: int, spent: float) -> bool:
    """Whether to send a request once more after its `attempt`-th failure (from 1)."""
    if not error.retry or attempt >= policy.attempts or spent >= policy.patience:
        return False
    return policy.on_unknown == "retry" or not error.paid or isinstance(error, ServerBusy)


def pause(policy: Policy, error: ServerError, attempt: int, clock: Clock) -> float:
    """Seconds before the next attempt."""
    asked = error.wait if isinstance(error, ServerBusy) else None
    if asked is not None and asked <= policy.cap:
        return asked
    return clock.jitter(min(policy.cap, policy.base * 2.0**attempt))


class Breaker:
    """Counts failures in a row over all requests, and opens when there are too many."""

    def __init__(self, policy: Policy, clock: Clock, server: str) -> None:
        """Closed."""
        self.policy, self.clock, self.server = policy, clock, server
        self.in_a_row = 0
        self._since: float | None = None
        self._last: Exception = ServerError("nothing failed yet")

    def check(self) -> None:
        """Refuse to send while it is open.

        Raises:
            ServerDown: with the last failure.
        """
        if self._since is None:
            return
        if self.clock.now() - self._since < REST:
            raise ServerDown(self.server, self.in_a_row, self._last)
        self._since, self.in_a_row = None, 0

    def succeeded(self) -> None:
        """A response came."""
        self.in_a_row = 0

    def failed(self, error: Exception) -> None:
        """None came, or none that can be used."""
        self.in_a_row += 1
        self._last = error
        if self.in_a_row >= self.policy.failures and self._since is None:
            self._since = self.clock.now()
