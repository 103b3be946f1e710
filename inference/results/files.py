"""Posteriors as JSON lines: `save` and `load`; `posterior_summary` for result files.

    {"format": "lmppl posterior", "version": 1, "particles": 64, "engine": …, "log_evidence": …, …}
    {"log_weight": -1.25, "eve": 0, "result": …, "shared": 0, "sites": [{"op": …, "at": …, …}, …]}
    …                                                                  one line per particle
    {"end": 64, "crc32": "1c291ca3"}                                   of all bytes before it

`shared` counts the first sites of the line before that this particle has too: particles that share
a past are written, and read back, with one copy of it. Values are exact (`lmppl.inference.results.encoding`
has the grammar); a file is data, and nothing in it is executed. It is written beside its place and
moved there when it is whole.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import numpy as np

from lmppl.arguments import check_path
from lmppl.atomic import write_atomic
from lmppl.errors import BadArgument, DataError, excerpt
from lmppl.inference.results.encoding import decode, decode_entry, encode, encode_entry
from lmppl.inference.results.file_kinds import extra, restored
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.summary import posterior_summary
from lmppl.ledger import Ledger, ModelCost, SiteCost
from lmppl.plainjson import decode_float, dump, encode_float
from lmppl.trace import Entry, Trace

__all__ = ["header", "load", "particle_lines", "posterior_summary", "rebuild", "save"]

FORMAT, VERSION = "lmppl posterior", 1
LONGEST_LINE = 1 << 30
"""Bytes; a longer line is no particle of this world."""


# -- writing --------------------------------------------------------------------------------------


def header(posterior: Posterior, opaque: bool = False) -> dict[str, Any]:
    """Everything about a posterior but its particles."""
    from lmppl import __version__

    h = posterior.history
    return {
        "format": FORMAT,
        "version": VERSION,
        "package": __version__,
        "particles": len(posterior),
        "engine": posterior.engine,
        "seed": posterior.seed,
        "target": posterior.target,
        "log_evidence": encode_float(posterior.log_evidence),
        "evidence_se": None
        if posterior.evidence_se is None
        else encode_float(posterior.evidence_se),
        "exact": posterior.exact,
        "missing": encode_float(posterior.missing),
        "ledger": posterior.ledger.to_dict(),
        "sites": {
            at: [c.calls, c.tokens_in, c.tokens_out, c.seconds]
            for at, c in posterior.ledger.sites.items()
        },
        "history": None
        if h is None
        else {
            "particles": h.particles,
            "ess": [encode_float(v) for v in h.ess],
            "log_evidence": [encode_float(v) for v in h.log_evidence],
            "ancestors": [None if a is None else np.asarray(a).tolist() for a in h.ancestors],
            "eves": [int(v) for v in h.eves],
            "log_weights": [[encode_float(w) for w in row] for row in h.log_weights],
            "fixed": h.fixed,
            "whose": h.whose,
        },
        "deaths": posterior.deaths,
        "death_examples": list(posterior.death_examples),
        "warnings": list(posterior.warnings),
        "more": extra(posterior, particle_lines, opaque),
    }


def particle_lines(posterior: Posterior, opaque: bool = False) -> Iterator[dict[str, Any]]:
    """One object per particle, in order."""
    before: list[Entry] = []
    for i, trace in enumerate(posterior.traces):
        sites = [e for e in trace.sites if e.op != "jobs"]
        shared = 0
        for mine, theirs in zip(sites, before, strict=False):
            if mine is not theirs:
                break
            shared += 1
        try:
            result = encode(trace.result, opaque)
        except BadArgument as error:
            error.add_where(f"what particle {i} returned")
            raise
        yield {
            "log_weight": encode_float(posterior.log_weights[i]),
            "eve": int(posterior.eves[i]),
            "result": result,
            "shared": shared,
            "sites": [encode_entry(e, opaque) for e in sites[shared:]],
        }
        before = sites


def save(posterior: Posterior, path: str | os.PathLike[str], *, opaque: bool = False) -> None:
    """Write a posterior as JSON lines; `load` gives it back, equal in every number and text.

    Args:
        posterior: what to write.
        path: the file; it is replaced when it exists, and untouched when something goes wrong.
        opaque: keep values that are no data (objects of your own classes) as their `repr`.

    Raises:
        BadArgument: a value that cannot be written; names its site.
        DataError: the file cannot be written.
    """
    check_path("save", path)

    def lines() -> Iterator[bytes]:
        crc = 0
        for item in (header(posterior, opaque), *particle_lines(posterior, opaque)):
            line = dump(item) + b"\n"
            crc = zlib.crc32(line, crc)
            yield line
        yield dump({"end": len(posterior), "crc32": f"{crc:08x}"}) + b"\n"

    write_atomic(path, lines())


# -- reading --------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> Posterior:
    """Read what `save` wrote.

    Raises:
        DataError: no such file, no such format, a later version, or damage; says where.
    """
    check_path("load", path)
    name = os.fspath(path)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(
            f"cannot read {name!r}: {error.strerror or error}",
            fix="give the path that posterior.save(path) was given",
        ) from None
    with file:
        head: dict[str, Any] | None = None
        particles: list[tuple[int, bytes, dict[str, Any]]] = []
        crc, end = 0, None
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            item = _parse(name, number, line)
            if item is None:
                continue
            if end is not None:
                _damaged(name, number, line, None, "there is more after the last line")
            if head is None:
                head = _check_header(name, number, line, item)
            elif "end" in item:
                end = item
                if item.get("crc32") != f"{crc:08x}":
                    _damaged(
                        name, number, line, "crc32", "the checksum does not fit what is before it"
                    )
            else:
                particles.append((number, line, item))
            crc = zlib.crc32(line, crc)
    if head is None:
        raise DataError(f"{name!r} is empty", where=f"{name}:1:1", fix="save the posterior again")
    if len(particles) != head["particles"] or end is None:
        raise DataError(
            f"the file ends early: {len(particles):,} of {head['particles']:,} particles",
            where=f"{name}:{len(particles) + 1}:1",
            why="a part of the particles is not the posterior",
            fix="copy it again from where it was saved, or run the inference again",
        )
    return _build(name, head, particles)


def _damaged(name: str, number: int, line: bytes, key: str | None, what: str) -> NoReturn:
    found = line.find(f'"{key}"'.encode()) if key else 0
    raise DataError(
        f"a saved posterior is damaged: {what}",
        where=f"{name}:{number}:{max(found, 0) + 1}",
        value=excerpt(line[max(found, 0) :].decode(errors="replace").rstrip(), 80),
        fix="copy the file again from where it was saved, or run the inference again",
    )


def _parse(name: str, number: int, line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for an empty one."""
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if not line.strip():
        return None
    try:
        item = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte {line[error.start]:#04x}",
            where=f"{name}:{number}:{error.start + 1}",
            fix="give a file that posterior.save(path) wrote",
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {error.msg}",
            where=f"{name}:{number}:{error.colno}",
            value=excerpt(error.doc[max(error.pos - 20, 0) : error.pos + 40].rstrip("\n"), 80),
            fix="copy the file again from where it was saved, or run the inference again",
        ) from None
    except (ValueError, RecursionError) as error:
        _damaged(name, number, line, None, str(error) or "nested too deeply")
    if not isinstance(item, dict):
        _damaged(name, number, line, None, "the line is no JSON object")
    return item


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f'{constant} is no JSON; it is written {{"$f": "nan"}}')


