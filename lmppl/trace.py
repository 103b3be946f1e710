"""What happened in a run: tape entries, and the `Trace` that users read.

A tape is an immutable, persistent linked list of `Entry`s, newest first: a particle forks by
copying one reference. A finished `loop` iteration, `call` or `plate` is one entry that keeps its
inner entries in `inside`, so that replay skips them while the trace still lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lmppl.weights import total

RANDOM = ("sample", "observe", "factor")
"""Operations that carry weight."""


class Entry(NamedTuple):
    """One recorded site; two entries are equal only if they are the same one.

    The weight of a run is Σ `logw`: log p - log q for a sample, log p for an observation, the
    number itself for a factor, 0 for everything else.
    """

    prev: Entry | None
    """The one before."""
    op: str
    address: str
    value: Any
    logp: float = 0.0
    logq: float = 0.0
    logw: float = 0.0
    fingerprint: int = 0
    """Of what the program asked: the same on replay."""
    inside: Any = None
    """The newest of the entries that it stands for."""
    note: Any = None

    def __eq__(self, other: object) -> bool:
        """Identity: a tuple would compare the whole tape."""
        return self is other

    def __ne__(self, other: object) -> bool:
        """Identity."""
        return self is not other

    def __hash__(self) -> int:
        """Of the object."""
        return object.__hash__(self)

    def __repr__(self) -> str:
        return f"{self.op} {self.address} = {self.value!r:.60} (log p {self.logp:.4g})"


def tape(head: Entry | None) -> list[Entry]:
    """The entries that replay reads, oldest first: folded ones are one entry each."""
    out = []
    while head is not None:
        out.append(head)
        head = head.prev
    out.reverse()
    return out


def entries(head: Entry | None) -> list[Entry]:
    """All entries, oldest first, the inner ones of loops, calls and plates in their place."""
    out: list[Entry] = []
    stack: list[tuple[Entry | None, Entry | None]] = [(head, None)]  # (newest, first not included)
    while stack:
        node, stop = stack.pop()
        while node is not None and node is not stop:
            inside = node.inside
            if inside is None:
                if node.op not in ("loop", "plate"):  # one without a site inside
                    out.append(node)
                node = node.prev
                continue
            stack.append((node.prev, stop))
            if node.op == "plate":
                # branches in index order: the last one is listed first, since all is reversed
                stack.extend((branch, None) for branch in inside)
                break
            if node.op != "loop":
                out.append(node)
            stack.append((inside, node.prev))
            break
    out.reverse()
    return out


class SoFar(str):
    """A text as far as it has been drawn.

    >>> text = SoFar("3 app", finished=False)
    >>> text.endswith("app"), text.finished
    (True, False)
    """

    __slots__ = ("finished", "token_ids")

    finished: bool
    """Whether it has come to its end."""
    token_ids: tuple[int, ...] | None
    """Its tokens, where it was drawn as tokens."""

    def __new__(
        cls, value: str, *, finished: bool, token_ids: Iterable[int] | None = None
    ) -> SoFar:
        """Keep the text and its state."""
        self = str.__new__(cls, value)
        self.finished = finished
        self.token_ids = None if token_ids is None else tuple(token_ids)
        return self


class Trace(Mapping[str, Any]):
    """The record of one run, by address: `trace["thought"]` is a value.

    A guide also sees what is half drawn: `trace.so_far("thought")` is the text up to now.

    >>> t = Trace.of(Entry(None, "sample", "x", 3, logp=-1.0), result=3)
    >>> t["x"], t.log_joint, list(t)
    (3, -1.0, ['x'])
    """

    __slots__ = ("_by_address", "_head", "_sites", "partial", "result", "writers")

    def __init__(self, head: Entry | None, result: Any = None) -> None:
        """Keep the tape; the index is built when first read."""
        self._head = head
        self.result = result
        """What the program returned."""
        self.partial: dict[str, Any] = {}
        """Strings that are being drawn, by address, for guides: states with `ids` and `logps`."""
        self.writers: dict[str, Any] = {}
        """The language models that draw them."""
        self._sites: list[Entry] | None = None
        self._by_address: dict[str, Entry] | None = None

    @classmethod
    def of(cls, head: Entry | None, result: Any = None) -> Trace:
        """The trace of a tape."""
        return cls(head, result)

    @property
    def sites(self) -> list[Entry]:
        """All entries in order."""
        if self._sites is None:
            self._sites = entries(self._head)
        return self._sites

    def put(self, sites: list[Entry]) -> None:
        """Replace the entries that its tape has, where some stand on the tapes of plate branches."""
        self._sites = sites

    def so_far(self, address: str) -> SoFar:
        """The text of a site up to now: whole, half drawn, or empty before its first token.

        Raises:
            KeyError: the site has no value and is not being drawn.
        """
        state = self.partial.get(address)
        if state is not None:
            text = self.writers[address].decode(state.ids) if state.ids else ""
            return SoFar(text, finished=False, token_ids=state.ids)
        value = self._index[address].value
        ids = getattr(value, "token_ids", None)
        return SoFar(str(value), finished=True, token_ids=None if ids is None else ids.tolist())

    @property
    def _index(self) -> dict[str, Entry]:
        if self._by_address is None:
            self._by_address = {e.address: e for e in self.sites if e.op != "jobs"}
        return self._by_address

    def site(self, address: str) -> Entry:
        """The whole entry of a site."""
        return self._index[address]

    def __getitem__(self, address: str) -> Any:
        return self._index[address].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def log_joint(self) -> float:
        """log γ(trace) = Σ log p of samples and observations + Σ factors."""
        return total(e.logw if e.op == "factor" else e.logp for e in self.sites if e.op in RANDOM)

    @property
    def log_weight(self) -> float:
        """Σ log-weights: log γ - log q."""
        return total(e.logw for e in self.sites)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{a}={e.value!r:.40}" for a, e in self._index.items() if e.op != "factor"
        )
        return f"Trace({shown})"

    def _repr_html_(self) -> str:
        from lmppl.html import table

        rows = [
            (e.op, e.address, e.value, f"{e.logp:.4g}", f"{e.logw:.4g}")
            for e in self.sites
            if e.op != "jobs"
        ]
        return table(("op", "site", "value", "log p", "log w"), rows)
