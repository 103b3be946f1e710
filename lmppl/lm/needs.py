"""What engines, programs and sites ask of a language model, before a token is drawn.

A need is the name of a capability (`lmppl.lm.base.Capabilities`). It is asked for

* at `infer`: what the engine needs (`Engine.needs`), and what the program declares
  (`@program(needs=...)`), of every model that the run is given or loads;
* at a site: what its own law needs, of the model it means, before the batch of the site is sent.

So a server that lacks something is found out while nothing is paid for yet: at the start where it can
be known there, else at the first site that asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from lmppl.errors import BadArgument, CapabilityError, excerpt
from lmppl.lm.base import Capabilities, LanguageModel

NAMES = tuple(f.name for f in fields(Capabilities))
FIXES = {
    "logprobs": "use engine=Forward() or Greedy()",
    "scores_text": "use an engine or a proposal that scores no text, as SMC() or Suffix(), or another model",
    "token_ids": "leave tokens(k) out: particles then stop between strings",
}
"""What to do where an engine asks in vain."""

Needs = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""One capability, or several; or these by the name that the program calls a model."""


def require(lm: LanguageModel, capability: str, asker: str, fix: str) -> None:
    """Refuse what a model does not declare.

    Raises:
        CapabilityError: with what is needed and what there is.
    """
    has = getattr(lm.capabilities, capability)
    if not has or has == "none":
        raise CapabilityError.between(
            asker, lm.name, needs=capability, has=f"{capability}={has!r}", fix=fix
        )


def declared(needs: Any) -> dict[str | None, tuple[str, ...]]:
    """The needs of a program, by name of the model; None stands for every model.

    >>> declared("masks"), declared({"judge": ["scores_text"]})
    ({None: ('masks',)}, {'judge': ('scores_text',)})

    Raises:
        BadArgument: no model has a capability of such a name.
    """
    given = needs if isinstance(needs, Mapping) else {None: needs}
    found = {n: (v,) if isinstance(v, str) else tuple(v) for n, v in given.items()}
    unknown = [one for of_one in found.values() for one in of_one if one not in NAMES]
    if unknown:
        raise BadArgument(
            f"no language model has the capability {excerpt(unknown[0], 40)}",
            value=excerpt(needs),
            fix=f"a need is one of {', '.join(NAMES)}",
        )
    return {name: of_one for name, of_one in found.items() if of_one}
