"""A posterior in a few numbers: what result files and the command line say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmppl.plainjson import encode_float, readable

if TYPE_CHECKING:
    from lmppl.inference.results.estimates import Marginal
    from lmppl.inference.results.posterior import Posterior


def made_by(posterior: Posterior) -> str:
    """The engine, and the seed where there is chance in it."""
    known = posterior.seed is not None and not posterior.exact
    return f"{posterior.engine}, seed={posterior.seed}" if known else posterior.engine


def trust(posterior: Posterior) -> str:
    """How many draws it is worth; an exact one is not made of draws."""
    if posterior.exact:
        return f"exact, {len(posterior):,} traces"
    return f"ESS {posterior.ess:.1f} of {len(posterior)}"


def answers(posterior: Posterior) -> Marginal:
    """The marginal of what the program returned; values that cannot be hashed count by their repr."""
    return posterior.marginal(lambda t: hashable(t.result))


def hashable(value: Any) -> Any:
    """The value, or its `repr` where it cannot be a key."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def posterior_summary(posterior: Posterior, *, most: int = 50) -> dict[str, Any]:
    """What a result file says of a posterior, as strict JSON; `lmppl.records` has its fields.

    Args:
        posterior: of any engine; a dead one has no answer and an empty table.
        most: rows of the table of answers.
    """
    low, high = posterior.log_evidence_interval()
    table = None if posterior.dead else answers(posterior)
    rows = [] if table is None else list(table.items())[:most]
    return {
        "answer": readable(rows[0][0]) if rows else None,
        "posterior": [
            [readable(v), p, encode_float(table.se[v])] for v, p in rows if table is not None
        ],
        "answers": 0 if table is None else len(table),
        "log_evidence": encode_float(posterior.log_evidence),
        "log_evidence_se": encode_float(posterior.log_evidence_se),
        "log_evidence_interval": [encode_float(low), encode_float(high)],
        "exact": posterior.exact,
        "seed": posterior.seed,
        "ess": encode_float(posterior.ess),
        "particles": len(posterior),
        "unique_ancestors": posterior.unique_ancestors,
        "tokens_in": posterior.ledger.tokens_in,
        "tokens_out": posterior.ledger.tokens_out,
        "seconds": posterior.ledger.seconds,
        "ledger": readable(posterior.ledger.to_dict()),
        "warnings": list(posterior.warnings),
    }
