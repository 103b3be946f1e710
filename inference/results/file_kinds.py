"""What posteriors of some kinds keep beside their particles, for their files.

| kind | kept |
| --- | --- |
| `ChainPosterior` | how often moves were accepted; the traces of the chains beside it |
| `Found` | scores, how much was grown, the bound (not the allocator: it has a state of its own) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from lmppl.inference.results.posterior import Posterior
from lmppl.plainjson import decode_float, encode_float
from lmppl.trace import Trace

Lines = Callable[..., Iterator[dict[str, Any]]]
Read = Callable[[Iterable[dict[str, Any]]], list[Trace]]


def extra(posterior: Posterior, lines: Lines, opaque: bool = False) -> dict[str, Any] | None:
    """What the kind of a posterior adds to its header; None of a plain one."""
    from lmppl.inference.mcmc.chain import ChainPosterior
    from lmppl.inference.search.found import Found

    if isinstance(posterior, ChainPosterior):
        return {
            "kind": "chain",
            "acceptance": {k: encode_float(v) for k, v in posterior.acceptance.items()},
            "chains": {
                name: list(lines(_bare(traces), opaque))
                for name, traces in posterior.chains.items()
            },
        }
    if isinstance(posterior, Found):
        return {
            "kind": "found",
            "scores": [encode_float(v) for v in posterior.scores.tolist()],
            "expansions": posterior.expansions,
            "nodes": posterior.nodes,
            "upper": encode_float(posterior.upper),
        }
    return None


def restored(base: Posterior, item: Mapping[str, Any] | None, read: Read) -> Posterior:
    """A posterior of its kind."""
    if item is None:
        return base
    from lmppl.inference.mcmc.chain import ChainPosterior
    from lmppl.inference.search.found import Found

    if item["kind"] == "found":
        scores = np.array([decode_float(v) for v in item["scores"]], dtype=np.float64)
        if len(scores) != len(base):
            raise ValueError(f"{len(scores)} scores of {len(base)} traces")
        return Found(
            base,
            scores,
            expansions=int(item["expansions"]),
            nodes=int(item["nodes"]),
            upper=decode_float(item["upper"]),
        )
    if item["kind"] != "chain":
        raise ValueError(f"a posterior of the unknown kind {item['kind']!r}")
    chain = ChainPosterior.__new__(ChainPosterior)
    vars(chain).update(vars(base))
    chain.acceptance = {str(k): decode_float(v) for k, v in item["acceptance"].items()}
    chain.chains = {str(k): read(v) for k, v in item["chains"].items()}
    return chain


def _bare(traces: Iterable[Trace]) -> Any:
    kept = list(traces)
    return SimpleNamespace(traces=kept, log_weights=[0.0] * len(kept), eves=[0] * len(kept))
