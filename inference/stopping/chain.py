"""Rules along one chain of thought: probes of the answer, the end signal, surprise.

The chain asks for its answer every few tokens and tells the rule (`answer`, and the probe's `text`
where hedging matters), or reports the mean log-probability of each step (`logp`).

| rule | stops when |
| --- | --- |
| `AnswerWindow(w)` | the last w answers are equal, not empty, and none hedges |
| `convergence(k)` | the last k answers are equal and not empty |
| `EndSignal(alpha)` | y_end + α (max y - mean y) ≥ max y |
| `Momentum(alpha, gamma)` | (a trigger) exp l_t < γ exp m_{t-1}: this step is a surprise |

Small k stops noisy chains at a wrong answer: k = 3 loses up to 29 points where each probe is drawn
to the answer that leads for the moment. Take k from validation chains, 10 or more where in doubt.

References: Fu et al., Dynasor (2024); Liu and Wang, Answer convergence as a signal for early
stopping in reasoning (2025); Yan et al., MUR: Momentum uncertainty guided reasoning (2025).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.inference.stopping.rules import Rule, Values, Why, number, read

HEDGES = ("wait", "hold", "but", "okay", "no", "hmm")
"""Words of a probe that is not sure of its answer."""
LEVELS = {"mild": (8, 64), "low": (5, 64), "mid": (3, 64), "high": (2, 64), "crazy": (2, 32)}
"""By name of a level: the window, and the tokens between two probes."""


@dataclass(frozen=True)
class AnswerWindow(Rule):
    """Stops when the last answers are equal, not empty, and none of their texts hedges.

    Args:
        window: how many.
        hedges: whole words, in any case; a text that has one counts as no answer.

    >>> state = AnswerWindow(2).start()
    >>> [state.update({"answer": a}) for a in ("1", "2", "", "2", "2")]
    [False, False, False, False, True]
    """

    window: int = 3
    hedges: tuple[str, ...] = HEDGES

    def __post_init__(self) -> None:
        """Check the window."""
        check_integers("AnswerWindow", window=self.window)

    def begin(self) -> Any:
        """The answer of the last probe, and how often it came in a row."""
        return [None, 0]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """A probe without an answer, or one that hedges, starts the window again."""
        answer = read(values, "answer", self)
        blank = answer is None or (isinstance(answer, str) and not answer.strip())
        if blank or self._hedged(str(values["text"]) if "text" in values else ""):
            return [None, 0], ()
        row = data[1] + 1 if data[1] and data[0] == answer else 1
        return [answer, row], (str(self),) if row >= self.window else ()

    def _hedged(self, text: str) -> bool:
        words = set(re.findall(r"[^\W\d_]+", text.lower()))
        return any(h.lower() in words for h in self.hedges)

    def __str__(self) -> str:
        return f"{self.window} equal answers"


def convergence(k: int = 10) -> AnswerWindow:
    """Stops when k probes in a row gave the same answer."""
    return AnswerWindow(k, hedges=())


@dataclass(frozen=True)
class EndSignal(Rule):
    """Stops when the end-of-thinking token would win with a bonus for confidence.

        y_end + α (max y - mean y) ≥ max y

    A peaked row has a large max - mean, so the bonus is large where the model is sure. It reads
    `end_logit`, `max_logit` and `mean_logit` of the step's first token.
    """

    alpha: float = 0.6

    def __post_init__(self) -> None:
        """Check alpha."""
        if not self.alpha >= 0.0:
            raise BadArgument(f"alpha must be at least 0, got {self.alpha!r}")

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Compare with the largest."""
        end, top, mean = (number(values, f"{n}_logit", self) for n in ("end", "max", "mean"))
        return None, (str(self),) if end + self.alpha * (top - mean) >= top else ()

    def __str__(self) -> str:
        return f"end signal with alpha {self.alpha:g}"


@dataclass(frozen=True)
class Momentum(Rule):
    """Fires at a step that is less sure than the chain so far: think harder here.

        fires if exp l_t < γ exp m̂_{t-1}        m_t = α m_{t-1} + (1 - α) l_t,  m̂_t = m_t / (1 - α^t)

    Args:
        alpha: how slowly the momentum forgets.
        gamma: how much surer the past must be.
        correct: divide by 1 - α^t. Without it m starts at 0, as if the past had been certain, and
            the second step fires whatever it is.

    It reads `logp`, the mean log-probability of the step's tokens.
    """

    alpha: float = 0.9
    gamma: float = 0.9
    correct: bool = True

    def __post_init__(self) -> None:
        """Check both."""
        for name in ("alpha", "gamma"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise BadArgument(f"{name} must be in (0, 1), got {getattr(self, name)!r}")

    def begin(self) -> Any:
        """The momentum, and how many steps it has seen."""
        return [0.0, 0]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Compare with the past, then take the step in."""
        logp = number(values, "logp", self)
        m, t = data
        past = m / (1.0 - self.alpha**t) if self.correct and t else m
        met = t > 0 and logp < math.log(self.gamma) + past
        return [self.alpha * m + (1.0 - self.alpha) * logp, t + 1], (str(self),) if met else ()

    def __str__(self) -> str:
        return f"step less sure than {self.gamma:g} of the momentum"
