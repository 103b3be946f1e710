"""What a site asks of a language model, as data.

A distribution never calls a model. It returns a **step**: either its result, or a `Job` that says
what it needs and how to go on (`then`). So whoever runs the steps can put the jobs of all
particles, questions and nested inferences into one batch, pause a string in its middle, copy it,
or replace chance by enumeration.

    Step[T] = T | Job           job.then(outcome) -> Step[T]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from lmppl.errors import BadArgument, CapabilityError, ModelNotFound, NoLanguageModel, excerpt
from lmppl.ledger import Ledger, ModelCost
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringLaw, StringState, advance
from lmppl.lm.wave import draw_whole
from lmppl.random import Chance, GumbelMax
from lmppl.types import Floats, Ids

T = TypeVar("T")


class Draw(NamedTuple):
    """A value with its two numbers."""

    value: Any
    logp: float
    """log-probability under the target law."""
    logq: float
    """log-probability under the law it was drawn from."""
    restricted: bool = False
    """Whether the proposal cannot reach the whole support of the target."""


class Maker(Protocol):
    """How strings are drawn from one model under one law, and made draws of."""

    lm: LanguageModel
    law: StringLaw
    whole: bool
    """Whether strings of its law need no state: see `lm/wave.py`."""

    def finish(self, state: StringState) -> Draw:
        """The draw of a finished state."""

    def made(
        self, ids: list[int], logps: list[float], logw: float, logq: float, why: str | None
    ) -> Draw:
        """The draw of a string without a state."""


class Generate:
    """Draw one string, in one run or in several of at most `limit` tokens.

    A string that is drawn in one run has no state: `drawn` is its result. One that may stop in its
    middle has a `state`, advanced in place until it has a `finish`.
    """

    limit: int | None = None
    """The most tokens of one run of the job (None: to the end of the string)."""
    then: Callable[[Draw], Any] | None = None
    """How to go on with the draw; None: it is the result."""
    drawn: Draw | None = None
    ledger: Ledger | None = None
    owner: Any = None
    _state: StringState | None = None

    def __init__(self, maker: Maker, context: Ids, key: int) -> None:
        """Keep the parts; `owner`, `ledger` and `limit` are for whoever runs the job."""
        self.maker = maker
        self.context = context
        self.key = key

    @property
    def lm(self) -> LanguageModel:
        """The model that draws it."""
        return self.maker.lm

    @property
    def state(self) -> StringState:
        """The string so far."""
        state = self._state
        if state is None:
            state = self._state = StringState(self.maker.law, self.context, self.key)
        return state

    @property
    def finished(self) -> bool:
        """Whether its string has come to its end."""
        return self.drawn is not None or (
            self._state is not None and self._state.finish is not None
        )

    def fork(self, key: int) -> Generate:
        """The same job for a fork of its particle."""
        new = Generate(self.maker, self.context, key)
        if self._state is not None:
            new._state = self._state.fork(key)
        if self.then is not None:
            new.then = self.then
        return new

    def step(self) -> Any:
        """What follows, once the string is finished."""
        drawn = self.maker.finish(self.state) if self.drawn is None else self.drawn
        return drawn if self.then is None else self.then(drawn)

    @property
    def outcome(self) -> Any:
        """What a tape keeps of the run job."""
        return self.state.fork(self.key) if self.drawn is None else self.drawn

    def restore(self, outcome: Any) -> None:
        """Be as after the run, from a tape."""
        if isinstance(outcome, Draw):
            self.drawn = outcome
        else:
            self._state = outcome.fork(outcome.key)


class Score:
    """Score given continuations: log p of each token, and of the end event where asked."""

    __slots__ = (
        "contexts",
        "continuations",
        "ends",
        "ledger",
        "lm",
        "outcome",
        "owner",
        "reward",
        "temperatures",
        "then",
    )

    def __init__(
        self,
        lm: LanguageModel,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
        then: Callable[[list[Floats]], Any],
    ) -> None:
        """Keep the parts; all sequences have one entry per text."""
        self.lm = lm
        self.contexts = contexts
        self.continuations = continuations
        self.ends = ends
        self.temperatures = temperatures
        self.then = then
        self.reward = False
        """Whether it is asked as a reward model: the ledger counts it as one too."""
        self.owner: Any = None
        self.ledger: Ledger | None = None
        self.outcome: Any = None

    def step(self) -> Any:
        """What follows, once the rows are there."""
        return self.then(self.outcome)

    def restore(self, outcome: Any) -> None:
        """Be as after the run, from a tape."""
        self.outcome = outcome


class Batch:
    """Ask a plain function of many inputs for one of them: it is called once for all who wait."""

    __slots__ = ("fn", "input", "ledger", "outcome", "owner", "then")

    def __init__(
        self, fn: Callable[[list[Any]], Sequence[Any]], given: Any, then: Callable[[Any], Any]
    ) -> None:
        """Keep the parts; jobs of an equal `fn` share its calls."""
        self.fn = fn
        self.input = given
        self.then = then
        self.owner: Any = None
        self.ledger: Ledger | None = None
        self.outcome: Any = None

    def step(self) -> Any:
        """What follows, once the output is there."""
        return self.then(self.outcome)

    def restore(self, outcome: Any) -> None:
        """Be as after the run, from a tape."""
        self.outcome = outcome


class Effect:
    """Run a function of the outside world, beside the scheduler.

    Its outcome is `(value, None)` or `(None, error)`.
    """

    __slots__ = (
        "args",
        "fn",
        "key",
        "kwargs",
        "ledger",
        "outcome",
        "owner",
        "site",
        "timeout",
        "tries",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        timeout: float | None,
        site: str = "",
    ) -> None:
        """Keep the parts."""
        self.site = site
        self.key: Any = None
        """Of the memory of `cached`, as it was when the call began."""
        self.tries = 0
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.timeout = timeout
        self.owner: Any = None
        self.ledger: Ledger | None = None
        self.outcome: Any = None

    def restore(self, outcome: Any) -> None:
        """Be as after the run, from a tape."""
        self.outcome = outcome


Shared: TypeAlias = Generate | Score | Batch
"""Jobs that are run in batches."""
Job: TypeAlias = Shared | Effect
Step: TypeAlias = T | Job


@dataclass
class Env:
    """What a distribution may use while it draws or scores."""

    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    """Models by the name a program uses; "default" serves `LM(prompt)`."""
    chance: Chance = field(default_factory=GumbelMax)
    resolve: Callable[[str], LanguageModel] | None = None
    """Loads a model that is named in the program but not in `models`."""
    weighted: bool = True
    """Whether the weights of draws count."""

    def model(self, lm: LanguageModel | str | None) -> LanguageModel:
        """The language model that a distribution means."""
        if lm is None or isinstance(lm, str):
            name = "default" if lm is None else lm
            found = self.models.get(name)
            if found is not None:
                return found
        else:
            return lm
        if lm is not None and self.resolve is not None:
            try:
                return self.resolve(lm)
            except ModelNotFound as error:
                if self.models:
                    error.fields["value"] = f"models given: {', '.join(sorted(self.models))}"
                    error.add_where(f"LM(..., lm={lm!r})")
                raise
        if lm is not None and self.models:
            raise CapabilityError(
                f"no language model is called {lm!r} here",
                value=excerpt(sorted(self.models)),
                fix=f'pass lm={{"default": ..., {lm!r}: ...}}',
            )
        raise NoLanguageModel(
            "this program draws from a language model, and none is given",
            fix='pass lm="smollm2" to infer, write LM(prompt, lm=...), or use handlers.using(lm) for a plain call',
        )


def run_lm_jobs(jobs: Sequence[Shared], chance: Chance) -> None:
    """Run jobs, one batch per model or function, kind and limit, and charge their ledgers."""
    strings: dict[tuple[LanguageModel, int | None], list[Generate]] = {}
    texts: dict[LanguageModel, list[Score]] = {}
    inputs: dict[Any, list[Batch]] = {}
    group: list[Generate] = []
    lm, limit = None, None
    for job in jobs:
        if type(job) is Generate:
            if job.lm is not lm or job.limit != limit:  # neighbours are mostly of one kind
                lm, limit = job.lm, job.limit
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
    lm, maker = jobs[0].lm, jobs[0].maker
    if limit is None and maker.whole and all([j.maker is maker and j._state is None for j in jobs]):
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
    place: dict[Any, int] = {}
    inputs: list[Any] = []
    rows: list[int] = []
    for j in jobs:
        key = j.input if isinstance(j.input, Hashable) else id(j)
        if key not in place:
            place[key] = len(inputs)
            inputs.append(j.input)
        rows.append(place[key])
    outputs = list(function(inputs))
    if len(outputs) != len(inputs):
        raise BadArgument(
            f"{getattr(function, '__qualname__', function)} gave {len(outputs)} outputs for {len(inputs)} inputs",
            fix="return one output per input, in order",
        )
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
