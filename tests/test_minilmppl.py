"""The one-file language and the real one give the same exact posteriors on the same programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import lmppl
from lmppl.inference import Enumerate, infer
from lmppl.lm.table import TableLM

ROWS = {
    "": {" sun": 0.6, " rain": 0.3, "": 0.1},
    " sun": {" sun": 0.5, " rain": 0.2, ".": 0.2, "": 0.1},
    " rain": {" sun": 0.3, " rain": 0.5, ".": 0.2, "": 0.0},
    ".": {" sun": 0.5, " rain": 0.5},
}


def table() -> TableLM:
    """The same model as a `TableLM`."""
    tokens = [" sun", " rain", ".", ""]
    rows: dict[tuple[int, ...], list[float]] = {
        () if t == "" else (tokens.index(t),): [ROWS[t].get(v, 0.0) for v in tokens] for t in ROWS
    }
    return TableLM([t or "<eos>" for t in tokens], rows)


# Each takes the language as an argument: `L` has sample, observe, factor, LM, Categorical, model.


def one_string(L: Any) -> Any:
    return str(L.sample("sky", L.LM("Today:", lm=L.model, stop=".", max_tokens=3)))


def cascade(L: Any) -> Any:
    first = L.sample("first", L.LM("Today:", lm=L.model, stop=".", max_tokens=2))
    second = L.sample("second", L.LM(f"Then:{first}", lm=L.model, stop=".", max_tokens=2))
    L.observe("later", L.LM(f"Then:{second}", lm=L.model, stop=".", max_tokens=2), " rain")
    return str(first), str(second)


def branches(L: Any) -> Any:
    if L.sample("short", L.Categorical({True: 0.25, False: 0.75})):
        L.factor("penalty", -0.5)
        return "short"
    sky = L.sample("sky", L.LM("Today:", lm=L.model, max_tokens=2))
    L.observe("lawn", L.Categorical({"wet": 0.9, "dry": 0.1}), "wet" if "rain" in sky else "dry")
    return str(sky)


def loop(L: Any) -> Any:
    skies: list[str] = []
    for day in range(3):
        sky = L.sample("sky", L.LM("".join(skies), lm=L.model, stop=".", max_tokens=1))
        L.factor("weight", math.log(0.8 if "sun" in sky else 0.3 + 0.1 * day))
        skies.append(str(sky))
    return tuple(skies)


PROGRAMS = [one_string, cascade, branches, loop]


@pytest.fixture
def mini(load_file: Callable[[Path], ModuleType], root: Path) -> Any:
    return load_file(root / "examples" / "minilmppl.py")


def small(mini: Any, program: Callable[[Any], Any]) -> Any:
    names = {n: getattr(mini, n) for n in ("sample", "observe", "factor", "LM")}
    return partial(program, SimpleNamespace(**names, Categorical=dict, model=ROWS))


def real(program: Callable[[Any], Any]) -> Any:
    names = {n: getattr(lmppl, n) for n in ("sample", "observe", "factor", "LM", "Categorical")}
    language = SimpleNamespace(**names, model=table())
    return infer(lmppl.program(lambda: program(language)), engine=Enumerate())


@pytest.mark.parametrize("program", PROGRAMS)
def test_exact_posteriors_agree(mini: Any, program: Callable[[Any], Any]) -> None:
    expected = real(program)
    for frames in (mini.Switch, mini.Rerun):
        found, z = mini.enumeration(small(mini, program), frames)
        assert math.log(z) == pytest.approx(expected.log_evidence, abs=1e-12)
        assert found == pytest.approx(dict(expected.marginal()), abs=1e-12)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("less", [0.0, 0.5, 1.0])
def test_smc_is_unbiased(mini: Any, program: Callable[[Any], Any], less: float) -> None:
    """Mean Ẑ of 300 runs within 4.9 standard errors: 1e-6 false alarms a case, fixed seeds."""
    _, z = mini.enumeration(small(mini, program))
    guesses = [mini.smc(small(mini, program), 4, seed, less=less)[1] for seed in range(300)]
    assert abs(mean(guesses) - z) <= 4.9 * stdev(guesses) / math.sqrt(300) + 1e-12


@pytest.mark.parametrize("program", PROGRAMS)
def test_drivers_give_the_same_run(mini: Any, program: Callable[[Any], Any]) -> None:
    runs = [mini.smc(small(mini, program), 16, 0, 1.0, f) for f in (mini.Switch, mini.Rerun)]
    assert runs[0] == runs[1]


def test_a_program_that_is_no_function_of_its_tape_is_refused(mini: Any) -> None:
    calls: list[int] = []

    def impure() -> None:
        calls.append(1)
        mini.sample(f"x{len(calls)}", {0: 0.5, 1: 0.5})
        mini.sample("y", {0: 0.5, 1: 0.5})

    with pytest.raises(RuntimeError, match="another path on replay"):
        mini.enumeration(impure)


def test_it_is_one_page_of_manual(root: Path) -> None:
    source = (root / "examples" / "minilmppl.py").read_text()
    assert len(source.splitlines()) <= 250
    assert "from lmppl" not in source
    assert "import lmppl" not in source
