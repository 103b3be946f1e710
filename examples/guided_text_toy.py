"""The four ways of `guided_text.py` on a toy: how wrong is each of them, exactly?

A model with three tokens of memory has 97,656 strings, which can be listed. So the effective sample
size and the total variation from the true law are sums, not estimates:

* rejection: right, and wasteful;
* masks: forbid what makes the rule impossible *now*; too late for what must still come;
* a guide without weights: q ∝ p g, g a hidden Markov surrogate of the model times an automaton of
  the rule. The rule always holds, the law is wrong;
* the same guide with weights: right again, with more strings in use.

Reference: Zhang, Kung, Yoshida, Van den Broeck and Peng, Adaptable logical control for large
language models (2024), for the surrogate; van der Meulen and Schauer (2020), for the weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

NEEDS = "jax"
SLOW = True

# -- the toy: three tokens of memory, six tokens, the last of them the end ------------------------

V, T, END = 6, 7, 5
TABLE = 1.3 * np.random.default_rng(11).normal(size=(7, 7, 7, 6))
P_RULE = 0.013181588109037681


def toy_rows(prefixes: Any) -> Any:
    """log p(next | prefix) of each prefix [n, t]."""
    n, t = prefixes.shape
    a, b, c = np.concatenate([np.full((n, 3), 6), prefixes], axis=1)[:, -3:].T
    logits = TABLE[a, b, c].copy()
    logits[:, END] += -2 + 0.35 * t
    logits -= np.logaddexp.reduce(logits, axis=1)[:, None]
    if t:
        logits[prefixes[:, -1] == END] = np.where(np.arange(V) == END, 0.0, -np.inf)
    return logits


def toy_rule(state: str, v: int) -> str:
    """It contains 0 1, then never 3, and ends."""
    if state in ("dead", "over") or v == END:
        return "over" if v == END and state in ("found", "over") else "dead"
    if state == "found":
        return "dead" if v == 3 else "found"
    return "found" if state == "zero" and v == 1 else "zero" if v == 0 else ""


def listed() -> tuple[Any, Any]:
    """All strings, and log p."""
    x, lp = np.zeros((1, 0), dtype=int), np.zeros(1)
    for _ in range(T):
        rows = lp[:, None] + toy_rows(x)
        at, v = np.nonzero(np.isfinite(rows))
        x, lp = np.concatenate([x[at], v[:, None]], axis=1), rows[at, v]
    return x, lp


def proposed(guide: Any, x: Any) -> tuple[Any, Any]:
    """q and W of each string under a guide, without resampling."""
    at, log_q = guide.start(len(x)), np.zeros(len(x))
    used = log_w = guide.log_g(at)
    with np.errstate(invalid="ignore"):
        for t in range(T):
            following = guide.log_next(at)
            logits = toy_rows(x[:, :t]) + following
            total, row = np.logaddexp.reduce(logits, axis=1), (np.arange(len(x)), x[:, t])
            log_w, log_q = log_w + total - used, log_q + logits[row] - total
            used, at = following[row], guide.advance(at, x[:, t])
    gone = np.isnan(log_q) | np.isnan(log_w)
    return np.where(gone, 0.0, np.exp(log_q)), np.where(gone, 0.0, np.exp(log_w))


def toy() -> dict[str, float]:
    """The four ways, by exact sums; ESS / N of each that has weights."""
    from lmppl.inference import bffg

    x, lp = listed()
    dfa = bffg.automaton(toy_rule, "", V)
    s = np.zeros(len(x), dtype=int)
    for column in x.T:
        s = dfa.after(s, column)
    tau = dfa.terminal(lambda state: state == "over")
    p = np.exp(lp) * tau[s]
    assert math.isclose(p.sum(), P_RULE, rel_tol=1e-12)

    class Mask(bffg.HMMAutomaton):
        """A guide that knows only what is possible."""

        def log_g(self, at: Any) -> Any:
            return np.where(self.reachable[T - at.t, at.s], 0.0, -np.inf)

        def log_next(self, at: Any) -> Any:
            return np.where(self.reachable[T - at.t - 1][dfa.delta[at.s]], 0.0, -np.inf)

    flat = bffg.HMM(np.ones(1), np.ones((1, 1)), np.full((1, V), 1 / V))
    mask = Mask(flat, dfa, T, tau)
    drawn = x[np.random.default_rng(0).choice(len(x), 20_000, p=np.exp(lp) / np.exp(lp).sum())]
    guide = bffg.HMMAutomaton(bffg.fit_hmm(drawn, 16, V, 80), dfa, T, tau)
    print(f"the toy: P(rule) = {P_RULE:.6f}\n{'':28}{'ESS / N':>8}{'TV':>8}")
    sizes = {"rejection": P_RULE}
    print(f"{'rejection':28}{P_RULE:8.4f}{0:8.3f}")
    for name, g in (("masks", mask), ("guide", guide)):
        q, w = proposed(g, x)
        ess = sizes[name] = float((q * w).sum() ** 2 / (q * w * w).sum())
        right, wrong = (0.5 * np.abs(a / a.sum() - p / P_RULE).sum() for a in (q * w, q))
        print(f"{name + ' without weights':28}{'':8}{wrong:8.3f}")
        print(f"{name + ' with weights':28}{ess:8.4f}{right:8.3f}")
        assert math.isclose((q * w).sum(), P_RULE, rel_tol=1e-10) and right < 1e-10
    return sizes


def main() -> None:
    sizes = toy()
    assert sizes["guide"] > 0.22 > 0.05 > sizes["masks"]


if __name__ == "__main__":
    main()
