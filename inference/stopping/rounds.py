"""Rounds of parallel answers, each fed back into the next, until a rule stops them.

    answers = ()
    repeat at most `most` times:
        answers <- what N runs of program(..., earlier=answers) return     # one batch
        stop by the rule, which reads the signals of this round alone

The result is the posterior of the round that stopped. With `Secretary` on the semantic entropy it is
SEAT: the first round whose answers agree more than in all of the rounds that were only looked at;
`Threshold("entropy", at_most=q)` with q a quantile of entropies of earlier questions is its other rule.

Reference: SEAT, Adaptive termination for multi-round parallel reasoning, 2507.06829 (2025).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lmppl.arguments import check_functions, check_integers, check_word
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_call
from lmppl.inference.forward import Forward
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.pooling import pool
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.tally import Key, Same
from lmppl.inference.stopping.criteria import Secretary
from lmppl.inference.stopping.rules import Rule
from lmppl.inference.stopping.sequential import LIMIT, Pooled, Stopped
from lmppl.inference.stopping.signals import Readings
from lmppl.ledger import Ledger
from lmppl.random import fold
from lmppl.strands import Launch


class Rounded(Pooled):
    """The posterior of the round that stopped, and what every round answered."""

    rounds: Sequence[Posterior]
    """The posterior of each round, in order."""


@dataclass(frozen=True)
class Rounds(Engine):
    """Rounds of parallel answers.

    Args:
        engine: what draws the answers of a round.
        rule: reads the signals of a round (`lmppl.inference.stopping.signals`).
        most: rounds after which it stops anyway.
        earlier: the keyword by which the program takes the answers of the round before, a tuple;
            empty in the first round.
        key: the equivalence of answers, as in `tally`.
        same: the equivalence of answers, as in `tally`.

    >>> from lmppl import Categorical, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def agree(earlier=()):
    ...     share = (1 + sum(a == "4" for a in earlier)) / (2 + len(earlier))
    ...     return sample("answer", Categorical({"4": share, "5": 1 - share}))
    >>> posterior = infer(agree, engine=Rounds(Forward(8), Secretary(6), most=6), seed=1)
    >>> posterior.stopped.batches == len(posterior.rounds) <= 6
    True
    """

    needs = ()
    engine: Engine = field(default_factory=lambda: Forward(4))
    rule: Rule = field(default_factory=lambda: Secretary(8))
    most: int = 8
    earlier: str = "earlier"
    key: Key | None = None
    same: Same | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.engine, Engine) or not isinstance(self.rule, Rule):
            raise BadArgument(
                "Rounds needs an engine and a rule", fix="write Rounds(Forward(4), Secretary(8))"
            )
        check_integers("Rounds", most=self.most)
        check_word("Rounds", earlier=self.earlier)
        check_functions("Rounds", key=self.key, same=self.same)

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        return (
            f"rounds until {self.rule}, at most {self.most}; each round sees the answers of the one "
            f"before as {self.earlier}: {self.engine.target(program)}\n"
            "given those answers this is the law of the last round; the rule's choice biases it"
        )

    def run(self, machine: Machine) -> Jobs:
        """Draw, ask, feed back."""
        state = self.rule.start()
        rounds: list[Posterior] = []
        answers: tuple[Any, ...] = ()
        why: tuple[str, ...] = (LIMIT,)
        while len(rounds) < self.most:
            part: Posterior = yield from self.engine.run(self._round(machine, len(rounds), answers))
            machine.ledger.add(part.ledger)
            machine.ledger.seconds = time.perf_counter() - machine.began
            machine.deaths.update(part.deaths)
            rounds.append(part)
            answers = tuple(t.result for t in part.traces)
            if state.update(self.readings(rounds, machine.ledger)):
                why = state.why
                break
        last = pool(rounds[-1:])
        last.ledger = machine.ledger
        last.engine, last.target = repr(self), self.target(machine.program)
        found = Rounded(last, Stopped(len(rounds), sum(map(len, rounds)), why))
        found.rounds = tuple(rounds)
        return found

    def readings(self, rounds: Sequence[Posterior], ledger: Ledger) -> Readings:
        """The signals of the newest round."""
        return Readings(
            partial(pool, list(rounds[-1:])),
            ledger=ledger,
            draws=sum(map(len, rounds)),
            batches=len(rounds),
            last=rounds[-1],
            key=self.key,
            same=self.same,
        )

    def _round(self, machine: Machine, number: int, answers: tuple[Any, ...]) -> Machine:
        """The run of one round, with keys, ledger and deaths of its own."""
        other = copy(machine)
        other.key = fold(machine.key, "round", number)
        other.ledger, other.deaths = Ledger(), Counter()
        other.memo_waiting = {}
        other.draws = other.draw_site
        other.began = time.perf_counter()
        base = machine.launch
        kwargs = {**base.kwargs, self.earlier: answers}
        check_call(machine.program, base.args, kwargs)
        launch = Launch(
            base.fn, base.args, kwargs, base.driver, base.handlers, base.scope, base.strict
        )
        launch.models, launch.chance, launch.met = base.models, base.chance, base.met
        other.launch = launch
        return other
