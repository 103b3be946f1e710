"""The sweeps of value belief propagation, compiled by JAX (`vbp` has the equations).

A sweep visits the slices backwards, which settles the action messages C of each and updates n and b,
and then forwards, which updates f under the policies found. At a visit B_e is fixed, so e^{B_e/α} is
computed once, scaled by the messages at hand, and each refreshment of C_e is two products of that
table with a vector (Sinkhorn's scaling, stabilised). Factors of a group (`layout`) take their turns
in a scan: what is compiled grows with the number of groups, not of factors.

α falls by the same share from sweep to sweep: prices between factors that want different actions move
by about α with each refreshment, so what is wrong at a high temperature is right sooner there.

Reference: Schmitzer, Stabilized sparse scaling algorithms for entropy regularized transport problems
(2019).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from lmppl.inference.planning.bethe import LOW

FORBIDDEN = -1e6
BETTER, PATIENCE = 0.9, 6
"""A run ends, unconverged, when the residual did not fall by a tenth within as many sweeps."""
TINY, NEVER = 1e-300, 1e-12
"""Probabilities whose logarithm is taken, and below which a value counts as one that cannot occur."""
STEEPEST, LEAST = 300.0, 1e-150
"""Exponent and sum beyond which a scaled table is cut: their quotient is still a float64."""


@functools.cache
def compiled(neutral: bool, flooding: bool) -> Callable[..., Any]:
    """One function for all tables of a shape; loops are scans, so its size is that of one factor."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp

    def lse(x: Any) -> Any:
        top = x.max(axis=-1, keepdims=True)
        return top + jnp.log(jnp.exp(x - top).sum(axis=-1, keepdims=True))

    def run(given: Any, num: Any) -> Any:
        parents, child, groups = given["parents"], given["child"], given["groups"]
        k = parents.shape[1]
        n1, d = given["unary"].shape
        a_n = given["cost"].shape[0]
        lam = num["lam"]
        slices = given["counts"].shape[0]
        ends = np.cumsum([0, *(g["local"].shape[0] for g in groups)])
        spans = [slice(lo, hi) for lo, hi in itertools.pairwise(ends)]
        held = []
        for g, at in zip(groups, spans, strict=True):
            here = g["digits"][..., None] == jnp.arange(d)
            rows = {"table": jnp.moveaxis(g["table"], 3, 1), "is": here, "some": here.any(axis=2)}
            held.append(g | rows | {"own": at})
        times = jnp.arange(slices)
        unary = given["unary"] * given["counts"][:, None, None]

        def continuation(b: Any, end: Any) -> list[Any]:
            """K of every factor, [e, r, A]."""
            b = b.at[n1 - 1].set(0.0)[child]
            return [jnp.where(end, 0.0, ahead(g["table"], b[g["own"]])) for g in held]

        def ahead(table: Any, b: Any) -> Any:
            b = b[:, :, None, None]
            if neutral:
                return (table * b).sum(axis=1)
            return logsumexp(lam * b, b=table, axis=1) / lam

        def gather(n: Any) -> Any:
            return jnp.zeros((n1, d)).at[parents].add(n)

        def node(f: Any, u: Any, n: Any) -> list[tuple[Any, Any]]:
            """log m of every parent at every row of its factor, [e, k, r], and their sum."""
            m = jnp.maximum(jnp.log(jnp.maximum(f, TINY)), LOW)[parents]
            if not neutral:
                m = m + lam * ((u + gather(n))[parents] - n)
                m = m - lse(m)
            found = []
            for g in held:
                own = m[g["own"], : g["digits"].shape[1]]
                parts = jnp.take_along_axis(own, g["digits"], axis=2)
                found.append((parts, parts.sum(axis=1) + g["live"]))
            return found

        def belief(base: Any, g: Any) -> Any:
            lb = base if neutral else base + lam * g
            return lb - lse(lb)

        def upwards(nodes: list[tuple[Any, Any]], worth: list[Any]) -> Any:
            """n of every parent."""
            found = []
            for g, (parts, base), v in zip(held, nodes, worth, strict=True):
                rest, some = base[:, None] - parts, g["some"]
                if neutral:
                    x = jnp.exp(rest) * v[:, None]
                    made = jnp.where(g["is"], x[..., None], 0.0).sum(axis=2)
                else:
                    made = logsumexp((rest + lam * v[:, None])[..., None], b=g["is"], axis=2) / lam
                top = jnp.where(some, made, -jnp.inf).max(axis=2, keepdims=True)
                made = jnp.where(some, made - top, 0.0)
                found.append(jnp.pad(made, ((0, 0), (0, k - made.shape[1]), (0, 0))))
            return jnp.concatenate(found)

        def offers(t: Any, alpha: Any) -> Any:
            """What each action costs before anything is known of it."""
            cost = jnp.where(given["allowed"] > 0, -given["paid"][t] * given["cost"], FORBIDDEN)
            return jnp.where(t == slices - 1, -alpha * jnp.log(a_n * 1.0), cost)

        def advantages(t: Any, kk: list[Any], alpha: Any) -> list[Any]:
            """B/α of every factor, [e, r, A]."""
            w, cold = given["counts"][t], 1.0 / alpha
            return [(g["local"] * w + v) * cold for g, v in zip(held, kk, strict=True)]

        def choices(t: Any, c: Any, gains: list[Any], alpha: Any) -> list[tuple[Any, Any]]:
            """π and G of every factor."""
            rest = (c.sum(axis=0) - c + offers(t, alpha)) / alpha
            found = []
            for g, v in zip(held, gains, strict=True):
                x = v + rest[g["own"], None]
                top = x.max(axis=2, keepdims=True)
                e = jnp.exp(x - top)
                z = e.sum(axis=2, keepdims=True)
                found.append((e / z, (alpha * (top + jnp.log(z)))[..., 0]))
            return found

        def settle(t: Any, f: Any, n: Any, c: Any, gains: list[Any], alpha: Any) -> Any:
            """Node step in parallel, factors in turn, until the slice rests."""
            own = offers(t, alpha)
            parts = node(f, unary[t], n)
            rest = (c.sum(axis=0) - c + own) / alpha

            # e^{(B - G)/α}, scaled by rows and columns; below only D changes, and G with it
            scaled = []
            for g, (_, base), x in zip(held, parts, gains, strict=True):
                top = (x + rest[g["own"], None]).max(axis=2)
                steep = x - top[..., None]
                log_bel = belief(base, alpha * top)
                kappa = (log_bel[..., None] + steep).max(axis=1)
                table = jnp.exp(jnp.minimum(steep - kappa[:, None], STEEPEST))
                # At λ = 0 neither m nor bel reads n
                scaled.append((table, kappa, jnp.exp(log_bel) if neutral else alpha * top))

            def one(total: Any, xs: Any) -> Any:
                (table, kappa, bel), base, c_e = xs
                x = (total - c_e + own) / alpha + kappa
                z = jnp.maximum((table * jnp.exp(x - x.max())).sum(axis=1), LEAST)
                worth = bel
                if not neutral:
                    worth = bel + alpha * (x.max() + jnp.log(z))
                    bel = jnp.exp(belief(base, worth))
                s = ((bel / z)[:, None] * table).sum(axis=0)
                new = alpha * (kappa + jnp.log(jnp.maximum(s, LEAST**2)))
                new = new - new.max()
                return total if flooding else total - c_e + new, (new, worth)

            def once(state: Any) -> Any:
                it, n, c, _ = state
                nodes = parts if neutral else node(f, unary[t], n)
                total, new, worth = c.sum(axis=0), [], []
                for g, table, (_, base) in zip(held, scaled, nodes, strict=True):
                    xs = table, base, c[g["own"]]
                    total, (c_g, g_g) = jax.lax.scan(one, total, xs)
                    new.append(c_g)
                    worth.append(g_g)
                c2 = jnp.concatenate(new)
                n2 = n if neutral else upwards(nodes, worth)
                return it + 1, n2, c2, jnp.maximum(jnp.abs(c2 - c).max(), change(f, n2, n))

            it, n, c, delta = jax.lax.while_loop(
                lambda s: (s[0] < num["inner"]) & (s[3] > 0.1 * num["tolerance"]),
                once,
                (0, n, c, jnp.inf),
            )
            nodes = parts if neutral else node(f, unary[t], n)
            return nodes, n, c, it, delta <= 0.1 * num["tolerance"]

        def change(f: Any, new: Any, old: Any) -> Any:
            """Messages into values that cannot occur do not count."""
            return jnp.abs(jnp.where(f[parents] > NEVER, new - old, 0.0)).max()

        def backwards(carry: Any, xs: Any) -> Any:
            """One slice on the way back: its action messages, and b and n, which go on."""
            b_next, alpha, keep = carry
            t, f, b, n, c = xs
            kk = continuation(b_next, t == slices - 1)
            gains = advantages(t, kk, alpha)
            nodes, n, c2, steps, rest = settle(t, f, n, c, gains, alpha)
            chosen = choices(t, c2, gains, alpha)
            n = upwards(nodes, [v for _, v in chosen])
            new = unary[t] + gather(n)
            new = new - jnp.where(f > NEVER, new, -jnp.inf).max(axis=1, keepdims=True)
            off = jnp.abs(jnp.where(f > NEVER, new - b, 0.0)).max()
            off = jnp.maximum(off, jnp.abs(c2 - c).max())
            b = (1 - keep) * new + keep * b
            return (b, alpha, keep), (b, n, c2, kk, chosen, (off, steps, rest))

        def forwards(carry: Any, xs: Any) -> Any:
            """One slice on the way forth: f of the next one."""
            f, keep = carry
            old, u, n, kk, chosen = xs
            laws = [
                belief(base, v) for (_, base), (_, v) in zip(node(f, u, n), chosen, strict=True)
            ]
            new = onwards(kk, [p for p, _ in chosen], laws)
            off = jnp.abs(new - old).max()
            # In logarithms: what is to vanish would keep a share of itself for many sweeps
            f = new ** (1 - keep) * jnp.maximum(old, TINY) ** keep
            f = f / f.sum(axis=1, keepdims=True)
            return (f, keep), (f, off)

        def onwards(kk: list[Any], pi: list[Any], log_bel: list[Any]) -> Any:
            """The forward law of the next slice; the continuation is divided out."""
            made = []
            for g, v, p, b in zip(held, kk, pi, log_bel, strict=True):
                weight = jnp.exp(b)[:, :, None] * p
                if not neutral:
                    weight = weight * jnp.exp(-lam * (v - v.min(axis=(1, 2), keepdims=True)))
                made.append(jnp.einsum("era,eyra->ey", weight, g["table"]))
            new = (
                jnp.zeros((n1, d))
                .at[child]
                .add(jnp.concatenate(made))
                .at[n1 - 1]
                .set(given["initial"][n1 - 1])
            )
            return new / new.sum(axis=1, keepdims=True)

        def tell(t: Any, messages: list[Any], alpha: Any) -> Any:
            """π, log bel and K of a slice, as the messages have them now."""
            f, b, n, c = messages
            kk = continuation(b[jnp.minimum(t + 1, slices - 1)], t == slices - 1)
            chosen = choices(t, c[t], advantages(t, kk, alpha), alpha)
            nodes = node(f[t], unary[t], n[t])
            bel = [belief(base, v) for (_, base), (_, v) in zip(nodes, chosen, strict=True)]
            return [p for p, _ in chosen], bel, kk

        def heat(it: Any) -> Any:
            left = jnp.maximum(1.0 - it / num["anneal"], 0.0)
            return num["floor"] * (num["high"] / num["floor"]) ** left

        def sweep(state: Any) -> Any:
            it, (f, b, n, c), _, done, _, best, stale = state
            alpha, keep = heat(it), jnp.where(it == 0, 0.0, num["damping"])
            _, (b, n, c, kk, chosen, (off, steps, rest)) = jax.lax.scan(
                backwards, (b[-1], alpha, keep), (times, f, b, n, c), reverse=True
            )
            found = jax.tree.map(lambda x: x[:-1], (unary, n, kk, chosen))
            _, (later, moved) = jax.lax.scan(forwards, (f[0], keep), (f[1:], *found))
            f = jnp.concatenate([f[:1], later])
            cold, off = alpha <= num["floor"], jnp.maximum(off.max(), moved.max(initial=0.0))
            better = ~cold | (off < BETTER * best)
            best = jnp.where(cold & better, off, best)
            stale = jnp.where(better, 0, stale + 1)
            return it + 1, [f, b, n, c], off, done + steps.sum(), rest.all() & cold, best, stale

        start = [given[x] for x in ("f0", "b0", "n0", "c0")]
        it, messages, residual, done, rested, *_ = jax.lax.while_loop(
            lambda s: (
                (s[0] < num["sweeps"]) & ((s[2] > num["tolerance"]) | ~s[4]) & (s[6] < PATIENCE)
            ),
            sweep,
            (0, start, jnp.inf, 0, False, jnp.inf, 0),
        )
        told = jax.vmap(lambda t: tell(t, messages, heat(it - 1)))(times)
        names = ("f0", "b0", "n0", "c0", "policy", "log_beliefs", "continuation")
        facts = {"residual": residual, "sweeps": it, "inner": done, "rested": rested}
        return dict(zip(names, (*messages, *told), strict=True)) | facts

    return jax.jit(run)
