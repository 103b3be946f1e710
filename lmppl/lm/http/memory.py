"""Answers that were paid for, by what was asked: a request that failed beside them costs them not.

The key of an answer is the whole `Ask`: the prompt, every setting, and the seed, which is a function
of the draw (run seed, question, lineage, site, token). So N draws after one prompt are N entries,
never one; only a draw that is repeated, as on resume or after a failed batch, finds itself.

In memory the last few thousand are kept; with a file, all of them (SQLite), and a later process
with the same seeds pays nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

from lmppl.errors import BadArgument
from lmppl.lm.http.dialects import Ask, Reply

KEPT = 4096
WIDE = 1000
"""Answers with more log-probabilities are not kept: rows of a vocabulary have a place of their own."""


class Memory:
    """Answers by `Ask`.

    Args:
        model: what the answers are of: server kind, model, vocabulary.
        file: a SQLite file to keep them in; None keeps them in memory only.
    """

    def __init__(self, model: str, file: str | Path | None = None) -> None:
        """Open the file."""
        self._model = model
        self._near: OrderedDict[Ask, Reply] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self._db: sqlite3.Connection | None = None
        if file is None:
            return
        try:
            self._db = sqlite3.connect(str(file), check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT)"
            )
        except sqlite3.Error as error:
            raise BadArgument(
                f"the cache {file} cannot be used: {error}", fix="name another file as cache="
            ) from None

    def get(self, ask: Ask) -> Reply | None:
        """The answer, if it is known."""
        with self._lock:
            found = self._near.get(ask)
            if found is None and self._db is not None:
                row = self._db.execute(
                    "SELECT reply FROM replies WHERE key = ?", (self._key(ask),)
                ).fetchone()
                found = None if row is None else _decode(row[0])
            self.hits += found is not None
            return found

    def put(self, pairs: Iterable[tuple[Ask, Reply]]) -> None:
        """Keep answers; on the disk when this returns."""
        with self._lock:
            rows = []
            for ask, reply in pairs:
                if sum(map(len, reply.tops)) > WIDE:
                    continue
                self._near[ask] = reply
                rows.append((self._key(ask), _encode(reply)) if self._db is not None else ())
            while len(self._near) > KEPT:
                self._near.popitem(last=False)
            if self._db is not None and rows:
                with self._db:
                    self._db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _key(self, ask: Ask) -> bytes:
        text = repr((self._model, astuple(ask)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _encode(reply: Reply) -> str:
    return json.dumps([*reply[:3], [list(t.items()) for t in reply.tops], *reply[4:]])


def _decode(text: str) -> Reply:
    tokens, logps, why, tops, scored, said, cached, gaps = json.loads(text)
    return Reply(
        tuple(tokens),
        tuple(logps),
        why,
        tuple({int(i): x for i, x in t} for t in tops),
        tuple(scored),
        said,
        cached,
        tuple(gaps),
    )
