"""`prompt`: a template filled so that every part keeps the site that it came from."""

from __future__ import annotations

import string

from lmppl.errors import BadArgument, excerpt
from lmppl.text import Text, concat


def prompt(template: str, /, **values: object) -> Text:
    r"""Fill `{name}` fields of a template and keep which site each part came from.

    Only plain names are fields; `{{` and `}}` are literal braces. Values are inserted as they are:
    braces inside them mean nothing. Numbers and other values are shown by `str`.

    Raises:
        BadArgument: a field without a value, a value without a field, or a field that is not a
            plain name.

    >>> prompt("Q: {q} A:", q=Text("why?", address="question")).spans
    (Span(start=3, stop=7, address='question'),)
    """
    parts: list[str] = []
    used = set()
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadArgument(
            f"prompt template: {error}",
            value=excerpt(template),
            fix="write {{ and }} for literal braces",
        ) from None
    for literal, name, spec, conversion in fields:
        parts.append(literal)
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise BadArgument(
                f"prompt field {{{name}}} is not a plain name",
                value=excerpt(template),
                fix="format the value first and pass it by a name; write {{ and }} for literal braces",
            )
        if name not in values:
            raise BadArgument(
                f"prompt field {{{name}}} has no value",
                value=excerpt(template),
                fix=f"pass {name}=..., or write {{{{{name}}}}} for literal braces",
            )
        used.add(name)
        value = values[name]
        parts.append(value if isinstance(value, str) else str(value))
    if unused := sorted(set(values) - used):
        raise BadArgument(
            f"prompt values {', '.join(unused)} have no field",
            value=excerpt(template),
            fix=f"write {{{unused[0]}}} in the template, or leave the value out",
        )
    return concat(tuple(parts))
