"""`Text`, the value of a string site, which remembers where its parts came from.

A `Text` is a `str` in every respect (equality, hash, formatting) that also keeps the token ids it
was drawn as, their log-probabilities, why it ended, and its **spans**: which stretch came from
which site. `+`, `*`, slices, `strip`, `split`, `replace`, `ljust`, changes of case and
`Text(sep).join` keep spans; f-strings, `"".join`, `%` and `str.format` return a plain `str` and
lose them; `lmppl.prompt("... {thought} ...", thought=thought)` keeps them exactly. Never infer
independence from missing spans: `lmppl.graphs.graph_of` finds what went where however it was
written.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

SHORT = 64
"""Texts of more tokens keep them packed."""


class Span(NamedTuple):
    """Characters `start:stop` of a text came from the site at `address`."""

    start: int
    stop: int
    address: str


Origin: TypeAlias = tuple[Sequence[int] | None, Sequence[float] | None, str | None, int | None]
"""Token ids, log p of each, why it ended, the scheme."""


class Text(str):
    """An immutable string with its tokens and its origin.

    >>> t = Text("yes", token_ids=[7], token_logprobs=[-0.5], address="answer")
    >>> t == "yes", t.log_prob, ("so " + t).spans
    (True, -0.5, (Span(start=3, stop=6, address='answer'),))
    """

    __slots__ = ("_origin", "_spans", "address")

    address: str | None
    """The site it is the value of."""
    _origin: Origin
    _spans: tuple[Span, ...] | None
    """None: the whole of it came from its site."""

    def __new__(
        cls,
        value: str = "",
        *,
        token_ids: Iterable[int] | None = None,
        token_logprobs: Iterable[float] | None = None,
        address: str | None = None,
        finish: str | None = None,
        spans: tuple[Span, ...] | None = None,
        scheme: int | None = None,
    ) -> Text:
        """Make a text; without `spans`, the whole of it came from `address`."""
        self = str.__new__(cls, value)
        ids = None if token_ids is None else array("i", token_ids)
        logps = None if token_logprobs is None else array("d", token_logprobs)
        _put_origin(self, (ids, logps, finish, scheme))
        _put_address(self, address)
        _put_spans(self, spans)
        return self

    @classmethod
    def drawn(
        cls, value: str, ids: list[int], logps: list[float], finish: str | None, scheme: int
    ) -> Text:
        """A text that a language model has just drawn; `placed` gives it its site.

        It keeps `ids` and `logps`, which nobody may change afterwards.
        """
        self = str.__new__(cls, value)
        if len(ids) <= SHORT:
            _put_origin(self, (ids, logps, finish, scheme))
        else:
            _put_origin(self, (array("i", ids), array("d", logps), finish, scheme))
        _put_address(self, None)
        _put_spans(self, None)
        return self

    @property
    def finish(self) -> str | None:
        """Why it ended: stop, eos, length, constraint."""
        return self._origin[2]

    @property
    def scheme(self) -> int | None:
        """Of the model and stop rule it was drawn under: where equal, its own tokens are scored."""
        return self._origin[3]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Which stretch came from which site."""
        spans = self._spans
        if spans is None:
            spans = (Span(0, len(self), self.address),) if self.address and self else ()
            _put_spans(self, spans)
        return spans

    @property
    def _ids(self) -> Sequence[int] | None:
        return self._origin[0]

    @property
    def _logps(self) -> Sequence[float] | None:
        return self._origin[1]

    @property
    def token_ids(self) -> NDArray[np.int32] | None:
        """The ids it was drawn as [T], its terminator included; None for a text not drawn."""
        return None if self._ids is None else _view(self._ids, np.int32)

    @property
    def token_logprobs(self) -> NDArray[np.float64] | None:
        """log p of each id under the target law [T]."""
        return None if self._logps is None else _view(self._logps, np.float64)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a text is a value."""
        raise AttributeError(f"a Text is immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        """Refuse: a text is a value."""
        raise AttributeError(f"a Text is immutable; cannot delete {name!r}")

    def __reduce__(self) -> Any:
        """Copy and pickle with everything."""
        return (
            _rebuild,
            (
                str(self),
                self._ids,
                self._logps,
                self.address,
                self.finish,
                self.spans,
                self.scheme,
            ),
        )

    def placed(self, address: str) -> Text:
        """Become the value of a site: only for a text that nobody else has seen yet."""
        _put_address(self, address)
        return self

    def at(self, address: str) -> Text:
        """The same text as the value of a site: wholly from there, as far as later prompts go."""
        return Text(
            str(self),
            token_ids=self._ids,
            token_logprobs=self._logps,
            address=address,
            finish=self.finish,
            scheme=self.scheme,
        )

    @property
    def tokens(self) -> int:
        """How many tokens it was drawn as; 0 for a text not drawn."""
        return 0 if self._ids is None else len(self._ids)

    @property
    def log_prob(self) -> float | None:
        """Σ log p of its tokens; None for a text that was not drawn."""
        return None if self._logps is None else math.fsum(self._logps)

    @property
    def complete(self) -> bool:
        """Whether it ended by itself, not by `max_tokens`."""
        return self.finish != "length"

    def __add__(self, other: str) -> Text:
        """Concatenate, keeping the spans of both."""
        if not isinstance(other, str):
            return NotImplemented
        return concat((self, other))

    def __radd__(self, other: str) -> Text:
        """Concatenate a plain string before it."""
        if not isinstance(other, str):
            return NotImplemented
        return concat((other, self))

    def __mul__(self, count: SupportsIndex) -> Text:
        """Repeat, keeping the spans of every copy."""
        return concat((self,) * count.__index__())

    __rmul__ = __mul__

    def __getitem__(self, index: SupportsIndex | slice) -> Text:
        """Slice, keeping the spans of what is left (steps of 1 only keep them)."""
        part = str.__getitem__(self, index)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return Text(part)
        else:
            start = index.__index__() % max(len(self), 1)
            stop = start + 1
        return Text(part, spans=_clip(self.spans, start, stop))

    def _cut(self, part: str, start: int) -> Text:
        return Text(part, spans=_clip(self.spans, start, start + len(part)))

    def strip(self, chars: str | None = None, /) -> Text:
        """`str.strip`, keeping spans."""
        return self._cut(str.strip(self, chars), len(self) - len(str.lstrip(self, chars)))

    def lstrip(self, chars: str | None = None, /) -> Text:
        """`str.lstrip`, keeping spans."""
        part = str.lstrip(self, chars)
        return self._cut(part, len(self) - len(part))

    def rstrip(self, chars: str | None = None, /) -> Text:
        """`str.rstrip`, keeping spans."""
        return self._cut(str.rstrip(self, chars), 0)

    def ljust(self, width: SupportsIndex, fillchar: str = " ", /) -> Text:
        """`str.ljust`, keeping spans."""
        return Text(str.ljust(self, width, fillchar), spans=self.spans)

    def rjust(self, width: SupportsIndex, fillchar: str = " ", /) -> Text:
        """`str.rjust`, keeping spans."""
        padded = str.rjust(self, width, fillchar)
        return concat((padded[: len(padded) - len(self)], self))

    def removeprefix(self, prefix: str, /) -> Text:
        """`str.removeprefix`, keeping spans."""
        part = str.removeprefix(self, prefix)
        return self._cut(part, len(self) - len(part))

    def removesuffix(self, suffix: str, /) -> Text:
        """`str.removesuffix`, keeping spans."""
        return self._cut(str.removesuffix(self, suffix), 0)

    def _pieces(self, parts: Iterable[str], gap: int = 0) -> list[str]:
        """Parts in order, each found behind the one before and the separator between them."""
        out: list[str] = []
        at = 0
        for part in parts:
            start = str.find(self, part, at)
            out.append(self._cut(part, start))
            at = start + len(part) + gap
        return out

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """`str.split`, keeping spans."""
        return self._pieces(str.split(self, sep, maxsplit), 0 if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """`str.rsplit`, keeping spans."""
        return self._pieces(str.rsplit(self, sep, maxsplit), 0 if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        """`str.splitlines`, keeping spans."""
        return self._pieces(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """`str.partition`, keeping spans."""
        a, b, c = self._pieces(str.partition(self, sep))
        return a, b, c

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """`str.rpartition`, keeping spans."""
        a, b, c = self._pieces(str.rpartition(self, sep))
        return a, b, c

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Text:
        """`str.replace`, keeping the spans of what stays, and those of `new`."""
        if not old:
            return Text(str.replace(self, old, new, count))
        rest = self.split(old, count)
        return concat(
            tuple(p for i, part in enumerate(rest) for p in ((new, part) if i else (part,)))
        )

    def join(self, parts: Iterable[str], /) -> Text:
        """`str.join`, keeping the spans of the parts: `Text(", ").join(facts)`."""
        listed = list(parts)
        return concat(tuple(p for i, s in enumerate(listed) for p in ((self, s) if i else (s,))))

    def _cased(self, changed: str) -> Text:
        return Text(changed, spans=self.spans if len(changed) == len(self) else ())

    def lower(self) -> Text:
        """`str.lower`, keeping spans where no letter becomes several."""
        return self._cased(str.lower(self))

    def upper(self) -> Text:
        """`str.upper`, keeping spans where no letter becomes several."""
        return self._cased(str.upper(self))

    def casefold(self) -> Text:
        """`str.casefold`, keeping spans where no letter becomes several."""
        return self._cased(str.casefold(self))

    def swapcase(self) -> Text:
        """`str.swapcase`, keeping spans where no letter becomes several."""
        return self._cased(str.swapcase(self))

    def capitalize(self) -> Text:
        """`str.capitalize`, keeping spans where no letter becomes several."""
        return self._cased(str.capitalize(self))

    def title(self) -> Text:
        """`str.title`, keeping spans where no letter becomes several."""
        return self._cased(str.title(self))


# Writing a slot by its descriptor is how an immutable value fills itself, and the quickest way.
_put_origin = Text._origin.__set__  # type: ignore[attr-defined]
_put_address = Text.address.__set__  # type: ignore[union-attr]
_put_spans = Text._spans.__set__  # type: ignore[union-attr]


def _view(data: Sequence[Any], dtype: Any) -> NDArray[Any]:
    view = np.array(data, dtype=dtype)
    view.setflags(write=False)
    return view


def _rebuild(
    value: str,
    ids: Any,
    logps: Any,
    address: str | None,
    finish: str | None,
    spans: tuple[Span, ...],
    scheme: int | None,
) -> Text:
    return Text(
        value,
        token_ids=ids,
        token_logprobs=logps,
        address=address,
        finish=finish,
        spans=tuple(Span(*s) for s in spans),
        scheme=scheme,
    )


def _clip(spans: tuple[Span, ...], start: int, stop: int) -> tuple[Span, ...]:
    out = []
    for s in spans:
        a, b = max(s.start, start), min(s.stop, stop)
        if a < b:
            out.append(Span(a - start, b - start, s.address))
    return tuple(out)


def concat(parts: tuple[str, ...]) -> Text:
    """Join strings, keeping the spans of those that have them."""
    spans: list[Span] = []
    at = 0
    for part in parts:
        if isinstance(part, Text):
            spans += [Span(s.start + at, s.stop + at, s.address) for s in part.spans]
        at += len(part)
    return Text("".join(map(str, parts)), spans=tuple(spans))
