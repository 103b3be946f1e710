"""Value belief propagation, in JAX: planning by messages between local factors.

In units of the reward, for a slice with forward messages f, factors e over (x_pa, a), and action
messages C_e(a):

    K_e = (1/λ) log Σ_x' P_e(x'|x_pa, a) e^{λ b(x')}           λ = 0: E b;   B_e = R_e + K_e
    m_{i→e} ∝ f_i e^{λ (R_i + Σ_{e'≠e} n_{e'→i})}                λ = 0: f_i
    G_e(x_pa) = α log Σ_a e^{(B_e + D_e)/α},  D_e = Σ_{e'≠e} C_e' - cost      π_e = softmax
    bel_e ∝ Π m_{i→e} e^{λ G_e};   C_e(a) = α log Σ bel_e e^{(B_e - G_e)/α}
    n_{e→i}(x_i) = (1/λ) log Σ_{x_pa∖i} Π_{j≠i} m_{j→e} e^{λ G_e}  λ = 0: E G_e
    f'_e(x') ∝ Σ bel_e π_e P_e e^{-λ K_e};   b_i = R_i + Σ_e n_{e→i}

Only K_e is divided out of the forward pass: without that the future counts twice. Action messages
are refreshed one factor after the other; all at once ("flooding") they oscillate. α falls from
sweep to sweep to its floor. With one variable a backward sweep is dynamic programming; at α = 1/λ
it is sum-product. Parents that are correlated, and one action that serves two factors, are where
it may be wrong; `converged` says whether the messages came to rest.

Within a slice B_e is fixed, so e^{B_e/α} is computed once, scaled by the messages at hand, and each
refreshment of C_e is two products of that table with a vector (Sinkhorn's scaling, stabilised).

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024);
Schmitzer, Stabilized sparse scaling algorithms (2019).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.bethe import LOW, functional
from lmppl.inference.planning.dp import check_numbers
from lmppl.inference.planning.factors import Factors, padded
from lmppl.inference.planning.tables import Array

FORBIDDEN = -1e6
FLOOR = 0.01
"""Temperature that stands for none, times the range of the reward."""
STEEPEST, LEAST = 300.0, 1e-150
"""Exponent and sum beyond which a scaled table is cut: their quotient is still a float64."""


@dataclass(frozen=True)
class Beliefs:
    """Where the messages came to rest, or did not."""

    value: float
    """The Bethe functional: an estimate of F."""
    action_probs: Array
    """q(a_0)"""
    action_values: Array
    """Relative action scores, the best equal to `value`."""
    forward: Array
    """f, [H + 1, N, d]; at α = 1/λ the forward messages of sum-product"""
    beliefs: Array
    """q(x_i) per slice, [H + 1, N, d]"""
    converged: bool
    residual: float
    sweeps: int
    inner_iterations: int
    temperature: float
    messages: dict[str, Array]
    """Where a later run may start: f0, b0, n0 and c0 by slice."""


def propagate(
    problem: Factors,
    *,
    risk: float = 0.0,
    temperature: float = 0.0,
    sweeps: int = 100,
    inner: int = 100,
    damping: float = 0.1,
    tolerance: float = 1e-5,
    anneal: bool = True,
    schedule: str = "sequential",
    start: dict[str, Array] | None = None,
) -> Beliefs:
    """Sweep backwards and forwards until the messages rest.

    Args:
        problem: from `factors_of`.
        risk: λ > 0 seeks risk, λ < 0 avoids it.
        temperature: α in units of the reward; 0 means 0.01 of the reward's range.
        sweeps: at most.
        inner: iterations within a slice, at most.
        damping: how much of the old message stays.
        tolerance: on the largest undamped change, relative to the reward's range.
        anneal: let α fall to its floor over the first half of the sweeps.
        schedule: "sequential"; "flooding" is there to show that it fails.
        start: messages of an earlier run of the same shape (`shifted`); α does not fall anew.
    """
    import jax

    check_numbers(risk, temperature)
    if sweeps < 1 or inner < 1 or not 0.0 <= damping < 1.0 or not tolerance > 0.0:
        raise BadArgument("needs sweeps ≥ 1, inner ≥ 1, 0 ≤ damping < 1 and tolerance > 0")
    if schedule not in ("sequential", "flooding"):
        raise BadArgument(f"schedule must be sequential or flooding, got {schedule!r}")
    floor = temperature or FLOOR * problem.span
    high = max(floor, problem.span if risk == 0.0 else min(1.0 / abs(risk), problem.span))
    arrays = padded(problem)
    anneal = anneal and start is None
    arrays |= fresh(arrays) if start is None else start
    arrays["f0"] = np.concatenate([arrays["initial"][None], arrays["f0"][1:]])
    numbers = {
        "lam": risk,
        "floor": floor,
        "high": high if anneal else floor,
        "fall": 2.0 * high / floor / sweeps,
        "damping": damping,
        "tolerance": tolerance * problem.span,
        "sweeps": sweeps,
        "inner": inner,
    }
    with jax.enable_x64(True):
        out = compiled(risk == 0.0, schedule == "flooding")(arrays, numbers)
        out = {k: np.asarray(v) for k, v in out.items()}
    value, q, beliefs = functional(arrays, out, risk)
    scores = np.where(problem.allowed, out["c0"][0].sum(axis=0) - problem.cost, -np.inf)
    n = len(problem.sizes)
    return Beliefs(
        value,
        q,
        scores - scores.max() + value,
        out["f0"][:, :n],
        beliefs[:, :n],
        bool(out["residual"] <= numbers["tolerance"]) and bool(out["rested"]),
        float(out["residual"]),
        int(out["sweeps"]),
        int(out["inner"]),
        floor,
        {name: out[name] for name in ("f0", "b0", "n0", "c0")},
    )


def fresh(arrays: dict[str, Array]) -> dict[str, Array]:
    """Messages that say nothing: forward laws uniform over what can occur."""
    (slices,), (e, k), (n1, d) = (arrays[x].shape for x in ("counts", "parents", "unary"))
    reach = np.concatenate([arrays["table"].sum(axis=(1, 2))[: n1 - 1], arrays["initial"][-1:]]) > 0
    return {
        "f0": np.repeat((reach / reach.sum(axis=1, keepdims=True))[None], slices, axis=0),
        "b0": np.zeros((slices, n1, d)),
        "n0": np.zeros((slices, e, k, d)),
        "c0": np.zeros((slices, e, arrays["local"].shape[2])),
    }


def shifted(messages: dict[str, Array]) -> dict[str, Array]:
    """The messages one action later; the last slice keeps its own."""
    return {name: np.concatenate([m[1:], m[-1:]]) for name, m in messages.items()}


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
        parents, table, local = given["parents"], given["table"], given["local"]
        e_n, k = parents.shape
        n1, d = given["unary"].shape
        a_n = local.shape[2]
        lam = num["lam"]
        slices = given["counts"].shape[0]
        child = jnp.minimum(jnp.arange(e_n), n1 - 1)
        digits = np.indices((d,) * k).reshape(k, d**k)
        which = np.eye(d)[digits]  # [k, d^k, d]

        def continuation(b: Any, end: Any) -> Any:
            b = b.at[n1 - 1].set(0.0)[child]
            if neutral:
                found = jnp.einsum("exay,ey->exa", table, b)
            else:
                found = logsumexp(lam * b[:, None, None], b=table, axis=3) / lam
            return jnp.where(end, 0.0, found)

        def gather(n: Any) -> Any:
            return jnp.zeros((n1, d)).at[parents].add(n)

        def node(f: Any, u: Any, n: Any) -> tuple[Any, Any]:
            """log m of every parent at every row of its factor, [E, k, d^k], and their sum."""
            m = jnp.maximum(jnp.log(jnp.maximum(f, 1e-300)), LOW)[parents]
            if not neutral:
                m = m + lam * ((u + gather(n))[parents] - n)
                m = m - lse(m)
            parts = m[:, jnp.arange(k)[:, None], digits]
            return parts, parts.sum(axis=1)

        def belief(base: Any, g: Any) -> Any:
            lb = base if neutral else base + lam * g
            return lb - lse(lb)

        def upwards(parts: Any, base: Any, g: Any) -> Any:
            """n of every parent."""
            rest = base[:, None] - parts
            if neutral:
                made = jnp.einsum("ejx,jxv->ejv", jnp.exp(rest) * g[:, None], which)
            else:
                up = rest + lam * g[:, None]
                made = logsumexp(up[..., None], b=which[None], axis=2) / lam
            return made - made.max(axis=2, keepdims=True)

        def inner(f: Any, n: Any, c: Any, w: Any, paid: Any, kk: Any, end: Any, alpha: Any) -> Any:
            """Node step in parallel, factors in turn, until the slice rests."""
            u = given["unary"] * w
            stay = local * w + kk
            own = jnp.where(
                end,
                -alpha * jnp.log(a_n * 1.0),
                jnp.where(given["allowed"] > 0, -paid * given["cost"], FORBIDDEN),
            )

            def others(c: Any) -> Any:
                return ((c.sum(axis=0) - c + own) / alpha)[:, None]

            # e^{(B - G)/α}, scaled by columns; below only D changes, and G with it
            parts, base = node(f, u, n)
            steep = stay / alpha
            top = lse(steep + others(c))
            g = alpha * top[..., 0]
            steep = steep - top
            log_bel = belief(base, g)
            kappa = (log_bel[..., None] + steep).max(axis=1)
            scaled = jnp.exp(jnp.minimum(steep - kappa[:, None], STEEPEST))
            # At λ = 0 neither m nor bel reads n
            fixed, g = (jnp.exp(log_bel), None) if neutral else (None, g)

            def once(state: Any) -> Any:
                it, n, c, _ = state
                parts, base = (None, fixed) if neutral else node(f, u, n)

                def one(total: Any, xs: Any) -> Any:
                    scaled_e, kappa_e, base_e, g_e, c_e = xs
                    t = (total - c_e + own) / alpha + kappa_e
                    z = jnp.maximum((scaled_e * jnp.exp(t - t.max())).sum(axis=1), LEAST)
                    if not neutral:
                        g_e = g_e + alpha * (t.max() + jnp.log(z))
                        base_e = jnp.exp(belief(base_e, g_e))
                    s = ((base_e / z)[:, None] * scaled_e).sum(axis=0)
                    new = alpha * (kappa_e + jnp.log(jnp.maximum(s, LEAST**2)))
                    new = new - new.max()
                    return total if flooding else total - c_e + new, (new, g_e)

                _, (c2, g2) = jax.lax.scan(one, c.sum(axis=0), (scaled, kappa, base, g, c))
                n2 = n if neutral else upwards(parts, base, g2)
                return it + 1, n2, c2, jnp.maximum(jnp.abs(c2 - c).max(), change(f, n2, n))

            it, n, c, delta = jax.lax.while_loop(
                lambda s: (s[0] < num["inner"]) & (s[3] > 0.1 * num["tolerance"]),
                once,
                (0, n, c, jnp.inf),
            )
            parts, base = node(f, u, n)
            x = stay / alpha + others(c)
            top = lse(x)
            g = alpha * top[..., 0]
            log_bel = belief(base, g)
            rest = delta <= 0.1 * num["tolerance"]
            return upwards(parts, base, g), c, jnp.exp(x - top), log_bel, it, rest

        def change(f: Any, new: Any, old: Any) -> Any:
            """Messages into values that cannot occur do not count."""
            return jnp.abs(jnp.where(f[parents] > 1e-12, new - old, 0.0)).max()

        times = jnp.arange(slices)
        order = jnp.concatenate([times[::-1], times])
        forwards = jnp.arange(2 * slices) >= slices

        def visit(carry: Any, xs: Any) -> Any:
            """One slice on the way back, which updates b, or on the way forth, which updates f."""
            f, b, n, c, _, _, _, alpha, fresh = carry
            t, forth = xs
            end, after, w = t == slices - 1, jnp.minimum(t + 1, slices - 1), given["counts"][t]
            kk = continuation(b[after], end)
            n2, c2, pi, lb, steps, rest = inner(
                f[t], n[t], c[t], w, given["paid"][t], kk, end, alpha
            )
            back = given["unary"] * w + gather(n2)
            back = back - jnp.where(f[t] > 1e-12, back, -jnp.inf).max(axis=1, keepdims=True)
            off = jnp.abs(jnp.where(f[t] > 1e-12, back - b[t], 0.0)).max()
            off = jnp.maximum(off, jnp.abs(c2 - c[t]).max())
            weight = jnp.exp(lb)[:, :, None] * pi
            if not neutral:
                weight = weight * jnp.exp(-lam * (kk - jnp.min(kk, axis=(1, 2), keepdims=True)))
            new = jnp.einsum("exa,exay->ey", weight, table)[: n1 - 1]
            new = new / new.sum(axis=1, keepdims=True)
            new = jnp.concatenate([new, given["initial"][-1:]])
            off = jnp.where(forth, jnp.where(end, 0.0, jnp.abs(new - f[after]).max()), off)
            keep = jnp.where(fresh, 0.0, num["damping"])
            f = f.at[after].set(
                jnp.where(forth & ~end, (1 - keep) * new + keep * f[after], f[after])
            )
            b = b.at[t].set(jnp.where(forth, b[t], (1 - keep) * back + keep * b[t]))
            found = carry[4].at[t].set(pi), carry[5].at[t].set(lb), carry[6].at[t].set(kk)
            carry = f, b, n.at[t].set(n2), c.at[t].set(c2), *found, alpha, fresh
            return carry, (off, steps, rest)

        def sweep(state: Any) -> Any:
            it, messages, _, done, _ = state
            alpha = jnp.maximum(num["floor"], num["high"] / (num["fall"] * it + 1.0))
            carry, (off, steps, rest) = jax.lax.scan(
                visit, (*messages, alpha, it == 0), (order, forwards)
            )
            rested = rest.all() & (alpha <= num["floor"])
            return it + 1, carry[:7], off.max(), done + steps.sum(), rested

        big = (slices, e_n, d**k, a_n)
        start = tuple(given[x] for x in ("f0", "b0", "n0", "c0"))
        held = jnp.zeros(big), jnp.zeros(big[:3]), jnp.zeros(big)
        it, messages, residual, done, rested = jax.lax.while_loop(
            lambda s: (s[0] < num["sweeps"]) & ((s[2] > num["tolerance"]) | ~s[4]),
            sweep,
            (0, (*start, *held), jnp.inf, 0, False),
        )
        names = ("f0", "b0", "n0", "c0", "policy", "log_beliefs", "continuation")
        told = {"residual": residual, "sweeps": it, "inner": done, "rested": rested}
        return dict(zip(names, messages, strict=True)) | told

    return jax.jit(run)
