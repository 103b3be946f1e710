"""Engines as text: every engine, canonical forms, and the messages for what is none."""

from __future__ import annotations

import inspect

import pytest

import lmppl.inference as offered
from lmppl.errors import BadArgument
from lmppl.inference import (
    SMC,
    Engine,
    Enumerate,
    Forward,
    Greedy,
    Importance,
    MetropolisHastings,
    ParticleGibbs,
    Rejection,
    tokens,
)
from lmppl.inference.specs import engine_names, parse_engine, parse_engines


def test_every_engine_has_a_name() -> None:
    classes = [getattr(offered, name) for name in offered.__all__]
    engines = [c for c in classes if inspect.isclass(c) and issubclass(c, Engine)]
    expected = [c for c in engines if not inspect.isabstract(c)]
    assert len(engine_names()) == len(expected)
    for name in engine_names():
        try:
            spec = parse_engine(name)
        except (
            TypeError
        ):  # an engine with an argument that text cannot give and that has no default
            continue
        assert type(spec.engine) in expected
        assert parse_engine(spec.text) == spec


@pytest.mark.parametrize(
    ("text", "engine", "canonical"),
    [
        ("smc", SMC(), "smc:particles=16"),
        ("SMC:particles=16", SMC(), "smc:particles=16"),
        (" smc: particles = 1_000 ", SMC(1000), "smc:particles=1000"),
        (
            "smc:resample_at=tokens(8),particles=4",
            SMC(4, resample_at=tokens(8)),
            "smc:particles=4,resample_at=tokens(8)",
        ),
        (
            "smc:resample_at=tokens(8, ess=0.7)",
            SMC(resample_at=tokens(8, ess=0.7)),
            "smc:particles=16,resample_at=tokens(8,ess=0.7)",
        ),
        (
            'smc:ess_threshold=1,always=true,resampling="residual"',
            SMC(ess_threshold=1.0, always=True, resampling="residual"),
            "smc:particles=16,resampling=residual,ess_threshold=1.0,always=true",
        ),
        ("smc:always=false", SMC(), "smc:particles=16"),
        ("greedy", Greedy(), "greedy"),
        (
            "particle_gibbs:particles=8,sweeps=10",
            ParticleGibbs(8, sweeps=10),
            "particle_gibbs:particles=8,sweeps=10",
        ),
        ("mh:steps=50", MetropolisHastings(50), "metropolis_hastings:steps=50,particles=16"),
        ("forward:particles=20", Forward(20), "forward:particles=20"),
        ("importance", Importance(), "importance:particles=100"),
        ("enumerate:min_mass=1e-6", Enumerate(min_mass=1e-6), "enumerate:min_mass=1e-06"),
        ("rejection:samples=5,log_bound=-2", Rejection(5, log_bound=-2.0), None),
    ],
)
def test_specs(text: str, engine: Engine, canonical: str | None) -> None:
    spec = parse_engine(text)
    assert spec.engine == engine
    assert parse_engine(spec.text) == spec
    if canonical is not None:
        assert spec.text == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scm", "there is no engine 'scm'\n  fix:   did you mean 'smc'? the engines are "),
        ("", "there is no engine ''\n  fix:   the engines are "),
        (
            "smc:particle=3",
            "engine smc has no argument 'particle'\n  fix:   did you mean 'particles'? it takes always,",
        ),
        ("greedy:particles=3", "engine greedy has no argument 'particles'\n  fix:   it takes none"),
        ("smc:particles", "engine smc: 'particles' is not key=value"),
        ("smc:", "engine smc: '' is not key=value"),
        ("smc:particles=", "engine smc: 'particles=' is not key=value"),
        ("smc:particles=4,particles=5", "engine smc: particles is given twice"),
        (
            "smc:particles=many",
            "engine smc: particles must be an integer, got many\n  fix:   such as ",
        ),
        ("smc:particles=1.5", "engine smc: particles must be an integer, got 1.5"),
        ("smc:particles=true", "engine smc: particles must be an integer, got true"),
        ("smc:particles=0", "engine smc: particles must be a positive integer, got 0"),
        ("smc:ess_threshold=2", "engine smc: ess_threshold must be in [0, 1], got 2.0"),
        ("smc:always=1", "engine smc: always must be true or false, got 1"),
        ("smc:guide=f", "engine smc: guide has no text form\n  fix:   call infer(...) from Python"),
        ("smc:resampling=7", "engine smc: resampling must be a word, got 7"),
        ("smc:resample_at=tokens(0)", "tokens(k) needs a positive integer, got 0"),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(BadArgument) as caught:
        parse_engine(text)
    assert str(caught.value).startswith(message)


def test_an_engine_twice() -> None:
    assert [s.text for s in parse_engines(["greedy", "smc"])] == ["greedy", "smc:particles=16"]
    with pytest.raises(BadArgument, match="engine smc:particles=16 is given twice"):
        parse_engines(["smc", "greedy", "smc:particles=16"])
