"""What a posterior teaches a language model: weighted pairs of a prompt and a completion.

A trace keeps values, not prompts. They are found again by running the program once more with every
value given by the trace: no model is asked, no effect is run again, and the prompts are those of
the **target**: what a proposal was shown (a hint, another temperature) is in none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lmppl.choice import MANY, Choice
from lmppl.context import local
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, NoLanguageModel, excerpt
from lmppl.handlers import Handler
from lmppl.inference.results.posterior import Posterior
from lmppl.lm.base import LanguageModel
from lmppl.lm.endings import Ending, canonical_endings, own_endings
from lmppl.lm.generate import StringLaw
from lmppl.messages import Message
from lmppl.messengers import placed
from lmppl.program import ProgramFunction
from lmppl.strings import LM, StringDistribution
from lmppl.text import Text
from lmppl.trace import Trace
from lmppl.types import Ids

DEFAULT = "default"
COSTLY = ("effect", "cached", "reward")
"""What is read from the trace and not computed again, besides texts and their scores."""


class WeightedTrace(NamedTuple):
    """A trace of one question and its posterior weight there."""

    question: int
    trace: Trace
    weight: float


@dataclass(frozen=True)
class WeightedText:
    """A completion of a prompt, and how much it counts.

    Args:
        prompt: the text before; for a chat the contents of its messages, one a line.
        completion: the text.
        weight: its posterior weight; the weights of one question and site sum to 1.
        site: the address.
        question: its position in the data.
        model: the name by which the program asks for the model.
        op: "sample" or "observe".
        messages: of a chat, as (role, content).
        law: the distribution of the site; None for a plain text.
        value: the value of the site, with its own tokens where a model has drawn it.
        logp: its log-probability when it was drawn or observed.
    """

    prompt: str
    completion: str
    weight: float = 1.0
    site: str = ""
    question: int = 0
    model: str = DEFAULT
    op: str = "sample"
    messages: tuple[tuple[str, str], ...] | None = None
    law: Any = None
    value: Any = None
    logp: float = float("nan")

    def context(self, lm: LanguageModel) -> Ids:
        """The tokens of the prompt."""
        if self.messages is not None:
            return lm.encode_chat(self.messages)
        return lm.context(self.prompt)

    def endings(self, lm: LanguageModel) -> list[Ending]:
        """The token sequences that the completion means, as the engine has scored them."""
        law = self.law
        if isinstance(law, StringDistribution):
            value, string = self.value, law.law(lm)
            if isinstance(value, Text) and value.scheme == law._scheme(lm):
                return own_endings(lm, string, tuple(value._ids or ()))
            return canonical_endings(lm, string, self.completion, law._options.end)
        if isinstance(law, Choice):
            string = StringLaw(max_tokens=MANY, stop=law.stop)
            return canonical_endings(lm, string, self.completion, law.end)
        return [Ending(lm.spell(self.completion), tuple(sorted(lm.eos_ids)) or None)]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same completion of the same prompt, by the same tokens."""
        ids = self.value._ids if isinstance(self.value, Text) else None
        own = None if ids is None else tuple(ids)
        return self.question, self.site, self.prompt, self.messages, self.completion, own


class Examples:
    """Posteriors of some questions as what an M-step learns from.

    Args:
        program: the program they are posteriors of.
        data: its questions, as in `infer_many`.
        posteriors: one for each question.
        equal: let all traces of positive weight count alike, whatever their weights.

    >>> from lmppl import LM, program, sample
    >>> from lmppl.inference import Enumerate, infer_many
    >>> from lmppl.lm.table import TableLM
    >>> @program
    ... def say(word):
    ...     return sample("said", LM(word, max_tokens=1))
    >>> lm = TableLM(["a", "b"], {(): [0.25, 0.75]})
    >>> found = Examples(say, ["a"], infer_many(say, ["a"], engine=Enumerate(), lm=lm))
    >>> sorted((t.prompt, t.completion, round(t.weight, 2)) for t in found.texts())
    [('a', 'a', 0.25), ('a', 'b', 0.75)]
    """

    def __init__(
        self,
        program: Callable[..., Any],
        data: Sequence[Any],
        posteriors: Sequence[Posterior],
        *,
        equal: bool = False,
    ) -> None:
        """Keep them; texts are found when asked for."""
        if len(data) != len(posteriors):
            raise BadArgument(
                f"{len(data)} questions and {len(posteriors)} posteriors do not pair",
                fix="give the questions that were inferred",
            )
        self.program = program
        self.data = data
        self.posteriors = posteriors
        self.equal = equal

    def __len__(self) -> int:
        return len(self.posteriors)

    def traces(self) -> Iterator[WeightedTrace]:
        """Every trace of positive weight, question by question."""
        for n, posterior in enumerate(self.posteriors):
            yield from self._traces(n, posterior)

    def _traces(self, n: int, posterior: Posterior) -> Iterator[WeightedTrace]:
        weights = posterior.weights
        alive = weights > 0
        if self.equal and alive.any():
            weights = alive / alive.sum()
        for trace, weight in zip(posterior.traces, weights.tolist(), strict=True):
            if weight > 0:
                yield WeightedTrace(n, trace, weight)

    def texts(
        self,
        *,
        sites: Sequence[str] | Callable[[str], bool] | None = None,
        model: str | None = None,
        observed: bool = True,
    ) -> Iterator[WeightedText]:
        """The texts of all traces, equal ones of a question joined, one question after the other.

        Args:
            sites: names of sites (those of any scope and index), or a test of an address.
            model: only what this model is asked for.
            observed: with observed texts too, which a model of the data has to explain.
        """
        for n, posterior in enumerate(self.posteriors):
            joined: dict[tuple[Any, ...], WeightedText] = {}
            for trace, mass in distinct(self._traces(n, posterior)):
                for text in recorded(self.program, self.data[n], trace, n):
                    if model not in (None, text.model) or (text.op == "observe" and not observed):
                        continue
                    if not _named(text.site, sites):
                        continue
                    before = joined.get(text.key)
                    weight = mass + (before.weight if before is not None else 0.0)
                    joined[text.key] = replace(text, weight=weight)
            yield from joined.values()


