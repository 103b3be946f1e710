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

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.dp import check_numbers
from lmppl.inference.planning.factors import Factors, padded
from lmppl.inference.planning.tables import Array

LOW = -1e3
"""The logarithm of 0."""
FORBIDDEN = -1e6
FLOOR = 0.01
"""Temperature that stands for none, times the range of the reward."""


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
    arrays["f0"][0] = arrays["initial"]
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
    scores = np.where(problem.allowed, out["scores"], -np.inf)
    n = len(problem.sizes)
    return Beliefs(
        float(out["value"]),
        out["q"],
        scores - scores.max() + float(out["value"]),
        out["forward"][:, :n],
        out["beliefs"][:, :n],
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

    def safe(p: Any) -> Any:
        return jnp.maximum(jnp.log(jnp.maximum(p, 1e-300)), LOW)

    def entropy(p: Any) -> Any:
        return -(p * jnp.log(jnp.maximum(p, 1e-300))).sum()

    def run(given: Any, num: Any) -> Any:
        parents, table, local = given["parents"], given["table"], given["local"]
        e_n, k = parents.shape
        n1, d = given["unary"].shape
        a_n = local.shape[2]
        lam = num["lam"]
        slices = given["counts"].shape[0]
        child = jnp.minimum(jnp.arange(e_n), n1 - 1)
        digits = jnp.stack([x.ravel() for x in jnp.indices((d,) * k)], axis=1)

        def continuation(b: Any, end: Any) -> Any:
            b = b.at[n1 - 1].set(0.0)[child]
            if neutral:
                found = jnp.einsum("exay,ey->exa", table, b)
            else:
                found = logsumexp(lam * b[:, None, None], b=table, axis=3) / lam
            return jnp.where(end, 0.0, found)

        def gather(n: Any) -> Any:
            return jnp.zeros((n1, d)).at[parents].add(n)

        def node(f: Any, u: Any, n: Any) -> Any:
            lf = safe(f)[parents]
            if neutral:
                return lf
            m = lf + lam * ((u + gather(n))[parents] - n)
            return m - logsumexp(m, axis=2, keepdims=True)

        def factor(lm: Any, stay: Any, others: Any, alpha: Any) -> Any:
            """π, bel, C and n of one factor."""
            x = (stay + others) / alpha
            g = alpha * logsumexp(x, axis=1)
            pi = jax.nn.softmax(x, axis=1)
            parts = [lm[j][digits[:, j]] for j in range(k)]
            lb = sum(parts) + (0.0 if neutral else lam * g)
            lb = lb - logsumexp(lb)
            c = alpha * logsumexp(lb[:, None] + (stay - g[:, None]) / alpha, axis=0)
            n = []
            for j in range(k):
                out = sum((p for i, p in enumerate(parts) if i != j), jnp.zeros(d**k))
                axes = tuple(i for i in range(k) if i != j)
                if neutral:
                    n.append((jnp.exp(out) * g).reshape((d,) * k).sum(axis=axes))
                else:
                    n.append(logsumexp((out + lam * g).reshape((d,) * k), axis=axes) / lam)
            made = jnp.stack(n)
            return pi, lb, c - c.max(), made - made.max(axis=1, keepdims=True)

        def inner(f: Any, n: Any, c: Any, w: Any, paid: Any, kk: Any, end: Any, alpha: Any) -> Any:
            """Node step in parallel, factors in turn, until the slice rests."""
            u = given["unary"] * w
            stay = local * w + kk
            own = jnp.where(
                end,
                -alpha * jnp.log(a_n * 1.0),
                jnp.where(given["allowed"] > 0, -paid * given["cost"], FORBIDDEN),
            )

            def once(state: Any) -> Any:
                it, n, c, _ = state
                lm = node(f, u, n)

                def one(total: Any, xs: Any) -> Any:
                    lm_e, stay_e, c_e = xs
                    _, _, new, n_e = factor(lm_e, stay_e, total - c_e + own, alpha)
                    return total if flooding else total - c_e + new, (new, n_e)

                _, (c2, n2) = jax.lax.scan(one, c.sum(axis=0), (lm, stay, c))
                return it + 1, n2, c2, jnp.maximum(jnp.abs(c2 - c).max(), change(f, n2, n))

            first = (0, n, c, jnp.inf)
            it, n, c, delta = jax.lax.while_loop(
                lambda s: (s[0] < num["inner"]) & (s[3] > 0.1 * num["tolerance"]), once, first
            )
            lm = node(f, u, n)
            others = c.sum(axis=0)[None] - c + own
            pi, lb, _, _ = jax.vmap(factor, (0, 0, 0, None))(lm, stay, others, alpha)
            return n, c, pi, lb, it, delta <= 0.1 * num["tolerance"]

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
        f, b, n, c, pi, lb, kk = messages
        bel = jnp.exp(lb)
        joint = bel[..., None] * pi
        w = given["counts"][:, None]
        q = joint.sum(axis=2)
        u = given["unary"][None] * w[..., None]
        lq = safe(f) + (0.0 if neutral else lam * (u + jax.vmap(gather)(n)))
        beliefs = jax.nn.softmax(lq, axis=2) * (f > 0)
        value = (w[..., None, None] * joint * local[None]).sum() + (beliefs * u).sum()
        value = value - (given["paid"] * (q.mean(axis=1) @ given["cost"]))[:-1].sum()
        if not neutral:
            b_next = b.at[:, n1 - 1].set(0.0)[1:][:, child]
            log_q = lam * (b_next[:, :, None, None] - kk[:-1][..., None])
            spent = (joint[:-1][..., None] * table[None] * jnp.exp(log_q) * log_q).sum()
            cube = bel.reshape(slices, e_n, *(d,) * k)
            apart = sum(
                entropy(cube.sum(axis=tuple(2 + i for i in range(k) if i != j))) for j in range(k)
            )
            value = value - (spent + apart - entropy(bel)) / lam
        scores = c[0].sum(axis=0) - given["cost"]
        return {
            "value": value, "q": q[0].mean(axis=0), "scores": scores, "forward": f,
            "beliefs": beliefs, "residual": residual, "sweeps": it, "inner": done, "rested": rested,
            "f0": f, "b0": b, "n0": n, "c0": c,
        }  # fmt: skip

    return jax.jit(run)
