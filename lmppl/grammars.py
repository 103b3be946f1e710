"""Which texts a string may be: a regular expression, JSON of a schema, a Lark grammar, a list.

    LM(prompt, regex=r"[0-9]+")
    LM(prompt, json_schema={"type": "integer"})       a dict, its JSON text, or a pydantic class
    LM(prompt, grammar='start: "a" start "b" | ""')   Lark, as llguidance reads it
    LM(prompt, choices=["red", "green"])

A `Grammar` is the checked form of these arguments: plain text that can be compared and hashed, made
into an automaton once per model by `lmppl.constraints.Constraint`. `Matches(grammar)` of
`lmppl.tokens` is the same thing as a potential, for products.

JSON is spaced as Python's `json.dumps` does it, `{"a": 1, "b": [2, 3]}`: one spelling of each value.
The key "x-guidance" of a schema changes that; `{"whitespace_flexible": true}` allows any spacing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmppl.errors import BadArgument, excerpt, items_of

OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Every tokenisation of a match is allowed: forced bytes are not narrowed to one token."""
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
META = re.compile(r"[\\.+*?()|\[\]{}^$]")


class Grammar(NamedTuple):
    r"""A set of texts.

    >>> Grammar.choices(["a.", "b"]).source
    'a\\.|b'
    """

    kind: str
    """"regex", "json_schema", "grammar" or "choices": the argument that it was given by."""
    source: str
    """The expression (of choices too), the schema's JSON, or the Lark text."""

    @staticmethod
    def regex(expression: str) -> Grammar:
        """The matches of an expression in the syntax of Rust's regex crate."""
        return Grammar("regex", expression)

    @staticmethod
    def choices(texts: Sequence[str]) -> Grammar:
        """One of these texts."""
        fix = 'write choices=["yes", "no"]'
        found = items_of(texts, "choices must be a list of texts", fix)
        if not found or any(not isinstance(t, str) or not t for t in found):
            raise BadArgument(
                "choices must be non-empty texts, at least one", value=excerpt(texts), fix=fix
            )
        return Grammar("choices", "|".join(map(literal, dict.fromkeys(found))))

    @staticmethod
    def json_schema(schema: Any) -> Grammar:
        """JSON of a schema: a mapping, its JSON text, True for any value, or a pydantic class."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except json.JSONDecodeError as error:
                raise BadArgument(
                    "json_schema is text, but not JSON",
                    value=excerpt(schema),
                    why=str(error),
                    fix="give a dict, or the schema as JSON text",
                ) from None
        elif isinstance(schema, type) and hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise BadArgument(
                f"json_schema must be a mapping, got {type(schema).__name__}",
                value=excerpt(schema),
                fix='write json_schema={"type": "object", "properties": {...}} or a pydantic class',
            )
        own = schema.get("x-guidance", {})
        try:
            text = json.dumps({**schema, "x-guidance": {**SPACING, **own}})
        except TypeError as error:
            raise BadArgument(
                "json_schema holds something that is not JSON",
                value=excerpt(schema),
                why=str(error),
            ) from None
        return Grammar("json_schema", text)

    @staticmethod
    def lark(text: str) -> Grammar:
        """The language of `start` in Lark syntax (llguidance's dialect)."""
        if not isinstance(text, str):
            raise BadArgument(
                f"grammar must be text, got {type(text).__name__}",
                value=excerpt(text),
                fix='write grammar=\'start: "a" start "b" | ""\'',
            )
        return Grammar("grammar", text)

    @property
    def regular(self) -> bool:
        """Whether `source` is a regular expression."""
        return self.kind in ("regex", "choices")

    def compiled(self, stop: tuple[str, ...] = ()) -> str:
        """For llguidance, followed by one of `stop` when it is given."""
        ends = tuple(map(literal, stop))
        if self.regular:
            whole = f"(?:{self.source})(?:{'|'.join(ends)})" if stop else self.source
            return _joined([f"start: {_slashed(whole)}"])
        inner = f"start: %json {self.source}" if self.kind == "json_schema" else self.source
        if not stop:
            return _joined([inner])
        return _joined([f"start: @inner {_slashed('|'.join(ends))}", inner])

    def __str__(self) -> str:
        return f"{self.kind} {excerpt(self.source)}"


def literal(text: str) -> str:
    """An expression that matches a text alone."""
    return META.sub(lambda m: "\\" + m[0], text)


def _slashed(expression: str) -> str:
    """An expression as a terminal of a Lark grammar, on one line."""
    from llguidance import LLMatcher

    found = json.loads(LLMatcher.grammar_from_regex(expression))["grammars"][0]["lark_grammar"]
    return str(found).removeprefix("start: ")


def _joined(grammars: Sequence[str]) -> str:
    """The first grammar; it calls the second one "@inner"."""
    named = [{"lark_grammar": OPTIONS + text} for text in grammars]
    for one in named[1:]:
        one["name"] = "inner"
    return json.dumps({"grammars": named})


def grammar_of(
    regex: Any = None, json_schema: Any = None, grammar: Any = None, choices: Any = None
) -> Grammar | None:
    """The one that is given, or None.

    Raises:
        BadArgument: several are given, or it is not of the right type.
    """
    if json_schema is None and grammar is None and choices is None:
        if regex is None or isinstance(regex, Grammar):
            return regex
        if not isinstance(regex, str):
            raise BadArgument(
                f"regex must be text, got {type(regex).__name__}", fix='write regex=r"[0-9]+"'
            )
        return Grammar("regex", regex)
    named = {"regex": regex, "json_schema": json_schema, "grammar": grammar, "choices": choices}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise BadArgument(
            f"a string takes one of {' and '.join(given)}",
            fix="for both at once, give the second one as potential=Matches(...) of lmppl.tokens",
        )
    if json_schema is not None:
        return Grammar.json_schema(json_schema)
    if choices is not None:
        return Grammar.choices(choices)
    return grammar if isinstance(grammar, Grammar) else Grammar.lark(grammar)
