"""What a model cannot give is refused before anything is sent: at `infer`, or at the first site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lmppl import LM, Choice, observe, plate, program, sample
from lmppl import handlers as H
from lmppl.errors import BadArgument, CapabilityError
from lmppl.inference import (
    SMC,
    Block,
    Engine,
    Forward,
    Importance,
    MetropolisHastings,
    ParallelTempering,
    ParticleGibbs,
    ParticleMarginalMH,
    SingleSite,
    Suffix,
    infer,
    infer_many,
    tokens,
)
from lmppl.lm.base import Capabilities
from lmppl.lm.needs import NAMES, declared
from lmppl.lm.table import TableLM

TOY = TableLM.random(["a", "b", ".", "<eos>"], seed=3, name="toy")


def poor(**lacks: Any) -> TableLM:
    """A table that declares less than it can."""
    lm = TableLM.random(["a", "b", ".", "<eos>"], seed=3, name="poor")
    lm.capabilities = Capabilities(empty_context=True, **lacks)
    return lm


def test_needs_are_names_of_capabilities() -> None:
    assert "masks" in NAMES and "token_ids" in NAMES
    assert declared(("masks", "full_rows")) == {None: ("masks", "full_rows")}
    assert declared({"judge": "scores_text", "default": ()}) == {"judge": ("scores_text",)}
    with pytest.raises(BadArgument, match="no language model has the capability 'mask'"):
        program(needs="mask")(lambda: 0)


def test_what_a_program_declares_is_asked_of_its_models_at_infer() -> None:
    ran = []

    @program(needs={"judge": "masks"})
    def model() -> None:
        ran.append(1)
        sample("x", LM("a", max_tokens=2))
        sample("y", LM("a", regex="a", max_tokens=2, lm="judge"))

    lm = poor(masks=False)
    engine = Importance(2)
    assert len(infer(model, engine=engine, lm={"default": lm, "judge": TOY}))
    ran.clear()
    lm.usage.passes = 0
    with pytest.raises(CapabilityError, match="<program .*model> needs masks of 'poor'"):
        infer(model, engine=engine, lm={"default": TOY, "judge": lm})
    with pytest.raises(CapabilityError, match="masks"):
        infer(H.condition(model, {"x": "a"}), engine=engine, lm={"default": TOY, "judge": lm})
    with pytest.raises(CapabilityError, match="masks"):
        infer_many(model, [(), ()], engine=engine, lm={"default": TOY, "judge": lm})
    assert not ran and not lm.usage.passes
    assert len(
        infer(program(needs="masks")(model.fn), engine=engine, lm={"default": TOY, "judge": TOY})
    )


def test_a_model_that_a_site_holds_itself_is_asked_there() -> None:
    lm = poor(logprobs="none")
    with pytest.raises(CapabilityError, match="LM needs logprobs of 'poor'"):
        infer(lambda: sample("x", LM("a", max_tokens=2, lm=lm)), engine=SMC(2))
    assert not lm.usage.passes
    assert len(infer(lambda: sample("x", LM("a", max_tokens=2, lm=lm)), engine=Forward(2))) == 2


@program
def again(trace: Any) -> None:
    """Proposes the string anew."""
    sample("x", LM("b", max_tokens=2))


@pytest.mark.parametrize(
    ("engine", "need"),
    [
        (MetropolisHastings(4, proposal=Block(again)), "scores_text"),
        (SMC(4, rejuvenate=Block(again)), "scores_text"),
        (ParticleGibbs(4, sweeps=2, ancestor_sampling=True), "scores_text"),
        (SMC(4, resample_at=tokens(2)), "token_ids"),
        (ParticleGibbs(4, sweeps=2, resample_at=tokens(2)), "token_ids"),
        (ParallelTempering(sweeps=2, resample_at=tokens(2)), "token_ids"),
        (ParticleMarginalMH(["x"], steps=2, resample_at=tokens(2)), "token_ids"),
    ],
)
def test_what_an_engine_will_ask_is_known_at_once(engine: Engine, need: str) -> None:
    lm = poor(**{need: False})
    with pytest.raises(CapabilityError, match=f"{type(engine).__name__} needs {need}"):
        infer(lambda: sample("x", LM("a", max_tokens=2)), engine=engine, lm=lm)
    assert not lm.usage.passes


@pytest.mark.parametrize(
    "engine",
    [
        SMC(4),
        ParticleGibbs(4, sweeps=2),
        ParallelTempering(sweeps=2),
        Forward(2),
        MetropolisHastings(4),
        MetropolisHastings(4, proposal=Suffix()),
        SMC(4, rejuvenate=SingleSite()),
    ],
)
def test_other_settings_ask_for_less(engine: Engine) -> None:
    lm = poor(scores_text=False, token_ids=False)
    assert len(infer(lambda: sample("x", LM("a", max_tokens=2)), engine=engine, lm=lm))


@pytest.fixture
def served(http_stub: ModuleType) -> Iterator[Any]:
    """`served(**options)`: a stub without whole rows and a client of it; both end with the test."""
    pytest.importorskip("httpx2")
    from lmppl.lm.http import HTTPLM

    with contextlib.ExitStack() as stack:

        def make(kind: str = "vllm", **options: Any) -> tuple[Any, Any]:
            stub = stack.enter_context(http_stub.Stub(TOY, kind, rows=False, **options).serve())
            client = HTTPLM(stub.address, tokenizer=TOY)
            stack.callback(client.close)
            return stub, client

        yield make


def test_a_forced_end_whose_mass_is_not_to_be_had_is_refused_before_its_string(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, lm = served()
    law = LM("ab", stop=".", limit="eos", max_tokens=2)  # ends by "." or end-of-text
    assert len(infer(lambda: sample("x", law), engine=Importance(2), lm=lm)) == 2
    monkeypatch.setattr(type(lm.dialect), "most_ids", 0)
    before = stub.drawn
    with pytest.raises(CapabilityError, match="2 tokens"):
        infer(lambda: sample("x", law), engine=Importance(3), lm=lm)
    assert stub.drawn == before


def test_a_site_that_cannot_be_answered_stops_the_batch_of_its_neighbours(served: Any) -> None:
    stub, lm = served()
    warm = LM("ab", max_tokens=2).tempered(0.5)

    def asking(law: Any) -> Any:
        def branch(n: int) -> None:
            if n:
                observe("seen", law, "a")
            else:
                sample("x", LM("ab", max_tokens=2))

        return lambda: plate("p", [0, 1], branch)

    before = stub.drawn
    for law in (warm, LM("ab", potential=lambda text: 0.0)):
        with pytest.raises(CapabilityError, match="full_rows"):
            infer(asking(law), engine=Importance(2), lm=lm)
    assert stub.drawn == before
    assert len(infer(asking(LM("ab", max_tokens=2)), engine=Importance(2), lm=lm)) == 2


def test_a_server_without_scoring_refuses_options_and_forced_ends(served: Any) -> None:
    stub, lm = served(scores=False)
    assert not lm.capabilities.scores_text and lm.capabilities.token_ids
    before = stub.drawn
    with pytest.raises(CapabilityError, match="scores_text"):
        infer(lambda: sample("x", Choice("a", ["a", "b"])), engine=Importance(2), lm=lm)
    with pytest.raises(CapabilityError, match="full_rows"):
        law = LM("ab", limit="eos", max_tokens=2)
        infer(lambda: sample("x", law), engine=Importance(2), lm=lm)
    assert stub.drawn == before


def test_a_server_of_texts_declares_no_token_ids(served: Any) -> None:
    _, lm = served("openai")
    assert not lm.capabilities.token_ids and lm.capabilities.logprobs == "none"


def test_models_by_name_are_asked_when_they_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "toy.json"
    file.write_text('{"tokens": ["a", "b", "<eos>"], "table": {"": [0.4, 0.4, 0.2]}}', "utf-8")
    law = LM("a", max_tokens=2, lm=f"table:{file}")
    good = program(needs="masks")(lambda: sample("x", law))
    assert len(infer(good, engine=Importance(2))) == 2
    bad = program(needs="batch_invariant")(lambda: sample("x", law))
    from lmppl.lm.load import shared

    shared(f"table:{file}").capabilities = Capabilities(batch_invariant=False, empty_context=True)
    with pytest.raises(CapabilityError, match="batch_invariant"):
        infer(bad, engine=Importance(2))
