"""A tiny torch model taught by the same callback as a table."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl import LM, Choice, observe, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import Enumerate, infer  # noqa: E402
from lmppl.inference.learning import WeightedText, em, refit  # noqa: E402
from lmppl.inference.learning.torch_train import TrainableLM, Training  # noqa: E402

HOW = Training(epochs=60, rate=1e-2)


@program
def clue(question: str, answer: str) -> str:
    """A latent word between question and answer."""
    word = sample("word", Choice(f"{question}:", ["x", "y"]))
    observe("answer", LM(f"{question}:{word}=", max_tokens=1, end=False), answer)
    return str(word)


DATA = [("a", "1"), ("b", "2"), ("c", "1"), ("d", "2")]


@pytest.fixture(scope="module")
def lm() -> TrainableLM:
    return TrainableLM.tiny(hidden=16, layers=1, training=HOW)


def test_em_teaches_a_torch_model(lm: TrainableLM) -> None:
    """From chance (1/257 for each answer) to nearly sure, by `refit`."""
    fit = em(clue, DATA, engine=Enumerate(), lm=lm, rounds=2, m_step=refit)
    assert fit.log_evidence[0] < 4 * math.log(1 / 100)
    assert fit.log_evidence[-1] > 4 * math.log(0.5)
    assert isinstance(fit.lm, TrainableLM) and fit.lm is not lm
    assert fit.lm.losses[-1] < fit.lm.losses[0]
    # the model that started is as it was
    again = em(clue, DATA, engine=Enumerate(), lm=lm, rounds=0)
    assert again.log_evidence[0] == pytest.approx(fit.log_evidence[0], abs=1e-4)


def test_the_loss_is_the_weighted_likelihood(lm: TrainableLM) -> None:
    """The trainer's loss is what `score` says, texts with an end and without one."""
    whole, part = LM("q", stop=";", max_tokens=8), LM("pp", max_tokens=9, end=False)
    texts = [
        WeightedText("q", "no", 0.75, law=whole, value="no"),
        WeightedText("pp", "yes", 0.25, law=part, value="yes"),
    ]

    @program
    def scored(law: Any, text: str) -> None:
        observe("text", law, text)

    logps = [
        infer(scored, law, text, engine=Enumerate(), lm=lm).log_evidence
        for law, text in ((whole, "no"), (part, "yes"))
    ]
    assert lm.loss(texts) == pytest.approx(-(0.75 * logps[0] + 0.25 * logps[1]), abs=1e-4)


def test_weights_count(lm: TrainableLM) -> None:
    """Trained on 3 : 1, it says 3 : 1; a text of weight 0 is not there."""
    law = LM("t", max_tokens=1, end=False)
    texts = [WeightedText("t", w, p, law=law, value=w) for w, p in (("u", 3.0), ("v", 1.0), ("w", 0.0))]  # fmt: skip
    taught = lm.fit(texts)
    rows = taught.open([taught.context("t")])
    p = {w: math.exp(rows.log_probs()[0][taught.spell(w)[0]]) for w in "uvw"}
    rows.close()
    assert p["u"] == pytest.approx(0.75, abs=0.06) and p["v"] == pytest.approx(0.25, abs=0.06)
    assert p["w"] < 0.02
    with pytest.raises(BadArgument, match="no text with positive weight"):
        lm.fit([texts[2]])
    with pytest.raises(BadArgument, match="epochs"):
        Training(epochs=0)
