r"""Rules of texts to begin with: words, beginnings and ends, lengths.

    containing("river", "lake") & ~containing("\n") & length(20, 80) & ending(".")

Reference: Aho and Corasick, Efficient string matching (1975), for words.
"""

from __future__ import annotations

import numpy as np

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.texts import TextAutomaton, fewest
from lmppl.types import Bools, Ints

SPACES = b" \t\n\r\x0b\x0c"
"""Bytes between words."""


def containing(*words: str) -> TextAutomaton:
    """Texts in which one of the words stands somewhere.

    A state is how much of a word has just been read: there are as many as letters in the words, or less.

    >>> containing("he", "she")("ashes"), (~containing("he", "she"))("ashes")
    (True, False)
    """
    table, found = _read(words)
    table[found] = np.flatnonzero(found)[:, None]
    return fewest(table, found[:, None])


def starting(*words: str) -> TextAutomaton:
    """Texts that begin with one of the words.

    >>> starting("Dear ")("Dear all"), starting("Dear ")("My dear")
    (True, False)
    """
    nodes, whole = _tree(words)
    S = len(nodes)
    table = np.full((S + 1, 256), S)
    for node, children in enumerate(nodes):
        table[node, list(children)] = list(children.values())
    table[whole] = np.array(whole)[:, None]
    return fewest(table, np.isin(np.arange(S + 1), whole)[:, None])


def ending(*words: str) -> TextAutomaton:
    """Texts that end with one of the words: the text after a gap that is to be filled, for one.

    >>> ending(".", "!")("Stop!"), ending(".", "!")("Stop! Now")
    (True, False)
    """
    table, found = _read(words)
    return fewest(table, found[:, None])


def length(least: int = 0, most: int | None = None) -> TextAutomaton:
    """Texts of so many characters.

    >>> length(2, 3)("né"), length(2, 3)("n"), length(2)("nées")
    (True, False, True)
    """
    inside = (np.arange(256) & 0xC0) == 0x80  # of a character, not its first byte
    return _counted(~inside[None], np.zeros(256, dtype=np.int64), "length", least, most)


def words(least: int = 0, most: int | None = None) -> TextAutomaton:
    """Texts of so many words: what spaces and line ends separate.

    >>> words(2, 2)(" so it "), words(2, 2)("so")
    (True, False)
    """
    letter = ~np.isin(np.arange(256), list(SPACES))
    begins = np.stack([letter, np.zeros(256, dtype=bool)])  # a letter behind a space, or at first
    return _counted(begins, letter.astype(np.int64), "words", least, most)


def _tree(words: tuple[str, ...]) -> tuple[list[dict[int, int]], list[int]]:
    """The tree of the words: the children of its nodes by byte, and the nodes of whole words."""
    if not words or not all(words):
        raise BadArgument(
            "every text contains the empty word", fix="give words of at least one character"
        )
    nodes: list[dict[int, int]] = [{}]
    whole = []
    for word in words:
        at = 0
        for byte in word.encode():
            at = nodes[at].setdefault(byte, len(nodes))
            if at == len(nodes):
                nodes.append({})
        whole.append(at)
    return nodes, whole


def _read(words: tuple[str, ...]) -> tuple[Ints, Bools]:
    """The longest beginning of a word at the end of what was read, and whether it holds a word."""
    nodes, whole = _tree(words)
    table = np.zeros((len(nodes), 256), dtype=np.int64)
    found = np.isin(np.arange(len(nodes)), whole)
    shorter = [0] * len(nodes)  # the longest other beginning that is an end of this one
    waiting = [0]
    for node in waiting:
        table[node] = table[shorter[node]]
        found[node] |= found[shorter[node]]
        for byte, child in nodes[node].items():
            shorter[child] = int(table[node, byte]) if node else 0
            table[node, byte] = child
            waiting.append(child)
    return table, found


def _counted(counts: Bools, kind: Ints, caller: str, least: int, most: int | None) -> TextAutomaton:
    """Texts so many of whose bytes count; whether one does depends on the byte before.

    Args:
        counts: whether a byte counts behind one of each kind [K, 256].
        kind: the kind of each byte; a text begins as behind one of kind 0 [256].
        caller: who asks.
        least: the smallest number.
        most: the largest; None: any.
    """
    check_integers(caller, 0, least=least)
    if most is not None:
        check_integers(caller, least, most=most)
    top = least if most is None else most + 1
    number = np.minimum(np.arange(top + 1)[:, None, None] + counts, top)  # [top + 1, K, 256]
    holds = np.repeat(np.arange(top + 1), len(counts)) >= least
    if most is not None:
        holds[-len(counts) :] = False
    return fewest((number * len(counts) + kind).reshape(-1, 256), holds[:, None])
