"""Chains and searches come back from a file as what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmppl import LM, factor, program, sample
from lmppl.errors import DataError
from lmppl.inference import Beam, Found, MetropolisHastings, ParallelTempering, ParticleGibbs, infer
from lmppl.inference.mcmc.chain import ChainPosterior
from lmppl.inference.results.files import load, save
from lmppl.lm.table import TableLM
from lmppl.plainjson import dump

LM_ = TableLM.random(["a", "b", "<eos>"], seed=3)


@program
def words() -> str:
    first = sample("first", LM("", max_tokens=2))
    second = sample("second", LM(first, max_tokens=2))
    factor("same", 1.0 if first == second else 0.0)
    return str(first + second)


@pytest.mark.parametrize(
    "engine",
    [
        ParticleGibbs(particles=3, sweeps=6),
        MetropolisHastings(steps=12, chains=2, burn_in=2),
        ParallelTempering(temperatures=(4.0, 1.0), particles=3, sweeps=6),
    ],
    ids=lambda e: type(e).__name__,
)
def test_chains(engine: object, tmp_path: Path) -> None:
    post = infer(words, engine=engine, lm=LM_, seed=1)  # type: ignore[arg-type]
    save(post, tmp_path / "chain.jsonl")
    again = load(tmp_path / "chain.jsonl")
    assert isinstance(post, ChainPosterior) and isinstance(again, ChainPosterior)
    assert again.ess == post.ess and again.acceptance == post.acceptance
    assert again.marginal() == post.marginal()
    assert list(again.chains) == list(post.chains)
    for name, traces in post.chains.items():
        assert [t.result for t in again.chains[name]] == [t.result for t in traces]
        assert [t.log_joint for t in again.chains[name]] == [t.log_joint for t in traces]
    save(again, tmp_path / "twice.jsonl")
    assert (tmp_path / "twice.jsonl").read_bytes() == (tmp_path / "chain.jsonl").read_bytes()


def test_a_search(tmp_path: Path) -> None:
    post = infer(words, engine=Beam(width=3), lm=LM_, seed=1)
    save(post, tmp_path / "found.jsonl")
    again = load(tmp_path / "found.jsonl")
    assert isinstance(post, Found) and isinstance(again, Found)
    assert np.array_equal(again.scores, post.scores) and again.best == post.best
    assert (again.expansions, again.nodes, again.upper) == (
        post.expansions, post.nodes, post.upper,
    )  # fmt: skip


def test_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    import json
    import zlib

    path = tmp_path / "chain.jsonl"
    save(infer(words, engine=ParticleGibbs(particles=2, sweeps=2), lm=LM_, seed=0), path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[0]["more"]["kind"] = "else"
    crc, out = 0, b""
    for item in lines[:-1]:
        line = dump(item) + b"\n"
        crc, out = zlib.crc32(line, crc), out + line
    lines[-1]["crc32"] = f"{crc:08x}"
    path.write_bytes(out + dump(lines[-1]) + b"\n")
    with pytest.raises(DataError, match="unknown kind"):
        load(path)
