"""Jobs run as batches: one pass for all who wait, and each job charged to its ledger.

`run_lm_jobs` is where the engines meet the language models: the scheduler collects the jobs of all
particles, questions and nested inferences and hands them over here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from lmppl.errors import BadArgument
from lmppl.jobs import Batch, Env, Generate, Score, Shared
from lmppl.ledger import Ledger, ModelCost
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import advance
from lmppl.lm.wave import draw_whole
from lmppl.random import Chance


def run_lm_jobs(jobs: Sequence[Shared], chance: Chance) -> None:
    """Run jobs, one batch per model or function, kind and limit, and charge their ledgers."""
    first = jobs[0] if jobs else None
    if type(first) is Generate:
        maker, limit = first.maker, first.limit
        if all([type(j) is Generate and j.maker is maker and j.limit == limit for j in jobs]):
            _generate(jobs, chance, limit, alike=True)  # type: ignore[arg-type]
            return
    strings: dict[tuple[LanguageModel, int | None], list[Generate]] = {}
    texts: dict[LanguageModel, list[Score]] = {}
    inputs: dict[Any, list[Batch]] = {}
    for job in jobs:
        if type(job) is Generate:
            strings.setdefault((job.lm, job.limit), []).append(job)
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


def _generate(
    jobs: Sequence[Generate], chance: Chance, limit: int | None, *, alike: bool = False
) -> None:
    maker = jobs[0].maker
    lm = maker.lm
    alike = alike or all([j.maker is maker for j in jobs])
    if alike and limit is None and maker.whole and all([j._state is None for j in jobs]):
        _draw_whole(jobs, chance)
        return
    states = [j.state for j in jobs]
    before = [len(s.ids) for s in states]
    passes = advance(lm, states, chance, limit)
    seen: set[int] = set()
    for j, s, old in zip(jobs, states, before, strict=True):
        if (book := j.ledger) is None:
            continue
        cost = book.model(lm.name)
        if id(book) not in seen:
            seen.add(id(book))
            cost.passes += passes
        cost.tokens_out += len(s.ids) - old
        if old == 0:
            cost.calls += 1
            cost.tokens_in += len(s.context)


def _draw_whole(jobs: Sequence[Generate], chance: Chance) -> None:
    maker = jobs[0].maker
    lm = maker.lm
    contexts = [j.context for j in jobs]
    found = draw_whole(lm, maker.law, contexts, [j.key for j in jobs], chance, maker.made)
    for j, draw in zip(jobs, found.results, strict=True):
        j.drawn = draw
    book = jobs[0].ledger
    if all([j.ledger is book for j in jobs]):
        if book is not None:
            cost = book.model(lm.name)
            cost.passes += found.passes
            cost.calls += len(jobs)
            cost.tokens_out += sum(found.lengths)
            cost.tokens_in += sum(map(len, contexts))
        return
    costs: dict[int, ModelCost] = {}
    for j, length in zip(jobs, found.lengths, strict=True):
        if j.ledger is None:
            continue
        own = costs.get(id(j.ledger))
        if own is None:
            own = costs[id(j.ledger)] = j.ledger.model(lm.name)
            own.passes += found.passes
        own.calls += 1
        own.tokens_out += length
        own.tokens_in += len(j.context)


def _score(jobs: Sequence[Score]) -> None:
    lm = jobs[0].lm
    before = lm.usage.passes
    rows = lm.score(
        [c for j in jobs for c in j.contexts],
        [c for j in jobs for c in j.continuations],
        [e for j in jobs for e in j.ends],
        [t for j in jobs for t in j.temperatures],
    )
    at = 0
    books: dict[int, ModelCost] = {}
    for j in jobs:
        n = len(j.contexts)
        j.outcome = rows[at : at + n]
        at += n
        if j.ledger is None:
            continue
        cost = books.get(id(j.ledger))
        if cost is None:
            cost = books[id(j.ledger)] = j.ledger.model(lm.name)
            cost.passes += lm.usage.passes - before
        cost.calls += n
        # a context that several continuations share is read once
        cost.tokens_in += sum(map(len, set(j.contexts))) + sum(map(len, j.continuations))
        j.ledger.reward_calls += j.reward


def _ask(function: Callable[[list[Any]], Sequence[Any]], jobs: Sequence[Batch]) -> None:
    """Call a function once, with what differs among the inputs."""
    inputs, rows = distinct_inputs(jobs)
    settle(jobs, rows, call(function, inputs))


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
