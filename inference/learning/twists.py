"""Learned guides: twist functions trained on posterior samples, as a residual on another guide; JAX.

    log ψ_θ(prefix) = log g(prefix) + f_θ(features(prefix))          f_θ linear, or one hidden layer

g is a guide that is there already: a backward filter, a reward, or 1. The best ψ is h*, the expected
weight of what is to come, and posterior traces show it: a prefix has density γ h* / Z among the
prefixes of posterior traces, γ among those of plain runs. Two losses find the ratio from samples:

    "ratio"         classify:  Σ_post softplus(-a) + Σ_plain softplus(a),   a = log ψ - log Z
    "contrastive"   -E_post[log ψ] + log E_plain[ψ]   for each length of prefix, then scaled to Z

The first is that of SIXO and of neural backward filters, the second has the gradient of contrastive
twist learning, E_post[∇ log ψ] - E_{γ ψ}[∇ log ψ]. Whatever θ is, a guide changes no answer.

Reference: Lawson, Raventós, Warrington and Linderman, SIXO: smoothing inference with twisted
objectives (2022); Zhao, Brekelmans, Makhzani and Grosse, Probabilistic inference in language models
via twisted sequential Monte Carlo (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.inference.calls import infer
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.importance import Importance
from lmppl.inference.learning.prefixes import Features, length, prefixes
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.smc.particle_filter import SMC
from lmppl.lm.base import LanguageModel
from lmppl.trace import Trace
from lmppl.types import Floats, Ints

Weights: TypeAlias = tuple[Floats, ...]
"""θ: (W [F], b), or (W [F, H], b [H], v [H], c) with a hidden layer."""
LOSSES = ("ratio", "contrastive")


@dataclass(frozen=True)
class Twist:
    """A learned guide: `guide=twist.guide` of any engine."""

    features: Features
    theta: Weights
    base: Guide | None = None
    scale: tuple[float, ...] = ()
    """Added to log ψ by the length of the prefix, where a loss leaves it open."""
    losses: tuple[float, ...] = ()
    """Of training."""
    until: str | None = None
    """The site after which nothing is to come: once it is there, ψ = 1."""

    def log_psi(self, traces: Sequence[Trace]) -> Floats:
        """log ψ of partial traces [N]."""
        x = np.array([self.features(t) for t in traces], dtype=np.float64)
        value = residual(self.theta, x.reshape(len(traces), -1), np)
        if self.base is not None:
            value = value + np.array([self.base(t) for t in traces])
        if self.scale:
            last = len(self.scale) - 1
            value = value + np.array([self.scale[min(length(t), last)] for t in traces])
        over = [self.until is not None and self.until in t for t in traces]
        return np.where(over, 0.0, value)

    @property
    def guide(self) -> Guide:
        """For an engine."""
        return Guide(self.log_psi, batched=True, name="learned twist")


def residual(theta: Any, x: Any, xp: Any) -> Any:
    """f_θ of rows of features, in numpy where it is used and in jax.numpy where it is trained."""
    if len(theta) == 2:
        return x @ theta[0] + theta[1]
    W, b, v, c = theta
    return xp.tanh(x @ W + b) @ v + c


class _Rows(NamedTuple):
    """Prefixes as numbers."""

    x: Floats
    """Features [n, F]."""
    base: Floats
    """log g [n]."""
    weight: Floats
    """[n]; of one length they add up to what part of the runs was that long."""
    length: Ints


def _rows(found: Posterior, features: Features, base: Guide | None, lm: Any, plain: bool) -> _Rows:
    parts = []
    for trace, share in zip(found.traces, found.weights.tolist(), strict=True):
        for p in prefixes(trace, lm, died=share == 0) if plain or share > 0 else ():
            weight = math.exp(p.log_weight) / len(found) if plain else share
            if weight > 0:
                g = 0.0 if base is None else base(p.trace)
                parts.append((features(p.trace), g, weight, length(p.trace)))
    if not parts:
        raise BadArgument(
            "a twist learns from prefixes, and these traces have none",
            fix="give prefixes of strings by lm=, or a program of several sites",
        )
    x, g, w, n = zip(*parts, strict=True)
    return _Rows(np.array(x, dtype=np.float64), np.array(g), np.array(w), np.array(n))


def fit_twist(
    posterior: Posterior,
    plain: Posterior,
    features: Features,
    *,
    base: AnyGuide | None = None,
    loss: str = "ratio",
    hidden: int = 0,
    steps: int = 400,
    rate: float = 0.05,
    decay: float = 1e-4,
    until: str | None = None,
    lm: LanguageModel | None = None,
    seed: int = 0,
) -> Twist:
    """A twist from posterior traces and plain ones.

    Args:
        posterior: weighted traces of the program.
        plain: runs of the same program without resampling (`Importance`).
        features: of a partial trace.
        base: the guide that it is a residual on.
        loss: "ratio" or "contrastive".
        hidden: units of a hidden layer; 0 is linear.
        steps: of Adam, over all prefixes at once.
        rate: of learning.
        decay: λ of a penalty λ |θ|².
        until: the last site that weighs: once it is there, ψ = 1.
        lm: the model, where prefixes end inside strings.
        seed: of the hidden layer.
    """
    if loss not in LOSSES:
        raise BadArgument(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
    if posterior.dead or not math.isfinite(posterior.log_evidence):
        raise BadArgument(
            "a twist cannot learn from a posterior without weight",
            fix="start from a better base guide, or from more particles",
        )
    guide = Guide.of(base)
    good = _rows(posterior, features, guide, lm, plain=False)
    all_ = _rows(plain, features, guide, lm, plain=True)
    rng = np.random.default_rng(seed)
    F = good.x.shape[1]
    start: Weights = (np.zeros(F), np.zeros(()))
    if hidden:
        W = rng.normal(size=(F, hidden)) / math.sqrt(F)
        start = (W, np.zeros(hidden), np.zeros(hidden), np.zeros(()))
    theta, losses = _trained(start, good, all_, posterior.log_evidence, loss, steps, rate, decay)
    found = Twist(features, theta, guide, (), losses, until)
    return found if loss == "ratio" else _scaled(found, good, all_, posterior.log_evidence)


def _trained(
    start: Weights,
    good: _Rows,
    plain: _Rows,
    log_z: float,
    loss: str,
    steps: int,
    rate: float,
    decay: float,
) -> tuple[Weights, tuple[float, ...]]:
    """Adam on the whole data, compiled once."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries.optimizers import adam

    groups, index = np.unique(np.concatenate([good.length, plain.length]), return_inverse=True)
    group, G = index[len(good.x) :], len(groups)
    mass = np.bincount(index[: len(good.x)], good.weight, minlength=G)
    data = [jnp.asarray(v, jnp.float32) for v in (*good[:3], *plain[:3], mass)]

    def objective(theta: Any, x: Any, g: Any, w: Any, x0: Any, g0: Any, w0: Any, mass: Any) -> Any:
        a, a0 = g + residual(theta, x, jnp), g0 + residual(theta, x0, jnp)
        penalty = decay * sum(jnp.sum(p**2) for p in theta)
        if loss == "ratio":
            known, plain = jax.nn.softplus(log_z - a), jax.nn.softplus(a0 - log_z)
            return jnp.sum(w * known) + jnp.sum(w0 * plain) + penalty
        top = jax.ops.segment_max(a0, group, G)
        sums = jax.ops.segment_sum(w0 * jnp.exp(a0 - top[group]), group, G)
        level = jnp.where(mass > 0, top + jnp.log(jnp.where(sums > 0, sums, 1.0)), 0.0)
        return jnp.sum(mass * level) - jnp.sum(w * a) + penalty

    init, update, read = adam(rate)

    @jax.jit
    def train(theta: Any, *data: Any) -> Any:
        def step(i: Any, carry: Any) -> Any:
            state, losses = carry
            value, slope = jax.value_and_grad(objective)(read(state), *data)
            return update(i, slope, state), losses.at[i].set(value)

        return jax.lax.fori_loop(0, steps, step, (init(theta), jnp.zeros(steps)))

    state, losses = train(tuple(jnp.asarray(p, jnp.float32) for p in start), *data)
    theta = tuple(np.asarray(p, dtype=np.float64) for p in read(state))
    if not all(np.isfinite(p).all() for p in theta):
        raise BadArgument("training of a twist diverged", fix="give a smaller rate")
    return theta, tuple(np.asarray(losses, dtype=np.float64).tolist())


