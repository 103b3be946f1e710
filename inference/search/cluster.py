"""Small clustering of texts: TF-IDF and k-means, for agreement among a few completions.

References: Spärck Jones (1972) for inverse document frequency; Lloyd (1982). The centres start at the
points that are furthest from those before (Gonzalez, 1985), so that the result is a function of the
texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lmppl.types import Floats, Ints

ROUNDS = 25


def tfidf(texts: Sequence[str]) -> Floats:
    """A unit row per text [N, words]; texts without blanks are taken by their characters."""
    bags = [Counter(t.lower().split() if " " in t.strip() else list(t)) for t in texts]
    words = sorted(set().union(*bags))
    rows = np.array([[bag[w] for w in words] for bag in bags], dtype=np.float64)
    rows = rows.reshape(len(texts), len(words))
    document = (rows > 0).sum(axis=0)
    rows = rows * (np.log((1 + len(texts)) / (1 + document)) + 1.0)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0), dtype=np.float64)


def kmeans(points: Floats, k: int) -> Ints:
    """The cluster of each point [N]; at most k of them, fewer where points are equal.

    >>> kmeans(np.array([[0.0], [0.1], [5.0]]), 2).tolist()
    [0, 0, 1]
    """
    n = len(points)
    first = int(np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1)))
    centres = [points[first]]
    nearest = ((points - centres[0]) ** 2).sum(axis=1)
    while len(centres) < min(k, n) and nearest.max() > 1e-12:
        centres.append(points[int(np.argmax(nearest))])
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(axis=1))
    middle = np.array(centres)
    labels = np.zeros(n, dtype=np.int64)
    for _ in range(ROUNDS):
        distance = ((points[:, None, :] - middle[None]) ** 2).sum(axis=2)
        new = distance.argmin(axis=1)
        if (new == labels).all() and _ > 0:
            break
        labels = new
        for c in range(len(middle)):
            if (labels == c).any():
                middle[c] = points[labels == c].mean(axis=0)
    return labels.astype(np.int64)


def shares(texts: Sequence[str], k: int) -> tuple[Ints, Floats]:
    """The cluster of each text, and the share of all texts that its cluster has."""
    labels = kmeans(tfidf(texts), k)
    share = np.bincount(labels, minlength=k) / len(texts)
    return labels, np.asarray(share[labels], dtype=np.float64)
