"""minilmppl: a probabilistic programming language over strings, whole, in one file.

Read it from top to bottom; each part needs only what stands above it. lmppl is these six parts, and
log-weights, batches, caches, tools, async programs, and errors that help.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from greenlet import greenlet

Program = Callable[[], Any]
Law = dict[Any, float]  # value -> probability
Key = tuple[object, ...]  # what is drawn: (seed, particle, step, …)
Tape = tuple[tuple["Site", Any], ...]  # answered sites; immutable (in lmppl a linked list)

# -- 1. Sites: every random choice, observation and factor asks whoever runs the program ---------

RUNNER: ContextVar[Callable[[Site], Any]] = ContextVar("RUNNER")


class Site(NamedTuple):
    name: str
    law: Law
    given: Any = None  # the observed value; nothing where one is drawn

    def outcomes(self) -> Law:
        """What may be answered, and the probability that it multiplies a run by."""
        return self.law if self.given is None else {self.given: self.law.get(self.given, 0.0)}


def sample(name: str, law: Law | LM, obs: Any = None) -> Any:
    return law.walk(name, obs) if isinstance(law, LM) else RUNNER.get()(Site(name, law, obs))


observe = sample  # observe(name, law, value)


def factor(name: str, log_weight: float) -> None:
    """An observation whose probability may be any positive number."""
    observe(name, {True: math.exp(log_weight)}, True)


# -- 2. Strings: p(text) = Π p(token | prompt, tokens before it) · p(end | all of them) ----------


class LM(NamedTuple):
    """What a model writes after a prompt: up to `stop`, the end of text, or `max_tokens`."""

    prompt: str
    lm: dict[str, Law]  # token -> the law of the one that follows; "" begins and ends every text
    stop: str = ""
    max_tokens: int = 8

    def next(self, text: str) -> Law:
        """Of the next token. This model reads no more than the last one; both ends count as ""."""
        row = self.lm[max((t for t in self.lm if (self.prompt + text).endswith(t)), key=len)].copy()
        row[""] = row.pop(self.stop, 0.0) + row.get("", 0.0)
        return row

    def walk(self, name: str, given: str | None = None) -> str:
        """One site per token (in lmppl, per string). A given text is cut into its longest tokens."""
        text, known = "", None
        for t in range(self.max_tokens):
            law = self.next(text)
            if given is not None:
                known = max((k for k in law if given.startswith(text + k)), key=len)
            token = RUNNER.get()(Site(f"{name}[{t}]", law, known))
            text += token
            if not token:
                break
        if given not in (None, text):
            factor(name, -math.inf)  # no tokens spell it
        return text


# -- 3. Chance: a function of what is drawn, so that order, batches and replay change nothing ----


def uniform(key: Key) -> float:
    """A number in the open interval (0, 1) that looks random, the same on every machine."""
    bits = blake2b(repr(key).encode(), digest_size=8).digest()
    return ((int.from_bytes(bits, "big") >> 12) + 0.5) / 2**52


def pick(key: Key, law: Law) -> Any:
    """Gumbel-max: the argmax of log p - log(-log u) is v with probability p(v)."""
    noise = {v: -math.log(-math.log(uniform((*key, v)))) for v in law}
    return max((v for v in law if law[v]), key=lambda v: math.log(law[v]) + noise[v])


# -- 4. Frames: Python cannot copy a function that runs; a tape of its answers makes it again ----


def play(program: Program, tape: Tape, suspend: Callable[[Site], Tape]) -> Any:
    """Run a program, answered by its tape; at the end of that, `suspend` gives a longer one."""
    at = 0

    def answer(site: Site) -> Any:
        nonlocal tape, at
        if at == len(tape):
            tape = suspend(site)
        (known, value), at = tape[at], at + 1
        if known != site:  # a clock, `random`, a global: not a function of the recorded values
            raise RuntimeError(f"the program took another path on replay: {known}, then {site}")
        return value

    RUNNER.set(answer)
    return program()


class Rerun:
    """A frame that suspends by leaving the program, and resumes by running all of it again."""

    def __init__(self, program: Program) -> None:
        self.program, self.result = program, None
        self.stack: Any = None  # a greenlet, in a Switch

    def start(self, tape: Tape) -> None:
        self.result = copy_context().run(play, self.program, tape, self.suspend)

    def suspend(self, site: Site) -> Any:
        raise GeneratorExit(site)  # no Exception: no `except Exception` of the program holds it

    def resume(self, tape: Tape) -> Any:
        """Run to the first site that is not on the tape, or to the end (None)."""
        try:
            self.start(tape)
        except GeneratorExit as left:
            return left.args[0]


class Switch(Rerun):
    """A frame that suspends by switching stacks: the function stays in the middle of its work."""

    def suspend(self, site: Site) -> Any:
        return self.stack.parent.switch(site)

    def resume(self, tape: Tape) -> Any:
        self.stack = self.stack or greenlet(self.start)
        return self.stack.switch(tape)


# -- 5. Particles: a run on its way, with a weight -----------------------------------------------


@dataclass
class Particle:
    make: Callable[[], Rerun]
    key: Key = ()
    weight: float = 1.0
    tape: Tape = ()
    frame: Rerun | None = None
    done: bool = False
    result: Any = None

    def advance(self) -> Site | None:
        """Run user code to its next site, by replay where the live frame has gone elsewhere."""
        self.frame = self.frame or self.make()
        site: Site | None = self.frame.resume(self.tape)
        self.done, self.result = site is None, self.frame.result
        return site

    def record(self, site: Site, value: Any, weight: float) -> Particle:
        self.tape, self.weight = (*self.tape, (site, value)), self.weight * weight
        return self

    def fork(self, key: Key, weight: float) -> Particle:
        """The first fork takes the live frame; the others replay when they are next needed."""
        child, self.frame = replace(self, key=key, weight=weight), None
        return child


# -- 6. Engines: weighted runs whose mean weight is Z, on average --------------------------------


def posterior(runs: list[Particle], n: int) -> tuple[Law, float]:
    """P(returned value), and Z."""
    z = sum(p.weight for p in runs) / n
    found = {p.result for p in runs if p.weight}
    return {v: sum(p.weight for p in runs if p.result == v) / (n * z) for v in found}, z


def enumeration(program: Program, frames: type[Rerun] = Switch) -> tuple[Law, float]:
    """Exact: at every site a run forks into all outcomes, its weight times their probability."""
    live, finished = [Particle(partial(frames, program))], list[Particle]()
    while live:
        p = live.pop()
        if site := p.advance():
            outcomes = site.outcomes().items()
            live += [p.fork((), p.weight).record(site, v, w) for v, w in outcomes if w]
        else:
            finished.append(p)
    return posterior(finished, 1)


def smc(program: Program, n: int, seed: int, less: float = 0.5, frames: Any = Switch) -> Any:
    """N runs, site by site; when few carry the weight, they fork and the others end."""
    runs = [Particle(partial(frames, program), (seed, i)) for i in range(n)]
    while live := [p for p in runs if p.weight and not p.done]:
        for p in live:
            if site := p.advance():
                drawn, law = site.given is None, site.outcomes()
                value = pick((*p.key, len(p.tape)), law) if drawn else site.given
                p.record(site, value, 1.0 if drawn else law[value])  # p / q = 1: drawn from p
        mean, square = (sum(p.weight**k for p in runs) / n for k in (1, 2))
        if mean**2 < less * square and any(p.weight and not p.done for p in runs):  # ESS < less N
            u, total, children = uniform(("resample", *runs[0].key)), 0.0, list[Particle]()
            for p in runs:
                total += p.weight / mean
                while len(children) + u < total:  # systematic: N W children, rounded up or down
                    children.append(p.fork((*p.key, len(children)), mean))
            runs = children
    return posterior(runs, n)


SKY = {
    "": {" sun": 0.7, " rain": 0.3},
    " sun": {" sun": 0.6, " rain": 0.2, ".": 0.2},
    " rain": {" sun": 0.3, " rain": 0.5, ".": 0.2},
}


def week() -> Any:
    """What was the sky like, if the lawn was wet every day?"""
    sky = sample("sky", LM("The sky, day by day:", SKY, stop=".", max_tokens=3))
    for day in sky.split():
        observe("lawn", {"wet": 0.9 if day == "rain" else 0.2}, "wet")
    return sky


def main() -> None:
    runs = {"exact": enumeration(week), "importance": smc(week, 2000, 0, less=0)}
    runs |= {"SMC": smc(week, 2000, 0), "SMC, Rerun": smc(week, 2000, 0, frames=Rerun)}
    for name, (found, z) in runs.items():
        rain = sum(p for sky, p in found.items() if sky.startswith(" rain"))
        print(f"{name:12} Z = {z:.4f}   P(rain on the first day) = {rain:.4f}")
    assert runs["SMC"] == runs["SMC, Rerun"]
    assert abs(runs["SMC"][1] - runs["exact"][1]) < 0.02  # 3 standard errors; the seed is fixed


if __name__ == "__main__":
    main()