def _scaled(twist: Twist, good: _Rows, plain: _Rows, log_z: float) -> Twist:
    """With Σ_plain γ ψ = Z · P(so long | data) for each length, as h* has it."""
    log_psi = plain.base + residual(twist.theta, plain.x, np)
    scale = np.zeros(1 + max(int(good.length.max()), int(plain.length.max())))
    for n in np.unique(good.length):
        at = plain.length == n
        if at.any():
            due = log_z + math.log(good.weight[good.length == n].sum())
            scale[n] = due - np.logaddexp.reduce(log_psi[at] + np.log(plain.weight[at]))
    return replace(twist, scale=tuple(scale.tolist()))


def learn_twist(
    program: Callable[..., Any],
    *args: Any,
    features: Features,
    engine: SMC,
    lm: Any = None,
    inside: LanguageModel | None = None,
    runs: int = 1000,
    rounds: int = 2,
    seed: int = 0,
    observations: Any = None,
    **options: Any,
) -> Twist:
    """A twist by turns: a filter under the present guide, then a fit to what it found.

    Args:
        program: the program.
        *args: its arguments.
        features: of a partial trace.
        engine: the filter; its `guide` is what the twist is a residual on.
        lm: the run's language model.
        inside: the model whose strings the filter resamples in; prefixes then end inside them.
        runs: plain runs, drawn once.
        rounds: turns.
        seed: all randomness is a function of it.
        observations: as in `infer`.
        **options: of `fit_twist`.
    """
    if not isinstance(engine, SMC):
        raise BadArgument(
            f"learn_twist trains the guide of a particle filter, got {excerpt(engine, 60)}",
            fix="write engine=SMC(200, resample_at=tokens(1))",
        )
    shared = {"lm": lm, "observations": observations}
    plain = infer(program, *args, engine=Importance(runs), seed=seed, on_dead="return", **shared)
    base, found, filter_ = engine.guide, None, engine
    for r in range(rounds):
        post = infer(program, *args, engine=filter_, seed=seed + 1 + r, **shared)
        found = fit_twist(post, plain, features, base=base, lm=inside, seed=seed, **options)
        filter_ = replace(engine, guide=found.guide)
    if found is None:
        raise BadArgument(f"rounds must be at least 1, got {rounds!r}")
    return found
