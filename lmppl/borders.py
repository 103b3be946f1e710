"""Where a prompt and the text after it meet inside a token.

Byte-pair tokenizers put the space in front of a word: after "Answer: " the model reads the tokens
" " and "yes", where it has learned " yes" alone, and gives them a strange probability. The weights
stay exact for the tokens that were read; they are just not those that were meant. Healing the
border would have to move several tokens and is inexact, so nothing is changed: the program's author
is told where the border should be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lmppl.choice import Choice
from lmppl.distributions import Distribution
from lmppl.errors import LmpplError
from lmppl.jobs import Env
from lmppl.lm.base import LanguageModel
from lmppl.strings import LM
from lmppl.text import Text

PROBES = ("a", "0")
"""What a drawn text may begin with: a letter or a digit."""


def site_of(address: str) -> str:
    """The site that all items of a loop or plate are runs of.

    >>> site_of("step[12]/x")
    'step/x'
    """
    return re.sub(r"\[\d+\]", "", address)


def border_warning(site: str, dist: Distribution, value: Any, env: Env) -> str | None:
    """What is wrong with where a prompt ends, and what to write instead.

    Args:
        site: its name.
        dist: of the site; only `LM` and `Choice` on a prompt are looked at.
        value: the observed one; None at a site that is drawn.
        env: says which model is meant.
    """
    try:
        for part in dist.parts():
            if isinstance(part, (LM, Choice)) and part.prompt:
                lm = env.model(part._lm)
                for more in _followers(part, value, lm):
                    if found := split(lm, str(part.prompt), more):
                        read, learned = (" + ".join(map(repr, pieces)) for pieces in found)
                        return (
                            f"site {site!r}: prompt and value meet inside a token: the model has learned "
                            f"{learned}, and reads {read}; end the prompt before {found[0][0]!r} and "
                            "begin the value with it (observed texts, options, regex)"
                        )
    except LmpplError:  # a text that cannot be spelled has its own error, where it is used
        return None
    return None


def _followers(part: LM | Choice, value: Any, lm: LanguageModel) -> Iterator[str]:
    """Texts that may come right after the prompt."""
    if isinstance(part, Choice):
        for group in part.surfaces:
            yield from group
    elif value is not None:
        if isinstance(value, str) and not (isinstance(value, Text) and value.token_ids is not None):
            yield str(value)
    elif str(part.prompt)[-1].isspace():
        constraint = part.law(lm).constraint
        if constraint is None:
            yield PROBES[0]
            return
        mask = constraint.start().mask
        yield from (probe for probe in PROBES if mask[lm.spell(probe)[0]])


def split(lm: LanguageModel, prompt: str, more: str) -> tuple[list[str], list[str]] | None:
    """The tokens around a border as they are read and as they were learned; None when equal.

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM([":", " ", "a", " a", "<eos>"], {(): [0.2] * 5})
    >>> split(lm, ": ", "a")
    ([' ', 'a'], [' a'])
    >>> split(lm, ":", " a") is None
    True
    """
    alone = lm.encode(prompt)
    whole = lm.encode(prompt + more)
    if whole[: len(alone)] == alone:
        return None
    same = next(i for i, token in enumerate(alone) if i >= len(whole) or token != whole[i])
    before = len(b"".join(map(lm.token_bytes, whole[:same])))
    border = len(b"".join(map(lm.token_bytes, alone)))
    reach, end = before, same
    while end < len(whole) and reach <= border:
        reach += len(lm.token_bytes(whole[end]))
        end += 1
    after = (prompt + more).encode()[border:reach].decode("utf-8", "replace")
    read = [*(lm.decode([token]) for token in alone[same:]), after]
    return read, [lm.decode([token]) for token in whole[same:end]]
