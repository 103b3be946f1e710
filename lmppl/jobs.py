"""What a site asks of a language model, as data.

A distribution never calls a model. It returns a **step**: either its result, or a `Job` that says
what it needs and how to go on (`then`). So whoever runs the steps can put the jobs of all
particles, questions and nested inferences into one batch, pause a string in its middle, copy it,
or replace chance by enumeration.

    Step[T] = T | Job           job.then(outcome) -> Step[T]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from lmppl.errors import CapabilityError, ModelNotFound, NoLanguageModel, excerpt
from lmppl.ledger import Ledger
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringLaw, StringState
from lmppl.random import Chance, GumbelMax, fold, fold_array, hash_text
from lmppl.types import Floats, Ids, Key, Keys

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

    # Defaults stand on the class: a job sets few of these, and one is made at each site.
    limit: int | None = None
    """The most tokens of one run of the job (None: to the end of the string)."""
    then: Callable[[Draw], Any] | None = None
    """How to go on with the draw; None: it is the result."""
    drawn: Draw | None = None
    given: Ids | None = None
    """The tokens of the whole string, where a run in pieces is to take them: `lmppl.given`."""
    ledger: Ledger | None = None
    site: str | None = None
    """The address that its costs are charged to; None: to no site."""
    owner: Any = None
    root: Key = 0
    """The key of the particle: with the site it makes that of the string, for a whole batch at once."""
    _key: Key | None = None
    _state: StringState | None = None

    def __init__(self, maker: Maker, context: Ids, key: Key | None = None) -> None:
        """Keep the parts; `owner`, `ledger`, `site` and `limit` are for whoever runs the job.

        Without a key, the `root` and the `site` that it is given make one.
        """
        self.maker = maker
        self.context = context
        self._key = key

    @property
    def key(self) -> Key:
        """All randomness of the string comes from it."""
        key = self._key
        if key is None:
            key = self._key = fold(self.root, self.site or "")
        return key

    @key.setter
    def key(self, key: Key) -> None:
        self._key = key

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


def keys_of(jobs: Sequence[Generate]) -> Keys:
    """The key of each job [N]: those of one site in one pass."""
    site = jobs[0].site
    if all([j._key is None and j.site == site for j in jobs]):
        return fold_array(np.array([j.root for j in jobs], dtype=np.uint64), hash_text(site or ""))
    return np.array([j.key for j in jobs], dtype=np.uint64)


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
        "site",
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
        self.site: str | None = None
        self.outcome: Any = None

    def step(self) -> Any:
        """What follows, once the rows are there."""
        return self.then(self.outcome)

    def restore(self, outcome: Any) -> None:
        """Be as after the run, from a tape."""
        self.outcome = outcome


class Batch:
    """Ask a plain function of many inputs for one of them: it is called once for all who wait.

    One that waits for the outside world is `beside`: it is called on threads, `size` inputs a call,
    while model batches go on.
    """

    __slots__ = ("beside", "fn", "input", "ledger", "outcome", "owner", "site", "size", "then")

    def __init__(
        self,
        fn: Callable[[list[Any]], Sequence[Any]],
        given: Any,
        then: Callable[[Any], Any],
        *,
        beside: bool = False,
        size: int | None = None,
    ) -> None:
        """Keep the parts; jobs of an equal `fn` share its calls."""
        self.beside = beside
        self.size = size
        self.fn = fn
        self.input = given
        self.then = then
        self.owner: Any = None
        self.ledger: Ledger | None = None
        self.site: str | None = None
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
                    given = f'pass lm={{"default": ..., {lm!r}: ...}}'
                    error.fields["fix"] = (
                        f"{given}, or {error.fields.get('fix', 'load it by name')}"
                    )
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
