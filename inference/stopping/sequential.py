"""`Sequential`: batches of an engine until a rule stops, and adaptive self-consistency.

    b = 0, 1, 2, …:   run the engine with fresh keys, pool, read the signals, ask the rule

With a fixed number of batches the pooled posterior is properly weighted, E[Ẑ W(x)] = γ(x). A rule
that looks at answers or weights stops where they please it, so Ẑ itself is then biased. What holds
for every rule is Wald's identity for the sum over the n particles drawn,

    E[ n Ẑ W(x) ] = E[n] γ(x),

so averages over many runs are right when runs count by n, and the posterior of one run is
consistent as the rule becomes stricter. References: Wald, Sequential analysis (1947); Aggarwal et
al., Adaptive consistency (2023); Li et al., Escape sky-high cost: early-stopping self-consistency
(2024).
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from lmppl.arguments import check_functions, check_integers, check_known, check_numbers
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.forward import Forward
from lmppl.inference.importance import Importance
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.pooling import pool
from lmppl.inference.results.posterior import Posterior, diagnose
from lmppl.inference.results.tally import Key, Same
from lmppl.inference.stopping.criteria import BetaMajority
from lmppl.inference.stopping.rules import Rule, Threshold
from lmppl.inference.stopping.signals import Prices, Readings
from lmppl.ledger import Ledger
from lmppl.random import fold

MOST_BATCHES = 100
LIMIT = "most batches"
SPENT = "budget spent"
"""Why a run ended where no rule has stopped it."""


class Stopped(NamedTuple):
    """How a sequential run ended."""

    batches: int
    draws: int
    why: tuple[str, ...]
    """The parts of the rule that fired; `most batches` or `budget spent` where none did."""

    @property
    def settled(self) -> bool:
        """Whether the rule stopped it, and not the limit."""
        return self.why not in ((LIMIT,), (SPENT,))


class Pooled(Posterior):
    """The posterior of a sequential run, and how it ended."""

    def __init__(self, base: Posterior, stopped: Stopped) -> None:
        """Take the parts of `base` over."""
        vars(self).update(vars(base))
        self.stopped = stopped


@dataclass(frozen=True)
class Sequential(Engine):
    """Batches of an engine until a rule stops.

    Args:
        engine: what draws a batch; each has keys of its own, the first those of the engine alone.
        rule: reads the signals of the pooled posterior (`lmppl.inference.stopping.signals`).
        batch: particles of a batch, in place of the engine's own.
        most: batches after which it stops anyway.
        growth: the rule is asked after 1 batch, and then when their number has grown by this
            factor; 1 asks after every one, 2 after 1, 2, 4, 8. Counting answers costs as much as
            there are, so that many batches of few particles want a factor such as 1.25.
        of: which site or function of the trace is the answer; the result when left out.
        key: the equivalence of answers, as in `tally`.
        same: the equivalence of answers, as in `tally`.
        keep: which answers count.
        prices: of tokens by model, for the signal `money`.

    >>> from lmppl import Categorical, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def clear():
    ...     return sample("answer", Categorical({"4": 0.95, "5": 0.05}))
    >>> posterior = infer(clear, engine=Sequential(Forward(2), BetaMajority(0.95)))
    >>> posterior.stopped.draws, posterior.stopped.why
    (4, ('leader ahead with probability >= 0.95',))
    """

    engine: Engine = field(default_factory=lambda: Importance(8))
    rule: Rule = field(default_factory=BetaMajority)
    batch: int | None = None
    most: int = MOST_BATCHES
    growth: float = 1.0
    of: Any = None
    key: Key | None = None
    same: Same | None = None
    keep: Any = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.engine, Engine) or not isinstance(self.rule, Rule):
            raise BadArgument(
                "Sequential needs an engine and a rule",
                fix='write Sequential(Forward(4), BetaMajority() | Threshold("draws", at_least=64))',
            )
        check_integers("Sequential", most=self.most)
        check_numbers("Sequential", 1.0, growth=self.growth)
        check_functions("Sequential", key=self.key, same=self.same, keep=self.keep)
        if not isinstance(self.of, str):
            check_functions("Sequential", of=self.of)
        if self.batch is not None:
            check_particles("Sequential", batch=self.batch)
            if not (is_dataclass(self.engine) and hasattr(self.engine, "particles")):
                raise BadArgument(
                    f"batch sets particles, which {type(self.engine).__name__} does not have",
                    fix="leave batch out and give the engine its own size",
                )

    @property
    def inner(self) -> Engine:
        """The engine of one batch."""
        if self.batch is None:
            return self.engine
        sized: Engine = replace(self.engine, particles=self.batch)  # type: ignore[type-var]
        return sized

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the inner engine needs of a model."""
        return self.engine.needs

    def chance(self, chance: Any) -> Any:
        """The inner engine's."""
        return self.engine.chance(chance)

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        return (
            f"batches until {self.rule}, at most {self.most}; each batch: {self.inner.target(program)}\n"
            "the rule's choice of n biases Ẑ; E[n Ẑ W(x)] = E[n] γ(x) holds for every rule"
        )

    def run(self, machine: Machine) -> Jobs:
        """Draw, pool, ask."""
        state, inner = self.rule.start(), self.inner
        parts: list[Posterior] = []
        ask_at = 1
        why: tuple[str, ...] = (LIMIT,)
        while len(parts) < self.most:
            part: Posterior = yield from inner.run(_again(machine, len(parts)))
            machine.ledger.add(part.ledger)
            machine.ledger.seconds = time.perf_counter() - machine.began
            machine.deaths.update(part.deaths)
            parts.append(part)
            if len(parts) < ask_at and len(parts) < self.most:
                continue
            ask_at = max(len(parts) + 1, math.ceil(len(parts) * self.growth))
            if state.update(self.readings(parts, machine.ledger)):
                why = state.why
                break
        pooled = pool(parts)
        pooled.ledger = machine.ledger
        pooled.engine, pooled.target = repr(self), self.target(machine.program)
        pooled.warnings += diagnose(pooled, set())
        return Pooled(pooled, Stopped(len(parts), len(pooled), why))

    def readings(self, parts: Sequence[Posterior], ledger: Ledger) -> Readings:
        """The signals of batches; they are pooled when one is read that needs it."""
        return Readings(
            partial(pool, list(parts)),
            ledger=ledger,
            draws=sum(map(len, parts)),
            batches=len(parts),
            last=parts[-1],
            of=self.of,
            key=self.key,
            same=self.same,
            keep=self.keep,
            prices=self.prices,
        )


