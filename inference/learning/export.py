r"""Traces as training data: JSON lines that trainers of language models read.

`export_sft`, one completion a line, for supervised fine-tuning:

| field | meaning |
| --- | --- |
| `prompt` | the text before; for a chat `messages`, a list of `{"role", "content"}`, in its place |
| `completion` | the text |
| `weight` | posterior weight within its question and site: they sum to 1 there |
| `question` | its id, or position in the data |
| `site` | address of the site |
| `log_prob` | log p of the completion when it was drawn, or null |
| `log_evidence` | log Ẑ of the question: how hard it was |

`export_pairs`, one preference a line, for DPO and its kin: `prompt` or `messages`, `question`,
`site`; `chosen` and `rejected`, two completions of the same prompt; `chosen_weight` and
`rejected_weight`, their posterior weights, joined over all traces that contain them; `margin`,
log chosen_weight - log rejected_weight, null where the rejected one has weight 0.

Lines are written as they are found, to a temporary file that takes the place of `path` at the end:
the file is whole or not there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from lmppl.atomic import write_atomic
from lmppl.errors import BadArgument
from lmppl.inference.learning.texts import (
    Examples,
    WeightedText,
    WeightedTrace,
    _named,
    distinct,
    recorded,
)
from lmppl.inference.results.posterior import Posterior
from lmppl.plainjson import dump, readable

Sites = Sequence[str] | Callable[[str], bool] | None


def export_sft(
    posteriors: Examples | Iterable[Posterior],
    path: str | os.PathLike[str],
    *,
    program: Callable[..., Any] | None = None,
    data: Sequence[Any] | None = None,
    ids: Sequence[Any] | None = None,
    sites: Sites = None,
    observed: bool = False,
    min_weight: float = 0.0,
) -> int:
    """Write completions with their posterior weights; the number of lines.

    Args:
        posteriors: `fit.examples`, or posteriors of some questions (an iterator will do).
        path: the file, replaced as a whole.
        program: what they are posteriors of; not needed with `Examples`.
        data: its questions; not needed with `Examples`.
        ids: names of the questions; their positions when left out.
        sites: which sites, as in `Examples.texts`.
        observed: with observed texts too.
        min_weight: leave out what weighs less.
    """
    written = 0

    def lines() -> Iterator[bytes]:
        nonlocal written
        for name, posterior, found in _found(posteriors, program, data, ids):
            for text in found.texts(sites=sites, observed=observed):
                if text.weight < min_weight:
                    continue
                written += 1
                yield _line(
                    text,
                    completion=text.completion,
                    weight=text.weight,
                    question=name,
                    site=text.site,
                    log_prob=text.logp if math.isfinite(text.logp) else None,
                    log_evidence=posterior.log_evidence,
                )

    write_atomic(path, lines())
    return written


def export_pairs(
    posteriors: Examples | Iterable[Posterior],
    path: str | os.PathLike[str],
    *,
    program: Callable[..., Any] | None = None,
    data: Sequence[Any] | None = None,
    ids: Sequence[Any] | None = None,
    sites: Sites = None,
    most: int = 4,
    min_margin: float = math.log(2.0),
) -> int:
    """Write pairs of completions of the same prompt, the heavier one chosen; the number of lines.

    Dead traces count as rejected with weight 0: what they drew is there, up to where they died.

    Args:
        posteriors: as in `export_sft`.
        path: the file, replaced as a whole.
        program: as in `export_sft`.
        data: as in `export_sft`.
        ids: names of the questions.
        sites: which sites.
        most: pairs of one prompt at most: the heaviest against the lightest, and so on inwards.
        min_margin: of log-weights, that a pair must have.
    """
    written = 0

    def lines() -> Iterator[bytes]:
        nonlocal written
        for name, posterior, found in _found(posteriors, program, data, ids):
            for group in _groups(found, posterior, sites):
                ranked = sorted(group, key=lambda t: (-t.weight, t.completion))
                for best, worst in list(zip(ranked, reversed(ranked), strict=True))[:most]:
                    if best.weight <= worst.weight or best.completion == worst.completion:
                        break
                    margin = math.log(best.weight / worst.weight) if worst.weight else math.inf
                    if margin < min_margin:
                        break
                    written += 1
                    yield _line(
                        best,
                        question=name,
                        site=best.site,
                        chosen=best.completion,
                        rejected=worst.completion,
                        chosen_weight=best.weight,
                        rejected_weight=worst.weight,
                        margin=margin if math.isfinite(margin) else None,
                    )

    write_atomic(path, lines())
    return written


def _found(
    posteriors: Examples | Iterable[Posterior],
    program: Callable[..., Any] | None,
    data: Sequence[Any] | None,
    ids: Sequence[Any] | None,
) -> Iterator[tuple[Any, Posterior, Examples]]:
    """Name, posterior, and examples of one question after the other."""
    equal = False
    if isinstance(posteriors, Examples):
        program, data, equal = posteriors.program, posteriors.data, posteriors.equal
        posteriors = posteriors.posteriors
    if program is None or data is None:
        raise BadArgument(
            "prompts are found by running the program again: which one, on which questions?",
            fix="write export_sft(posteriors, path, program=program, data=questions)",
        )
    for n, posterior in enumerate(posteriors):
        if n >= len(data):
            raise BadArgument(f"more posteriors than the {len(data)} questions")
        name = n if ids is None else ids[n]
        yield name, posterior, Examples(program, [data[n]], [posterior], equal=equal)


def _groups(found: Examples, posterior: Posterior, sites: Sites) -> Iterable[list[WeightedText]]:
    """Completions of the same prompt at the same site, dead ones with weight 0."""
    groups: dict[tuple[Any, ...], dict[str, WeightedText]] = {}
    pairs = zip(posterior.traces, posterior.weights.tolist(), strict=True)
    for trace, weight in distinct(WeightedTrace(0, t, w) for t, w in pairs):
        for text in recorded(found.program, found.data[0], trace):
            if text.op != "sample" or not _named(text.site, sites):
                continue
            group = groups.setdefault((text.site, text.prompt, text.messages), {})
            before = group.get(text.completion)
            total = weight + (0.0 if before is None else before.weight)
            group[text.completion] = replace(text, weight=total)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _line(text: WeightedText, **fields: Any) -> bytes:
    asked: dict[str, Any] = {"prompt": text.prompt}
    if text.messages is not None:
        asked = {"messages": [{"role": r, "content": c} for r, c in text.messages]}
    return dump({k: readable(v) for k, v in {**asked, **fields}.items()}) + b"\n"
