"""What each site has cost: strings, tokens, and its share of the time of its batches.

The ledger's totals are charged where the model runs (`lmppl.jobs`); this is the same by site, for
reports. A string counts when it has come to its end, with all of its tokens: one whose particle
left no offspring half-way is in the totals alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmppl.jobs import Generate, Score
from lmppl.ledger import SiteCost


def charge_sites(jobs: Sequence[Any], seconds: float) -> None:
    """Charge the ledgers of model jobs that have just run as one batch."""
    share = seconds / max(len(jobs), 1)
    for job in jobs:
        book, owner = job.ledger, job.owner
        if book is None or owner is None:
            continue
        pending = owner[1].pending
        address = "" if pending is None else pending.address
        cost = book.sites.get(address)
        if cost is None:
            cost = book.sites[address] = SiteCost()
        cost.seconds += share
        kind = type(job)
        if kind is Generate:
            if job.finished:
                cost.calls += 1
                cost.tokens_in += len(job.context)
                cost.tokens_out += _drawn(job)
        elif kind is Score:
            cost.calls += len(job.contexts)
            # a context that several continuations share is read once
            cost.tokens_in += sum(map(len, set(job.contexts)))
            cost.tokens_in += sum(map(len, job.continuations))


def _drawn(job: Generate) -> int:
    """Tokens of a finished string."""
    if job.drawn is None:
        return len(job.state.ids)
    ids = getattr(job.drawn.value, "_ids", None)
    return 0 if ids is None else len(ids)