@dataclass(frozen=True)
class Adaptive(Engine):
    """Adaptive self-consistency: plain draws until the leading answer is clear.

    Args:
        particles: the most that are drawn, in whole batches.
        rule: "beta" (adaptive consistency: the leader is ahead with probability `level`), "certainty"
            (Certaindex: (log n - H) / log n ≥ level) or "window" (early-stopping self-consistency: all
            answers of a batch are equal).
        level: of the rule.
        batch: draws between two questions to the rule.
        growth: 2 with batch=2 and level=0.75 asks after 2, 4, 8, … draws.
        key: the equivalence of answers.

    Observations and factors count nothing, as in `Forward`.
    """

    needs = ()
    particles: int = 40
    rule: str = "beta"
    level: float = 0.95
    batch: int = 2
    growth: float = 1.0
    key: Key | None = None

    def __post_init__(self) -> None:
        """Check the arguments, those of the engine it stands for too."""
        check_particles("Adaptive", particles=self.particles, batch=self.batch)
        check_known("Adaptive", ("beta", "certainty", "window"), rule=self.rule)
        check_numbers("Adaptive", 0.0, 1.0, level=self.level)
        _ = self.sequential

    @property
    def sequential(self) -> Sequential:
        """What it stands for."""
        rule: Rule = BetaMajority(self.level)
        if self.rule == "certainty":
            rule = Threshold("certainty", at_least=self.level)
        elif self.rule == "window":
            rule = Threshold("last_entropy", at_most=0.0)
        return Sequential(
            Forward(min(self.batch, self.particles)),
            rule,
            most=max(1, self.particles // self.batch),
            growth=self.growth,
            key=self.key,
        )

    def target(self, program: Any = None) -> str:
        """The law of the traces."""
        return self.sequential.target(program)

    def run(self, machine: Machine) -> Jobs:
        """That of `Sequential`."""
        posterior = yield from self.sequential.run(machine)
        posterior.engine = repr(self)
        return posterior


def _again(machine: Machine, batch: int) -> Machine:
    """The same run with keys, ledger and deaths of its own; what it met is shared."""
    other = copy.copy(machine)
    other.key = fold(machine.key, "batch", batch) if batch else machine.key
    other.ledger, other.deaths = Ledger(), Counter()
    other.memo_waiting = {}
    other.draws = other.draw_site
    other.began = time.perf_counter()
    return other
