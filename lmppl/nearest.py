"""What a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def which_site(name: str, known: Sequence[str], most: int = 12) -> str:
    """What a misspelt address may have meant: one site, or the first of all there are.

    >>> which_site("mood", ["loop[0]/mood", "loop[0]/said"])
    "did you mean 'loop[0]/mood'?"
    """
    within = [k for k in known if k.rpartition("/")[2] == name]
    if near := within or difflib.get_close_matches(name, known, 1):
        return f"did you mean {near[0]!r}?"
    more = f", … {len(known) - most} more" if len(known) > most else ""
    return f"the sites are: {', '.join(known[:most]) or 'none'}{more}"
