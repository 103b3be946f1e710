"""The cheapest rule that loses little, chosen on recorded streams.

A constant such as "stop after k equal probes" suits one kind of chain and ruins another. Where
validation chains were run to their end, every rule can be tried on them afterwards, for nothing:

    run(rule, stream) = its first stop, or the end
    choose the rule of the least mean cost among those with  score(end) - score(stop) ≤ tolerance

The loss is compared at its upper confidence bound, mean + z · se of the paired differences, so that
few chains choose a careful rule. `z=0` compares the mean itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lmppl.errors import BadArgument
from lmppl.inference.stopping.rules import Rule

Stream = Sequence[Mapping[str, Any]]
"""The readings of one chain that ran to its end."""


class Trial(NamedTuple):
    """How a rule does on recorded streams."""

    rule: Rule
    saved: float
    """Share of the steps that it does not take."""
    score: float
    """Mean score at its stops."""
    full: float
    """Mean score at the ends."""
    loss_se: float
    """Standard error of full - score, paired over streams."""

    @property
    def loss(self) -> float:
        """What stopping costs in score."""
        return self.full - self.score


def stopping_time(rule: Rule, stream: Stream) -> int:
    """How many readings a rule takes of a stream."""
    state = rule.start()
    for n, values in enumerate(stream, 1):
        if state.update(values):
            return n
    return len(stream)


def trial(rule: Rule, streams: Sequence[Stream], score: Callable[[int, int], float]) -> Trial:
    """Try a rule on recorded streams.

    Args:
        rule: what is tried.
        streams: readings of each chain, up to its end.
        score: of chain i when it stops after n readings, such as 1.0 where the answer is right then.
    """
    if not streams or not all(len(s) for s in streams):
        raise BadArgument("a trial needs streams of at least one reading")
    stops = [stopping_time(rule, s) for s in streams]
    at = [float(score(i, n)) for i, n in enumerate(stops)]
    end = [float(score(i, len(s))) for i, s in enumerate(streams)]
    n = len(streams)
    loss = [e - a for e, a in zip(end, at, strict=True)]
    mean = math.fsum(loss) / n
    spread = math.fsum((x - mean) ** 2 for x in loss) / max(n - 1, 1)
    return Trial(
        rule,
        1.0 - sum(stops) / sum(map(len, streams)),
        math.fsum(at) / n,
        math.fsum(end) / n,
        math.sqrt(spread / n),
    )


def calibrate(
    rules: Iterable[Rule],
    streams: Sequence[Stream],
    score: Callable[[int, int], float],
    *,
    tolerance: float = 0.015,
    z: float = 1.0,
) -> Trial:
    """The rule that saves most among those that lose at most `tolerance`.

    Args:
        rules: candidates, such as `[convergence(k) for k in range(2, 20)]`.
        streams: readings of each validation chain, up to its end.
        score: of chain i when it stops after n readings.
        tolerance: the most that may be lost.
        z: standard errors added to the loss before it is compared.

    Raises:
        BadArgument: every candidate loses more; the least is in the message.

    >>> from lmppl.inference.stopping.chain import convergence
    >>> streams = [[{"answer": a} for a in "12222"], [{"answer": a} for a in "11222"]]
    >>> right = lambda i, n: float(streams[i][n - 1]["answer"] == "2")
    >>> calibrate([convergence(2), convergence(3)], streams, right).rule == convergence(3)
    True
    """
    tried = [trial(rule, streams, score) for rule in rules]
    if not tried:
        raise BadArgument("there is no rule to choose from")
    good = [t for t in tried if t.loss + z * t.loss_se <= tolerance + 1e-12]
    if not good:
        least = min(tried, key=lambda t: t.loss)
        raise BadArgument(
            f"every rule may lose more than {tolerance:g}",
            value=f"{least.rule} loses {least.loss:.4f} ± {least.loss_se:.4f}",
            fix="give stricter rules, more streams or a larger tolerance",
        )
    return max(good, key=lambda t: t.saved)
