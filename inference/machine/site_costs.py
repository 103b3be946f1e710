"""What each site has cost: strings, tokens, and its share of the time of its batches.

The ledger's totals are charged where the model runs (`lmppl.batches`); this is the same by site, for
reports. A string counts when it has come to its end, with all of its tokens: one whose particle
left no offspring half-way is in the totals alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmppl.jobs import Generate, Score
from lmppl.ledger import Ledger, SiteCost


def charge_sites(jobs: Sequence[Any], seconds: float) -> None:
    """Charge the ledgers of model jobs that have just run as one batch."""
    share = seconds / max(len(jobs), 1)
    book: Ledger | None = None
    address: str | None = None
    cost = SiteCost()
    for job in jobs:
        if job.ledger is None or job.owner is None:
            continue
        pending = job.owner[1].pending
        at = "" if pending is None else pending.address
        if job.ledger is not book or at != address:  # neighbours mostly stand at one site
            book, address = job.ledger, at
            cost = book.sites.setdefault(at, SiteCost())
        cost.seconds += share
        kind = type(job)
        if kind is Generate:
            drawn = job.drawn
            if drawn is not None or job.finished:
                cost.calls += 1
                cost.tokens_in += len(job.context)
                cost.tokens_out += len(job.state.ids if drawn is None else drawn.value._ids)
        elif kind is Score:
            cost.calls += len(job.contexts)
            # a context that several continuations share is read once
            cost.tokens_in += sum(map(len, set(job.contexts)))
            cost.tokens_in += sum(map(len, job.continuations))
