"""Jobs run as batches: one pass for all who wait, and each job charged to its ledger.

`run_lm_jobs` is where the engines meet the language models: the scheduler collects the jobs of all
particles, questions and nested inferences and hands them over here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from itertools import compress
from typing import Any

from lmppl.errors import BadArgument
from lmppl.given import giving
from lmppl.jobs import Batch, Env, Generate, Score, Shared, keys_of
from lmppl.ledger import Ledger, ModelCost, SiteCost
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import advance
from lmppl.lm.wave import draw_whole
from lmppl.random import Chance


def run_lm_jobs(jobs: Sequence[Shared], chance: Chance) -> None:
    """Run jobs, one batch per model or function, kind and limit, and charge their ledgers."""
    strings: dict[tuple[LanguageModel, int | None], list[Generate]] = {}
    texts: dict[LanguageModel, list[Score]] = {}
    inputs: dict[Any, list[Batch]] = {}
    group: list[Generate] = []
    lm: LanguageModel | None = None
    limit: int | None = None
    for job in jobs:
        if type(job) is Generate:
            if job.maker.lm is not lm or job.limit != limit:  # neighbours are mostly of one kind
                lm, limit = job.maker.lm, job.limit
                group = strings.setdefault((lm, limit), [])
            group.append(job)
        elif type(job) is Score:
            texts.setdefault(job.lm, []).append(job)
        elif isinstance(job, Batch):
            inputs.setdefault(job.fn, []).append(job)
    for (_, limit), group in strings.items():
        _generate(group, chance, limit)
    for batch in texts.values():
        _score(batch)
    for function, asked in inputs.items():
        _ask(function, asked)


def _generate(jobs: Sequence[Generate], chance: Chance, limit: int | None) -> None:
    maker, began = jobs[0].maker, time.perf_counter()
    lm = maker.lm
    if limit is None and maker.whole and all([j.maker is maker and j._state is None for j in jobs]):
        contexts = [j.context for j in jobs]
        found = draw_whole(lm, maker.law, contexts, keys_of(jobs), chance, maker.made)
        for j, draw in zip(jobs, found.results, strict=True):
            j.drawn = draw
        _charge(jobs, lm.name, found.passes, found.lengths, [True] * len(jobs), began)
        return
    states = [j.state for j in jobs]
    before = [len(s.ids) for s in states]
    if limit is not None:
        chance = giving(jobs, chance, limit)
    passes = advance(lm, states, chance, limit)
    lengths = [len(s.ids) - old for s, old in zip(states, before, strict=True)]
    _charge(jobs, lm.name, passes, lengths, [old == 0 for old in before], began)


def _charge(
    jobs: Sequence[Generate], name: str, passes: int, drawn: Sequence[int], begun: Sequence[bool],
    began: float,
) -> None:  # fmt: skip
    """Charge the ledgers: `passes` once each, the tokens of each string, its context when it began.

    Neighbours mostly are of one run, and stand at one site: they are charged together.
    """
    seen: set[int] = set()
    start, n = 0, len(jobs)
    share = (time.perf_counter() - began) / n
    while start < n:
        book, site, stop = jobs[start].ledger, jobs[start].site, start + 1
        while stop < n and jobs[stop].ledger is book and jobs[stop].site == site:
            stop += 1
        if book is not None:
            new = begun[start:stop]
            read = sum([len(j.context) for j in compress(jobs[start:stop], new)])
            once = 0 if id(book) in seen else passes
            seen.add(id(book))
            spent = ModelCost(sum(new), once, read, sum(drawn[start:stop]))
            book.charge(name, spent, site, share * (stop - start))
        start = stop


def _score(jobs: Sequence[Score]) -> None:
    lm, began = jobs[0].lm, time.perf_counter()
    before = lm.usage.passes
    rows = lm.score(
        [c for j in jobs for c in j.contexts],
        [c for j in jobs for c in j.continuations],
        [e for j in jobs for e in j.ends],
        [t for j in jobs for t in j.temperatures],
    )
    at = 0
    share = (time.perf_counter() - began) / len(jobs)
    seen: set[int] = set()
    for j in jobs:
        n = len(j.contexts)
        j.outcome = rows[at : at + n]
        at += n
        if j.ledger is None:
            continue
        # a context that several continuations share is read once
        read = sum(map(len, set(j.contexts))) + sum(map(len, j.continuations))
        once = 0 if id(j.ledger) in seen else lm.usage.passes - before
        seen.add(id(j.ledger))
        j.ledger.charge(lm.name, ModelCost(n, once, read, 0), j.site, share)
        j.ledger.reward_calls += j.reward


def _ask(function: Callable[[list[Any]], Sequence[Any]], jobs: Sequence[Batch]) -> None:
    """Call a function once, with what differs among the inputs."""
    began = time.perf_counter()
    inputs, rows = distinct_inputs(jobs)
    settle(jobs, rows, call(function, inputs))
    share = (time.perf_counter() - began) / len(jobs)
    for j in jobs:
        if j.ledger is not None and j.site is not None:
            j.ledger.sites.setdefault(j.site, SiteCost()).seconds += share


def distinct_inputs(jobs: Sequence[Batch]) -> tuple[list[Any], list[int]]:
    """The inputs of jobs, each once, and which of them each job has."""
    place: dict[Any, int] = {}
    inputs: list[Any] = []
    rows: list[int] = []
    for j in jobs:
        key = j.input if isinstance(j.input, Hashable) else id(j)
        if key not in place:
            place[key] = len(inputs)
            inputs.append(j.input)
        rows.append(place[key])
    return inputs, rows


def call(function: Callable[[list[Any]], Sequence[Any]], inputs: list[Any]) -> list[Any]:
    """The outputs of a function, one for each input."""
    outputs = list(function(inputs))
    if len(outputs) != len(inputs):
        raise BadArgument(
            f"{getattr(function, '__qualname__', function)} gave {len(outputs)} outputs for {len(inputs)} inputs",
            fix="return one output per input, in order",
        )
    return outputs


def settle(jobs: Sequence[Batch], rows: Sequence[int], outputs: Sequence[Any]) -> None:
    """Hand the outputs of one call to its jobs, and charge it."""
    books: set[int] = set()
    for j, row in zip(jobs, rows, strict=True):
        j.outcome = outputs[row]
        if j.ledger is None:
            continue
        j.ledger.reward_calls += 1
        if id(j.ledger) not in books:
            books.add(id(j.ledger))
            j.ledger.reward_passes += 1


def run_now(step: Any, env: Env, ledger: Ledger) -> Any:
    """Run a step to its result, alone: eager sampling, and tests."""
    while isinstance(step, (Generate, Score, Batch)):
        step.ledger = ledger
        run_lm_jobs([step], env.chance)
        step = step.step()
    return step
