"""The landscape of thoughts: how far every state of a reasoning is from every answer, and a map of it.

A state is a partial trace (a node of the forest of thoughts). Its distances to the answers are

    d_k(s) = -log P(answer k | s), divided by their sum over k

where P is, without any further model call, the share of the particles' weight that goes on from s
to k, drawn towards the posterior by one effective particle:

    P(k | s) = (mass_k(s) + α W_k) / (mass(s) + α)        α = 1 / ESS

or, with `by_model(lm, prompt)`, log p of the answer's text under a language model, per token. Along
a trajectory of T sites, over the particles and by weight:

    consistency(τ)   share whose nearest answer at τ T is the one that they end at
    uncertainty(τ)   mean entropy of P(· | s), in bits
    perplexity(τ)    exp(-log p per token) of the texts drawn there

The map is t-SNE of the distances, or their two first principal components; the answers stand in it
as states that are at distance 0 from themselves.

Reference: Zhou et al., Landscape of Thoughts (2025), who take exp(-log p per token) for the
distance; t-SNE: van der Maaten and Hinton (2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.view.bands import named_answers
from lmppl.inference.view.forest import Forest
from lmppl.inference.view.tsne import tsne
from lmppl.lm.load import as_models
from lmppl.text import Text
from lmppl.trace import Trace
from lmppl.types import Floats

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Posterior

Score = Callable[[Sequence[Trace], Sequence[str]], Floats]
"""Partial traces and answers -> log p of each answer after each trace, per token [S, K]."""
BINS = 20
FLOOR = -50.0
"""What a language model cannot say is this far away, in nats."""


@dataclass(frozen=True)
class Landscape:
    """States, answers, and what lies between them."""

    nodes: tuple[int, ...]
    """The states [S], as nodes of the forest."""
    answers: tuple[Any, ...]
    """[K]."""
    log_probs: Floats
    """log P(answer | state) [S, K]."""
    distances: Floats
    """Normalised over the answers [S, K]."""
    progress: Floats
    """How far on its way to an end a state is, in [0, 1] [S]."""
    xy: Floats
    """The map [S, 2]."""
    answers_xy: Floats
    """The answers in it [K, 2]."""
    mass: Floats
    """Posterior weight that passes through each state [S]."""
    tau: Floats
    """Progress along a trajectory [BINS + 1]."""
    consistency: Floats
    uncertainty: Floats
    perplexity: Floats
    """The three curves, nan where nothing is known."""


def landscape(
    posterior: Posterior,
    *,
    score: Score | None = None,
    most_answers: int = 6,
    most_states: int = 200,
    method: str = "tsne",
    forest: Forest | None = None,
) -> Landscape:
    """The landscape of a posterior.

    Args:
        posterior: of any engine; particles of weight zero are left out.
        score: where log P(answer | state) comes from, such as `by_model(lm, prompt)`; the
            particles themselves when left out.
        most_answers: the most probable answers are taken.
        most_states: the heaviest states are taken, and those of every depth alike.
        method: "tsne" or "pca".
        forest: that of the posterior's traces, where it is there already.

    Raises:
        AllParticlesDead: there is no posterior.

    >>> from lmppl import Uniform, program, sample
    >>> from lmppl.inference import Enumerate, infer
    >>> @program
    ... def walk():
    ...     a, b = sample("a", Uniform([0, 1])), sample("b", Uniform([0, 1]))
    ...     return a + b
    >>> land = landscape(infer(walk, engine=Enumerate()), method="pca")
    >>> land.answers, land.consistency[[0, -1]].round(2).tolist()
    ((1, 0, 2), [0.5, 1.0])
    """
    if method not in ("tsne", "pca"):
        raise BadArgument(
            f'method must be "tsne" or "pca", got {method!r}', fix='write method="pca"'
        )
    forest = Forest() if forest is None else forest
    table, name = named_answers(posterior)
    listed = list(table.items())[:most_answers]
    place = {v: k for k, (v, _) in enumerate(listed)}
    alive = [i for i, w in enumerate(posterior.weights) if w > 0]
    leaves = [forest.add(posterior.traces[i]) for i in alive]
    weights = posterior.weights[alive]
    ends = np.array([place.get(name(posterior.traces[i].result), -1) for i in alive])
    share = np.zeros((len(alive), len(listed)))
    named = np.flatnonzero(ends >= 0)
    share[named, ends[named]] = weights[named]
    mass_k, mass = forest.mass(leaves, share), forest.mass(leaves, weights)
    paths = [[0, *forest.path(leaf)] for leaf in leaves]
    nodes, progress = _states(paths, mass, most_states)

    if score is None:
        alpha = 1.0 / max(posterior.ess, 1.0)
        prior = np.array([p for _, p in listed])
        with np.errstate(divide="ignore"):
            every = np.log((mass_k + alpha * prior) / (mass + alpha)[:, None])
    else:
        every = _scored(score, forest, paths, [str(v) for v, _ in listed])
    log_probs = every[nodes]
    distances = _distances(log_probs)
    targets = (1.0 - np.eye(len(listed))) / max(len(listed) - 1, 1)
    flat = _map(np.concatenate([distances, targets]), method)
    tau = np.linspace(0.0, 1.0, BINS + 1)
    curves = _curves(forest, paths, weights, every, tau)
    return Landscape(
        tuple(nodes), tuple(v for v, _ in listed), log_probs, distances, progress,
        flat[: len(nodes)], flat[len(nodes) :], mass[nodes], tau, *curves,
    )  # fmt: skip


def by_model(lm: Any, prompt: Callable[[Trace], str], say: Callable[[str], str] = str) -> Score:
    """Scores of a language model: log p(answer | prompt(partial trace)) per token.

    Args:
        lm: a model, or its name.
        prompt: the text after which the answer would stand.
        say: how an answer would stand there.
    """

    def score(traces: Sequence[Trace], choices: Sequence[str]) -> Floats:
        model = next(iter(as_models(lm).values()))
        contexts = [model.context(prompt(t)) for t in traces]
        spelled = [model.spell(say(c)) for c in choices]
        rows = model.score(
            [c for c in contexts for _ in spelled],
            [s for _ in contexts for s in spelled],
            [None] * (len(contexts) * len(spelled)),
            [1.0] * (len(contexts) * len(spelled)),
        )
        means = [float(np.mean(row)) if len(row) else 0.0 for row in rows]
        return np.array(means).reshape(len(contexts), len(spelled))

    return score


def _states(paths: Sequence[list[int]], mass: Floats, most: int) -> tuple[list[int], Floats]:
    """Distinct nodes of the paths, heaviest of every depth first; how far each is, on average."""
    far: dict[int, list[float]] = {}
    for path in paths:
        for depth, node in enumerate(path):
            far.setdefault(node, []).append(depth / max(len(path) - 1, 1))
    depths: dict[int, list[int]] = {}
    for path in paths:
        for depth, node in enumerate(path):
            depths.setdefault(depth, []).append(node)
    ranked = [sorted(set(group), key=lambda n: (-mass[n], n)) for group in depths.values()]
    chosen: list[int] = []
    for rank in range(max(map(len, ranked), default=0)):
        for group in ranked:
            if rank < len(group) and len(chosen) < most:
                chosen.append(group[rank])
    chosen.sort()
    return chosen, np.array([float(np.mean(far[n])) for n in chosen])


def _scored(
    score: Score, forest: Forest, paths: Sequence[list[int]], choices: Sequence[str]
) -> Floats:
    """log p after every node of the paths; nan elsewhere."""
    nodes = sorted({n for path in paths for n in path})
    traces = []
    for node in nodes:
        trace = Trace(None)
        trace.put([e for n in forest.path(node) if (e := forest.entries[n]) is not None])
        traces.append(trace)
    found = np.asarray(score(traces, choices), dtype=np.float64)
    if found.shape != (len(nodes), len(choices)):
        raise BadArgument(
            f"the score of a landscape has shape {found.shape}",
            fix=f"return one row per trace and one column per answer: {(len(nodes), len(choices))}",
        )
    every = np.full((len(forest), len(choices)), math.nan)
    every[nodes] = np.maximum(found, FLOOR)
    return every


def _distances(log_probs: Floats) -> Floats:
    d = -log_probs
    total = d.sum(axis=1, keepdims=True)
    even = np.full_like(d, 1.0 / max(d.shape[1], 1))
    return np.where(total > 0, np.divide(d, total, where=total > 0, out=even.copy()), even)


def _curves(
    forest: Forest, paths: Sequence[list[int]], weights: Floats, every: Floats, tau: Floats
) -> tuple[Floats, Floats, Floats]:
    p = np.exp(every - np.max(every, axis=1, keepdims=True, initial=-math.inf))
    p = p / p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.nansum(np.where(p > 0, p * np.log2(p), 0.0), axis=1)
    nearest = np.argmax(np.nan_to_num(every, nan=-math.inf), axis=1)
    consistent, uncertain = np.zeros(len(tau)), np.zeros(len(tau))
    nats, tokens = np.zeros(len(tau)), np.zeros(len(tau))
    for path, w in zip(paths, weights, strict=True):
        at = np.array(path)[np.round(tau * (len(path) - 1)).astype(int)]
        consistent += w * (nearest[at] == nearest[path[-1]])
        uncertain += w * bits[at]
        for k, node in enumerate(at.tolist()):
            entry = forest.entries[node]
            if entry is None or not isinstance(entry.value, Text):
                continue
            if entry.value.tokens and math.isfinite(entry.logp):
                nats[k] -= w * entry.logp
                tokens[k] += w * entry.value.tokens
    perplexity = np.full(len(tau), math.nan)
    np.divide(nats, tokens, out=perplexity, where=tokens > 0)
    return consistent, uncertain, np.exp(perplexity)


def _map(points: Floats, method: str) -> Floats:
    """Two dimensions of many, in [-1, 1]."""
    centred = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(points), 2))
    k = min(2, len(s))
    flat[:, :k] = u[:, :k] * s[:k]
    if method == "tsne" and len(points) >= 8:
        flat = tsne(points, flat)
    return np.asarray(flat / max(float(np.abs(flat).max()), 1e-12))
