"""What may propose for what: checks before anything is drawn."""

from __future__ import annotations

from lmppl.distributions import Distribution
from lmppl.errors import BadArgument, TokenizerMismatch, excerpt
from lmppl.jobs import Env
from lmppl.strings import StringDistribution


def check_proposal(target: Distribution, proposal: Distribution, env: Env, site: str) -> None:
    """A language model may propose only where its token sequences can be scored one by one.

    Otherwise a text that has several tokenisations is counted once for each of them.

    Raises:
        TokenizerMismatch: the two models have different vocabularies.
        BadArgument: the target scores no token sequences, or ends them otherwise.
    """
    for drawn in proposal.parts():
        if not isinstance(drawn, StringDistribution):
            continue
        for wanted in target.parts():
            if not isinstance(wanted, StringDistribution):
                raise BadArgument(
                    f"site {site!r}: {drawn.kind} proposes token sequences, and {wanted.kind} scores whole texts",
                    why="a text with several tokenisations would be counted once for each",
                    fix="propose with Choice, Categorical or Uniform, or make the target an LM",
                )
            ours, theirs = env.model(wanted._lm), env.model(drawn._lm)
            if ours.vocabulary_id != theirs.vocabulary_id:
                raise TokenizerMismatch.between(ours, theirs, f"site {site!r}")
            if set(wanted._options.law.stop) != set(drawn._options.law.stop):
                raise BadArgument(
                    f"site {site!r}: target and proposal stop at different texts",
                    value=excerpt((wanted._options.law.stop, drawn._options.law.stop)),
                    why="their token sequences then do not mean the same texts",
                    fix="give both the same stop",
                )