def _check_header(name: str, number: int, line: bytes, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("format") != FORMAT:
        raise DataError(
            f"{name!r} is no saved posterior",
            where=f"{name}:{number}:1",
            value=excerpt(line.decode(errors="replace").rstrip(), 80),
            fix="give a file that posterior.save(path) wrote; results of `lmppl run` are other files",
        )
    if item.get("version") != VERSION:
        raise DataError(
            f"format version {item.get('version')!r} is unknown; this lmppl reads version {VERSION}",
            where=f"{name}:{number}:{line.find(b'version') + 1}",
            value=f"written by lmppl {item.get('package')!s:.40}",
            fix="update: pip install --upgrade lmppl-lang",
        )
    count = item.get("particles")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        _damaged(name, number, line, "particles", "no number of particles")
    return item


_BAD = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError, RecursionError)
"""What reading a wrong field can raise; each becomes a `DataError` that names the line."""


def _build(
    name: str, head: dict[str, Any], lines: list[tuple[int, bytes, dict[str, Any]]]
) -> Posterior:
    reader = _Reader()
    for number, line, item in lines:
        try:
            reader.add(item)
        except _BAD as error:
            key = error.args[0] if isinstance(error, KeyError) else None
            _damaged(name, number, line, None, f"missing {key!r}" if key else _say(error))
    try:
        return reader.finish(head)
    except _BAD as error:
        raise DataError(
            f"a saved posterior is damaged: {_say(error)}",
            where=f"{name}:1:1",
            fix="copy the file again from where it was saved, or run the inference again",
        ) from None


