"""Every string of a law: the tree of its token sequences, walked level by level."""

from __future__ import annotations

import numpy as np

from lmppl.errors import NotFinite
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringLaw, StringState, force_ends
from lmppl.lm.table import token_law
from lmppl.types import Ids
from lmppl.weights import NEG_INF


def every_string(lm: LanguageModel, law: StringLaw, context: Ids, most: int) -> list[StringState]:
    """The finished strings of positive weight; `logw + logq` is the log-weight of each.

    Args:
        lm: a model whose rows are small.
        law: of the strings, bound to the model.
        context: token ids before them.
        most: how many there may be.

    Raises:
        NotFinite: there are more.
    """
    live = [StringState(law, context, 0)]
    done: list[StringState] = []
    while live:
        rows = lm.open([s.prefix for s in live])
        log_model = rows.log_probs()
        rows.close()
        grown: list[StringState] = []
        for s, row in zip(live, log_model, strict=True):
            mask = None if s.automaton is None else s.automaton.mask[None, :]
            logp, logq = token_law(row[None, :], law.token, mask)
            local = (logq if law.target_is_proposal else logp)[0]
            allowed = local > NEG_INF if mask is None else (local > NEG_INF) & mask[0]
            for token in np.flatnonzero(allowed).tolist():
                child = s.fork(0)
                x = float(local[token])
                child.extend(lm, token, x, x if law.target_is_proposal else 0.0)
                if child.awaits_end:
                    end = lm.open([child.prefix])
                    force_ends(lm, end, [child])
                    end.close()
                if child.logw > NEG_INF:
                    (grown if child.finish is None else done).append(child)
        if len(done) + len(grown) > most:
            raise NotFinite(f"more than {most:,} strings", fix="lower max_tokens")
        live = grown
    return done