def distinct(traces: Iterable[WeightedTrace]) -> list[tuple[Trace, float]]:
    """Traces of one question with equal values joined: each is run again once."""
    joined: dict[Any, tuple[Trace, float]] = {}
    for n, item in enumerate(traces):
        key: Any = tuple(
            (
                e.address,
                e.value,
                tuple(e.value._ids or ()) if isinstance(e.value, Text) else type(e.value),
            )
            for e in item.trace.sites
            if e.op in ("sample", "observe", "effect")
        )
        try:
            first, mass = joined.get(key, (item.trace, 0.0))
        except TypeError:  # a value that cannot be compared
            key, first, mass = n, item.trace, 0.0
        joined[key] = first, mass + item.weight
    return list(joined.values())


def _named(address: str, sites: Any) -> bool:
    if sites is None:
        return True
    if callable(sites):
        return bool(sites(address))
    return address in sites or address.rpartition("/")[2].partition("[")[0] in sites


class _End(BaseException):
    """The trace says no more."""


class _Recorder(Handler):
    """Gives every site its value and keeps the law of each text; nothing is drawn or scored."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.found: list[tuple[str, str, Any, Any]] = []

    def process(self, message: Message) -> None:
        op, address = message.op, message.address
        if op == "sample" and not message.done:
            if address not in self.trace:
                raise _End  # a particle that died on the way
            message.value = placed(self.trace[address], address)
        elif op in COSTLY:
            if address not in self.trace:
                raise _End
            message.value = self.trace[address]
        if op in ("sample", "observe"):
            self.found.append((op, address, message.dist, message.value))
        if op in ("sample", "observe", "factor", *COSTLY):
            message.op, message.done, message.proposal = "deterministic", False, None


def arguments(question: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a question of `infer_many` means."""
    if isinstance(question, Mapping):
        return (), dict(question)
    return (question, {}) if isinstance(question, tuple) else ((question,), {})


def recorded(
    program: Callable[..., Any], question: Any, trace: Trace, number: int = 0
) -> list[WeightedText]:
    """The texts of one trace with their prompts, weight 1."""
    if local.active is not None:
        raise BadArgument("texts are found outside of a running program")
    args, kwargs = arguments(question)
    recorder = _Recorder(trace)
    fn = program.fn if isinstance(program, ProgramFunction) else program
    with recorder:
        try:
            EagerContext(0).enter(fn, args, kwargs)
        except _End:
            pass
        except NoLanguageModel as error:
            raise BadArgument(
                "this program infers inside itself, and such a run cannot be found again",
                why="prompts are recovered without any language model",
                fix="use examples.traces(), or enter handlers.using(lm) around the M-step: it runs anew",
            ) from error
    out = []
    for op, address, law, value in recorder.found:
        if not isinstance(law, (StringDistribution, Choice)):
            continue
        messages = getattr(law, "messages", None)
        prompt = law.prompt if isinstance(law, (LM, Choice)) and messages is None else None
        if prompt is None:
            prompt = "\n".join(content for _, content in messages or ())
        entry = trace.site(address) if address in trace else None
        out.append(
            WeightedText(
                str(prompt), _surface(law, value), 1.0, address, number, _model(law), op,
                messages, law, value, float("nan") if entry is None else entry.logp,
            )
        )  # fmt: skip
    return out


def _surface(law: Any, value: Any) -> str:
    """The text of a value; of several surface forms of an option, the first one."""
    if isinstance(law, Choice) and value in law.values:
        return str(law.surfaces[law.values.index(value)][0])
    if not isinstance(value, str):
        raise BadArgument(f"{law.kind} has the value {excerpt(value, 60)}, which is no text")
    return str(value)


def _model(law: Any) -> str:
    lm = law._lm
    return DEFAULT if lm is None else lm if isinstance(lm, str) else lm.name
