"""Merge: a language model sees the weighted answers and gives one.

    table = the heaviest answers, with their masses
    answer ~ model( · | question, table)          # a program of one site, run through `infer`

With `free=False` the model chooses among the answers it was shown (`Choice`: exact, no new answer
can appear); with `free=True` it writes one (`LM`), which may be none of them and then has mass 0.

Reference: Chen et al., Universal self-consistency for large language models (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmppl.arguments import check_integers
from lmppl.choice import Choice
from lmppl.inference.base import Engine
from lmppl.inference.calls import infer
from lmppl.inference.importance import Importance
from lmppl.inference.results.decisions import Answers, Decision, _decision
from lmppl.inference.results.tally import tally
from lmppl.primitives import sample
from lmppl.program import program
from lmppl.strings import LM

Rows = Sequence[tuple[Any, float]]


def merge_prompt(question: str, rows: Rows) -> str:
    """The question, then one line an answer with its share, the heaviest first."""
    lines = "\n".join(f"{share:.0%}: {answer}" for answer, share in rows)
    return f"Question: {question}\nProposed answers and how often each was found:\n{lines}\nThe best answer:"


@program
def merge_answers(prompt: str, options: Mapping[Any, str] | None, max_tokens: int) -> Any:
    """The program of a merge: one site, `answer`."""
    if options is not None:
        return sample("answer", Choice(prompt, options, end=len(options) > 1, stop="\n"))
    return str(sample("answer", LM(prompt, stop="\n", max_tokens=max_tokens))).strip()


def merge(
    answers: Answers,
    question: str = "",
    *,
    lm: Any,
    free: bool = False,
    most: int = 8,
    prompt: Callable[[str, Rows], str] = merge_prompt,
    surface: Callable[[Any], str] = lambda answer: f" {answer}",
    max_tokens: int = 64,
    engine: Engine | None = None,
    seed: int = 0,
    of: Any = None,
    key: Any = None,
    same: Any = None,
    keep: Any = None,
) -> Decision:
    """One answer by a language model that is shown the table.

    Args:
        answers: a posterior, a mapping from answer to weight, or answers of equal weight.
        question: what was asked.
        lm: the model that merges.
        free: whether it writes an answer of its own; otherwise it chooses.
        most: how many classes it is shown; the mass of the others is `ignored`.
        prompt: makes the prompt of the question and rows (answer, mass).
        surface: how the model would write an answer, where it chooses.
        max_tokens: of a free answer.
        engine: runs the program of the merge; one draw by importance sampling when left out.
        seed: of the draw.
        of: as in `tally`.
        key: as in `tally`.
        same: as in `tally`.
        keep: as in `tally`.

    Returns:
        A `Decision` whose `posterior` is that of the merge, with its ledger.
    """
    check_integers("merge", most=most)
    t = tally(answers, of=of, key=key, same=same, keep=keep)
    shown = range(min(most, len(t)))
    text = prompt(question, [(t.answers[c], t.mass[c]) for c in shown])
    options = None if free else {c: surface(t.answers[c]) for c in shown}
    posterior = infer(
        merge_answers,
        text,
        options,
        max_tokens,
        engine=Importance(1) if engine is None else engine,
        lm=lm,
        seed=seed,
    )
    drawn = posterior.sample(seed=seed).result
    ignored = max(0.0, 1.0 - sum(t.mass[c] for c in shown))
    if not free:
        return replace(_decision(t, int(drawn), "merge", ignored=ignored), posterior=posterior)
    known = [c for c in range(len(t)) if _is(drawn, t.members[c], key, same)]
    if known:
        made = _decision(t, known[0], "merge", ignored=ignored)
        return replace(made, answer=drawn, posterior=posterior)
    return Decision(
        drawn, "merge", 0.0, 0.0, 1.0, 0.0, ignored, t.dropped, table=t.table, posterior=posterior
    )


def _is(answer: str, members: Sequence[Any], key: Any, same: Any) -> bool:
    """Whether a written answer is in a class."""
    if same is not None:
        return any(bool(same(answer, m)) for m in members)
    if key is not None:
        return any(key(answer) == key(m) for m in members)
    return any(answer == str(m).strip() for m in members)
