"""`ResultRecord`: one result of `lmppl run`, one JSON object a line.

The file is an interface: other tools read it. Numbers that are not finite are `{"$f": "nan"}`,
`{"$f": "inf"}` and `{"$f": "-inf"}` (`lmppl.plainjson`). pydantic is imported by this file alone.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from lmppl.plainjson import decode_float, encode_float, readable

Number = Annotated[
    float, BeforeValidator(decode_float), PlainSerializer(encode_float, return_type=Any)
]
"""A float; see `encode_float`."""

Value = Annotated[Any, PlainSerializer(readable, return_type=Any)]
"""A value of a program, as plain JSON."""


class ResultRecord(BaseModel):
    """What one engine answered to one question.

    >>> record = ResultRecord(id="q1", program="p", engine="SMC(16)", answer="7", gold="7")
    >>> record.model_dump(mode="json")["log_evidence"] is None
    True
    """

    model_config = ConfigDict(extra="allow")

    id: str | int
    """Of the question; the same in the runs of several engines, which are compared by it."""
    program: str
    engine: str
    question: Value = None
    """What was asked: a text, or the object of the data file."""
    answer: Value = None
    """The most probable one; None when there was an error."""
    gold: Value = None
    """The right answer, when the data has one."""
    correct: bool | None = None
    """None when there is no gold answer."""
    posterior: list[tuple[Value, Number, Number]] = Field(default_factory=list)
    """(value, probability, standard error), most probable first."""
    log_evidence: Number | None = None
    log_evidence_se: Number | None = None
    ess: Number | None = None
    particles: int = 0
    unique_ancestors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: Number = 0.0
    seed: int | None = None
    warnings: list[str] = Field(default_factory=list)
    error: str | None = None
    """Message of the error that ended this question."""
