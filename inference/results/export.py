"""Posteriors for other tools: pandas data frames, and xarray trees as ArviZ reads them (netCDF).

`to_arviz` builds a plain `xarray.DataTree`: ArviZ 1.x takes it as it is, ArviZ 0.23 through
`arviz.InferenceData.from_datatree(tree)`.

| group | dims | content |
| --- | --- | --- |
| `posterior` | chain, draw | draws of **equal weight**, resampled; numbers only |
| `posterior_text` | chain, draw | the strings of the same draws |
| `weighted_posterior` | chain, draw | the particles themselves, numbers only |
| `sample_stats` | chain, draw | their `log_weight`, and `lp` = log γ |
| `smc` | chain, step[, draw] | ess, log_ml, log_ml_increment, resampled, unique_ancestors, ancestor |

Plots and summaries that do not know of weights are right on `posterior`; its `ess` and `rhat` mean
nothing for particles: `tree.attrs["ess"]` has the effective sample size.

**Names.** A variable is called after its site, with `%`, `/` and control characters written as
`%25`, `%2F`, …; `address_of(name)` inverts it, and `attrs["address"]` has the address. What the
program returned is `result` (`attrs["role"] == "result"`). A name that is taken gets a `_`
(so `attrs["address"]` is the truth).

**Values.** A bool is 0 or 1. A number is itself. Arrays, and tuples of numbers, get dimensions
`<name>_dim_0`, …; ragged ones are padded at the end with nan. A site that a particle did not
reach, and None among numbers, is nan. Anything else is a string (its `repr` when it is no `str`)
in `posterior_text`, where a missing one is the empty string; and in `posterior` it has a code
`<name>_code` (-1 when missing), whose labels are `json.loads(attrs["labels"])`, or, when there are
too many different ones, its length `<name>_length` in characters. NUL and lone surrogates, which
netCDF cannot hold, are written as backslash escapes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

import numpy as np

from lmppl.arguments import check_integers, check_path, check_seed
from lmppl.errors import BadArgument
from lmppl.plainjson import dump
from lmppl.random import fold, uniform, uniforms
from lmppl.types import Ints
from lmppl.weights import NEG_INF

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Posterior

Variables: TypeAlias = dict[str, tuple[Any, dict[str, Any]]]
"""By name: an array with one row per particle, and attributes."""

MISSING = object()
MOST_LABELS, MOST_LABEL_BYTES = 256, 16_000
"""A string site with more different values than this, or longer ones, gets no codes."""


def variable_name(address: str) -> str:
    """An address as a netCDF variable name.

    >>> variable_name("facts[0]/true"), address_of("facts[0]%2Ftrue")
    ('facts[0]%2Ftrue', 'facts[0]/true')
    """
    name = re.sub(
        r"[%/\x00-\x1f\x7f]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), address
    )
    # netCDF wants no space at either end
    return re.sub(r"^ +| +$", lambda m: "%20" * len(m[0]), name)


def address_of(name: str) -> str:
    """The address that `variable_name` made a name of."""
    return unquote(name)


def to_dataframe(posterior: Posterior) -> Any:
    """A pandas data frame, one row per particle.

    Columns: `weight` (normalised), `log_weight`, `result`, then every site by its address, except
    observations and factors, whose values are known. A site that a particle did not reach is
    None or nan. A site that is itself called `weight`, `log_weight` or `result` gets a `_`.
    """
    import pandas

    columns: dict[str, Any] = {
        "weight": posterior.weights,
        "log_weight": posterior.log_weights,
        "result": _column(posterior.values()),
    }
    for address in _addresses(posterior):
        values = [t[address] if address in t else None for t in posterior.traces]
        columns[_free(address, columns)] = _column(values)
    index = pandas.RangeIndex(len(posterior), name="particle")
    return pandas.DataFrame({k: pandas.Series(v, index=index) for k, v in columns.items()})


def _column(values: Sequence[Any]) -> Any:
    """Plain strings, and one cell per value: pandas would spread tuples and arrays."""
    out = np.empty(len(values), dtype=object)
    for i, v in enumerate(values):
        out[i] = str(v) if isinstance(v, str) else v
    plain = all(v is None or isinstance(v, (bool, int, float, str, np.generic)) for v in values)
    return out.tolist() if plain else out


def _addresses(posterior: Posterior) -> list[str]:
    """Every site of any trace whose value says something, in order of first appearance."""
    found: dict[str, None] = {}
    for trace in posterior.traces:
        for e in trace.sites:
            if e.op not in ("jobs", "observe", "factor"):
                found.setdefault(e.address)
    return list(found)


def _free(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name


def to_arviz(posterior: Posterior, draws: int | None = None, seed: int = 0) -> Any:
    """An `xarray.DataTree` for ArviZ, see above.

    Args:
        posterior: of any engine.
        draws: how many equally weighted draws; as many as particles when left out (1,000 for an
            exact posterior).
        seed: of the resampling (systematic, then shuffled).

    Raises:
        AllParticlesDead: there is nothing to draw from.
    """
    import xarray

    posterior.marginal(lambda _: None)  # raises when every particle is dead
    if draws is None:
        draws = 1000 if posterior.exact else len(posterior)
    check_integers("to_arviz", draws=draws)
    picks = _resample(posterior, draws, seed)
    numbers, texts = _variables(posterior)

    def dataset(variables: dict[str, Any], rows: Ints | None) -> Any:
        n = len(posterior) if rows is None else len(rows)
        coords: dict[str, Any] = {"chain": [0], "draw": np.arange(n)}
        if rows is not None:
            coords["particle"] = (("chain", "draw"), rows[None])
        data = {}
        for name, (values, attrs) in variables.items():
            values = values if rows is None else values[rows]
            inner = [_free(f"{name}_dim_{k}", variables) for k in range(values.ndim - 1)]
            data[name] = (("chain", "draw", *inner), values[None], attrs)
        return xarray.Dataset(data, coords=coords)

    lp = np.array([t.log_joint for t in posterior.traces])
    stats: Variables = {"log_weight": (posterior.log_weights, {}), "lp": (lp, {})}
    groups = {
        "/posterior": dataset(numbers, picks),
        "/posterior_text": dataset(texts, picks),
        "/weighted_posterior": dataset(numbers, None),
        "/sample_stats": dataset(stats, None),
    }
    if posterior.history is not None:
        groups["/smc"] = _smc(posterior)
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs = _attrs(posterior, seed)
    for group in tree.children.values():
        group.attrs = {k: tree.attrs[k] for k in ("inference_library", "inference_library_version")}
    return tree


def to_netcdf(
    posterior: Posterior, path: str | os.PathLike[str], draws: int | None = None, seed: int = 0
) -> None:
    """Write `to_arviz(posterior)` as netCDF; `xarray.open_datatree(path)` reads it."""
    check_path("to_netcdf", path)
    to_arviz(posterior, draws, seed).to_netcdf(os.fspath(path), engine="h5netcdf")


def _resample(posterior: Posterior, draws: int, seed: int) -> Ints:
    """Particles of equally weighted draws: systematic, in an order that says nothing."""
    key = fold(0, "arviz", check_seed(seed))
    edges = np.cumsum(posterior.weights)
    points = (np.arange(draws) + uniform(key)) / draws * edges[-1]
    last = int(np.flatnonzero(posterior.weights > 0)[-1])
    picks = np.minimum(np.searchsorted(edges, points, side="left"), last)
    order = np.array([fold(key, "order")], dtype=np.uint64)
    shuffle = np.argsort(uniforms(order, np.arange(draws, dtype=np.uint64)))
    return np.asarray(picks[shuffle], dtype=np.int64)


# -- variables ------------------------------------------------------------------------------------


def _variables(posterior: Posterior) -> tuple[Variables, Variables]:
    """Numbers and texts."""
    numbers: Variables = {}
    texts: Variables = {}
    sources: list[tuple[str, dict[str, Any], list[Any]]] = []
    taken = {"chain", "draw", "particle"}
    for address in _addresses(posterior):
        values = [t[address] if address in t else MISSING for t in posterior.traces]
        name = _free(variable_name(address), taken)
        taken.add(name)
        sources.append((name, {"address": address, "role": "site"}, values))
    returned = _free("result", taken)
    taken.add(returned)
    pairs = zip(posterior.values(), posterior.weights, strict=True)
    results = [MISSING if v is None and w == 0 else v for v, w in pairs]  # the dead return nothing
    sources.insert(0, (returned, {"address": "", "role": "result"}, results))
    for name, attrs, values in sources:
        attrs = attrs | {"missing": sum(v is MISSING for v in values)}
        array = _numeric(values)
        if array is not None:
            numbers[name] = array, attrs
            continue
        shown = [_shown(v) for v in values]
        texts[name] = np.array(["" if s is None else s for s in shown], dtype=object), attrs
        labels = sorted({s for s in shown if s is not None})
        listed = dump(labels)
        if len(labels) <= MOST_LABELS and len(listed) <= MOST_LABEL_BYTES:
            code = {s: k for k, s in enumerate(labels)}
            array = np.array([-1 if s is None else code[s] for s in shown], dtype=np.int64)
            more = attrs | {"role": "code", "labels": listed.decode()}
            derived = _free(f"{name}_code", taken)
        else:
            array = np.array([math.nan if s is None else len(s) for s in shown])
            more = attrs | {"role": "length"}
            derived = _free(f"{name}_length", taken)
        taken.add(derived)
        numbers[derived] = array, more
    return numbers, texts


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))


def _numeric(values: Sequence[Any]) -> Any:
    """The values as an array of numbers [N, …]; None when they are none."""
    present = [v for v in values if v is not MISSING and v is not None]
    if not present:
        return None
    if all(_is_number(v) for v in present):
        whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in present)
        if whole and len(present) == len(values) and all(abs(int(v)) < 1 << 53 for v in present):
            return np.array([int(v) for v in values], dtype=np.int64)
        return np.array([_float(v) for v in values])
    arrays = [_array(v) for v in present]
    if any(a is None or a.ndim == 0 or a.ndim != arrays[0].ndim for a in arrays):
        return None
    shape = np.max([a.shape for a in arrays], axis=0)
    out = np.full((len(values), *shape), math.nan)
    filled = iter(arrays)
    for i, v in enumerate(values):
        if v is not MISSING and v is not None:
            a = next(filled)
            where: tuple[Any, ...] = (i, *(slice(0, k) for k in a.shape))
            out[where] = a
    return out


def _float(value: Any) -> float:
    if value is MISSING or value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else NEG_INF


def _array(value: Any) -> Any:
    """An array of floats, of an array or a nested tuple of numbers; None when it is none."""
    if not isinstance(value, (tuple, list)) and not hasattr(value, "__array__"):
        return None
    try:
        a = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return a.astype(np.float64) if a.dtype.kind in "biuf" and a.size else None


def _shown(value: Any) -> str | None:
    """A value as text that netCDF can hold; None when it is missing."""
    if value is MISSING:
        return None
    shown = str(value) if isinstance(value, str) else repr(value)
    return shown.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


# -- run ------------------------------------------------------------------------------------------


def _smc(posterior: Posterior) -> Any:
    import xarray

    history = posterior.history
    if history is None:
        raise BadArgument("this posterior has no history")
    steps, n = len(history.ess), max(history.sizes)
    log_ml = np.array(history.log_evidence)
    before = np.concatenate([[0.0], log_ml])[:-1]
    gone = before == NEG_INF  # nothing can follow a dead population
    with np.errstate(invalid="ignore"):
        increment = np.where(gone, math.nan, log_ml - before)
    ancestor = np.full((steps, n), math.nan)
    for t, parents in enumerate(history.ancestors):
        if parents is not None:
            ancestor[t, : len(parents)] = parents
    line = ("chain", "step")
    return xarray.Dataset(
        {
            "ess": (line, np.array(history.ess)[None]),
            "log_ml": (line, log_ml[None]),
            "log_ml_increment": (line, increment[None]),
            "resampled": (
                line,
                np.array([[a is not None for a in history.ancestors]], dtype=np.int64),
            ),
            "unique_ancestors": (line, np.array(history.eves, dtype=np.int64)[None]),
            "ancestor": (("chain", "step", "draw"), ancestor[None]),
        },
        coords={"chain": [0], "step": np.arange(steps), "draw": np.arange(n)},
    )


def _attrs(posterior: Posterior, seed: int) -> dict[str, Any]:
    from lmppl import __version__

    low, high = posterior.log_evidence_interval()
    return {
        "inference_library": "lmppl",
        "inference_library_version": __version__,
        "engine": _shown(posterior.engine),
        "target": _shown(posterior.target[:MOST_LABEL_BYTES]),
        "models": json.dumps(list(posterior.ledger.models)),
        "particles": len(posterior),
        "ess": float(posterior.ess),
        "log_evidence": float(posterior.log_evidence),
        "log_evidence_se": float(posterior.log_evidence_se),
        "log_evidence_low": float(low),
        "log_evidence_high": float(high),
        "exact": int(posterior.exact),
        "seed": "" if posterior.seed is None else str(posterior.seed),
        "resampling_seed": seed,
        "tokens_in": posterior.ledger.tokens_in,
        "tokens_out": posterior.ledger.tokens_out,
        "seconds": float(posterior.ledger.seconds),
        "warnings": json.dumps([w[:1000] for w in posterior.warnings[:20]]),
    }
