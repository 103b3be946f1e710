"""`infer_many(progress=True)`: a bar on the standard error, and nothing else differs."""

from __future__ import annotations

from typing import Any

import pytest

from lmppl import Bernoulli, program, sample
from lmppl.inference import Forward, infer_many


@program
def coin(p: float) -> Any:
    return sample("x", Bernoulli(p))


def test_a_bar_of_questions(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = infer_many(coin, [0.2, 0.7, 0.9], engine=Forward(5))
    assert capsys.readouterr().err == ""
    shown = infer_many(coin, [0.2, 0.7, 0.9], engine=Forward(5), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "questions" in err and "100%" in err
    assert [p.values() for p in shown] == [p.values() for p in quiet]


def test_errors_are_raised_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="Bernoulli needs a probability"):
        infer_many(coin, [0.2, 2.0, 0.9], engine=Forward(5), progress=True)
    assert "100%" in capsys.readouterr().err