def _say(error: Exception) -> str:
    return f"missing {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def rebuild(head: dict[str, Any], lines: list[dict[str, Any]]) -> Posterior:
    """A posterior of its header and particles (one that is a value in another)."""
    if head["format"] != FORMAT or head["version"] != VERSION or head["particles"] != len(lines):
        raise ValueError("no posterior of this version")
    reader = _Reader()
    for item in lines:
        reader.add(item)
    return reader.finish(head)


class _Reader:
    """Particles one after the other; each may share its first sites with the one before."""

    def __init__(self) -> None:
        self.sites: list[Entry] = []
        self.traces: list[Trace] = []
        self.log_weights: list[float] = []
        self.eves: list[int] = []

    def add(self, item: dict[str, Any]) -> None:
        """One line."""
        shared = item["shared"]
        if not 0 <= shared <= len(self.sites):
            raise ValueError(f"shares {shared} sites with a particle that has {len(self.sites)}")
        sites = self.sites[:shared]
        for site in item["sites"]:
            sites.append(decode_entry(sites[-1] if sites else None, site))
        self.sites = sites
        self.traces.append(Trace(sites[-1] if sites else None, decode(item["result"])))
        self.log_weights.append(decode_float(item["log_weight"]))
        self.eves.append(int(item["eve"]))

    def finish(self, head: dict[str, Any]) -> Posterior:
        """The posterior."""
        if self.eves and min(self.eves) < 0:
            raise ValueError("an ancestor below 0")
        if any(math.isnan(w) or w == math.inf for w in self.log_weights):
            raise ValueError("a log-weight that is nan or inf")
        se, seed = head["evidence_se"], head.get("seed")
        base = Posterior(
            self.traces,
            np.array(self.log_weights, dtype=np.float64),
            decode_float(head["log_evidence"]),
            engine=str(head["engine"]),
            target=str(head["target"]),
            ledger=_ledger(head["ledger"], head.get("sites", {})),
            history=_history(head["history"]),
            eves=self.eves,
            deaths={str(k): int(v) for k, v in head["deaths"].items()},
            death_examples=[str(v) for v in head["death_examples"]],
            warnings=[str(v) for v in head["warnings"]],
            exact=bool(head["exact"]),
            missing=decode_float(head["missing"]),
            evidence_se=None if se is None else decode_float(se),
            seed=None if seed is None else int(seed),
        )
        return restored(base, head.get("more"), _traces)


def _traces(items: Iterable[dict[str, Any]]) -> list[Trace]:
    """Traces without weights."""
    reader = _Reader()
    for item in items:
        reader.add(item)
    return reader.traces


def _ledger(item: dict[str, Any], sites: dict[str, Any]) -> Ledger:
    return Ledger(
        sites={
            str(k): SiteCost(int(v[0]), int(v[1]), int(v[2]), float(v[3])) for k, v in sites.items()
        },
        models={str(k): ModelCost(**v) for k, v in item["models"].items()},
        effects=int(item["effects"]),
        effect_seconds=float(item["effect_seconds"]),
        replayed=int(item["replayed"]),
        reward_calls=int(item.get("reward_calls", 0)),
        reward_passes=int(item.get("reward_passes", 0)),
        seconds=float(item["seconds"]),
    )


def _history(item: dict[str, Any] | None) -> History | None:
    if item is None:
        return None
    return History(
        int(item["particles"]),
        ess=[decode_float(v) for v in item["ess"]],
        log_evidence=[decode_float(v) for v in item["log_evidence"]],
        ancestors=[None if a is None else np.array(a, dtype=np.int64) for a in item["ancestors"]],
        eves=[int(v) for v in item["eves"]],
        log_weights=[
            np.array([decode_float(w) for w in row]) for row in item.get("log_weights", [])
        ],
        fixed=bool(item.get("fixed", True)),
        whose=str(item.get("whose", "")),
    )
