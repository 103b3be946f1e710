"""STaR, the self-taught reasoner, as EM: its rationalisation is a proposal with a density.

    γ(rationale, answer) = p(rationale, answer | question) · 1[answer is right]
    q(rationale) = (1 - s) p(rationale | question) + s p(rationale | question, hint)

The hint shows the right answer to the **proposal** alone. A rationale drawn with it weighs
p / q ≤ 1 / (1 - s), so the E-step is properly weighted: what only someone who knows the answer
would write counts little. The published method gives such rationales weight 1 (`weighted=False`),
which trains on another law. Without a hint the weights are 0 or 1: the rejection E-step.

Reference: Zelikman, Wu, Mu and Goodman, STaR: Bootstrapping reasoning with reasoning (2022); Hoffman
et al., Training chain-of-thought via latent-variable inference (2023), for the view as EM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmppl.chat import Chat
from lmppl.errors import BadArgument, excerpt
from lmppl.frames import is_async
from lmppl.handlers import Handler
from lmppl.inference.base import Engine
from lmppl.inference.importance import Importance
from lmppl.inference.learning.em import Fit, MStep, em, refit
from lmppl.inference.learning.texts import arguments
from lmppl.inference.questions.runs import agrees
from lmppl.messages import Message
from lmppl.mixture import Mixture
from lmppl.primitives import factor
from lmppl.strings import LM, StringDistribution

Hint = Callable[[Any, Any], Any]
"""(prompt or chat messages, right answer) -> prompt or messages with a hint in them."""


class hinted(Handler):  # noqa: N801
    """Propose texts by the same model that is shown a hint.

    Args:
        fn: the program.
        sites: names of the sites.
        hint: (prompt, answer) -> prompt; of a `Chat`, messages -> messages.
        answer: the right one.
        share: s, of draws with the hint; at 1 nothing is drawn without it, and weights have no
            bound.
    """

    def __init__(
        self,
        fn: Any = None,
        *,
        sites: Sequence[str],
        hint: Hint,
        answer: Any,
        share: float = 0.5,
    ) -> None:
        """Check the share."""
        if not 0 < share <= 1:
            raise BadArgument(f"share must lie in (0, 1], got {share!r}")
        super().__init__(fn)
        self.sites = frozenset(sites)
        self.hint = hint
        self.answer = answer
        self.share = share

    def process(self, message: Message) -> None:
        """Give the site a proposal."""
        if message.op != "sample" or message.done or message.name not in self.sites:
            return
        law = message.dist
        shown = with_prompt(law, lambda prompt: self.hint(prompt, self.answer), message.address)
        message.proposal = (
            shown if self.share == 1 else Mixture([law, shown], [1 - self.share, self.share])
        )


def with_prompt(law: Any, change: Callable[[Any], Any], site: str = "") -> StringDistribution:
    """The same model and settings after another prompt."""
    if isinstance(law, LM):
        new: LM | Chat = LM(change(law.prompt), lm=law._lm)
    elif isinstance(law, Chat):
        new = Chat(change(law.messages), lm=law._lm)
    else:
        raise BadArgument(
            f"site {site!r} has no prompt to put a hint into", value=excerpt(law), fix="use an LM"
        )
    new._options = law._options
    return new


def star(
    program: Callable[..., Any],
    data: Sequence[Any],
    answers: Sequence[Any],
    *,
    lm: Any,
    hint: Hint | None = None,
    sites: Sequence[str] = ("rationale",),
    share: float = 0.5,
    weighted: bool = True,
    samples: int = 16,
    engine: Engine | Callable[[int], Engine] | None = None,
    rounds: int = 5,
    from_base: bool = True,
    right: Callable[[Any, Any], bool] = agrees,
    m_step: MStep = refit,
    **options: Any,
) -> Fit:
    """Teach a model by the rationales that lead to right answers.

    Args:
        program: samples a rationale, then an answer, and returns the answer.
        data: its questions, as in `infer_many`.
        answers: the right answer of each.
        lm: the model that is taught.
        hint: shows the answer to the proposal: `lambda prompt, answer: f"{prompt}({answer}) "`.
        sites: where hints are given.
        share: of draws with a hint.
        weighted: weigh them by p / q; False counts all right ones alike, as published.
        samples: runs per question.
        engine: in place of `Importance(samples)`.
        rounds: of sampling and training.
        from_base: train the first model anew each time, as published.
        right: whether an answer is the right one.
        m_step: training; `refit` for `TabularLM` and `TrainableLM`.
        options: those of `em`.

    Returns:
        A `Fit`. Its log-evidence is Σ log P(answer is right), an unbiased estimate of each
        probability unless `weighted=False`; `dead` counts the questions never answered right.
    """
    if len(answers) != len(data):
        raise BadArgument(f"{len(answers)} answers for {len(data)} questions")
    inner = program
    while isinstance(inner, Handler):
        inner = inner.fn  # type: ignore[assignment]
    if is_async(getattr(inner, "fn", inner)):
        raise BadArgument("star takes plain programs", fix="write def in place of async def")

    def judged(number: int) -> Any:
        args, kwargs = arguments(data[number])
        gold = answers[number]
        if hint is None:
            found = program(*args, **kwargs)
        else:
            with hinted(sites=sites, hint=hint, answer=gold, share=share):
                found = program(*args, **kwargs)
        factor("right", bool(right(found, gold)))
        return found

    if isinstance(options.get("observations"), Mapping):
        raise BadArgument("star conditions on right answers", fix="observe the rest in the program")
    return em(
        judged, range(len(data)), engine=engine or Importance(samples), m_step=m_step,
        rounds=rounds, lm=lm, from_base=from_base, equal=not weighted, **options,
    )  # fmt: skip
