"""Backward filtering, forward guiding: chains, trees, DAGs and strings against plain baselines.

Run `python tests/benchmarks/bench_bffg.py [--quick]`. Wall times, best of a few calls after
compilation. Every baseline is written here, in the same library: a Kalman filter by `lax.scan`, a
forward algorithm by `lax.scan`, the dense sum over tokens. The bounds name hyperiax, dynamax and
cuthbert: `make peers-bffg` runs these.
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import least

from lmppl import load
from lmppl.inference import bffg
from lmppl.lm.base import TokenLaw
from lmppl.random import GumbelMax
from lmppl.token_potentials.samplers import next_rows

REPEATS = 5
EXAMPLES = Path(__file__).parents[2] / "examples"


def seconds(fn: Callable[[], Any]) -> tuple[float, float]:
    """The first call, which compiles, and the best of the later ones."""
    began = time.perf_counter()
    jax.block_until_ready(fn())  # type: ignore[no-untyped-call]
    first, times = time.perf_counter() - began, []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(fn())  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - began)
    return first, min(times)


def row(name: str, first: float, later: float, plain: float | None, bound: str) -> None:
    """A line of the table."""
    ratio = "" if plain is None else f"{plain * 1e3:9.2f} {later / plain:6.2f}"
    print(f"{name:38} {first:7.2f} {later * 1e3:9.2f} {ratio:16}  {bound}", flush=True)


def gaussian(d: int, seed: int = 0) -> tuple[Any, Any, float]:
    """A stable linear map B, a noise factor L [d, d] and the variance R of a measurement."""
    rng = np.random.default_rng(seed)
    B = 0.95 * np.linalg.qr(rng.normal(size=(d, d)))[0]
    return jnp.asarray(B), jnp.asarray(0.3 * np.eye(d) + 0.05 * rng.normal(size=(d, d))), 0.1


@jax.jit
def kalman(B: Any, L: Any, R: Any, y: Any) -> Any:
    """log p(y) by the textbook filter, x_0 ~ N(0, I)."""
    d, Q = B.shape[0], L @ L.T
    eye = jnp.eye(d)

    def move(carry: Any, y: Any) -> Any:
        m, P = carry
        C = jnp.linalg.cholesky(P + R * eye)
        w = jax.scipy.linalg.solve_triangular(C, y - m, lower=True)
        K = jax.scipy.linalg.cho_solve((C, True), P).T
        level = -0.5 * (w @ w + d * jnp.log(2 * jnp.pi)) - jnp.log(jnp.diagonal(C)).sum()
        return (B @ (m + K @ (y - m)), B @ (P - K @ P) @ B.T + Q), level

    _, levels = jax.lax.scan(move, (jnp.zeros(d), eye), y)
    return jnp.sum(levels)


def gaussian_chain(T: int, d: int = 4) -> None:
    """log-evidence of a linear-Gaussian chain, and of one in float32 far from the origin."""
    B, L, R = gaussian(d)
    model = bffg.chain(
        T,
        lambda p, c: bffg.LinearGaussian(p[0], jnp.zeros(d), p[1]),
        lambda p, c: bffg.LinearGaussian.prior(jnp.zeros(d), jnp.eye(d)),
        lambda p, c: bffg.GaussianLeaf(jnp.eye(d), R * jnp.eye(d)),
    )
    y = jnp.asarray(np.random.default_rng(1).normal(size=(T, d)))
    first, ours = seconds(lambda: bffg.backward(model, y, (B, L)).log_evidence)
    _, plain = seconds(lambda: kalman(B, L, R, y))
    row(f"Gaussian chain, T={T:,}, d={d}", first, ours, plain, "1.2x of dynamax or cuthbert")
    once = bffg.refine(0)  # anchors on the path without noise: one pass, not two and a sweep
    first, ours = seconds(lambda: bffg.backward(model, y, (B, L), anchors=once).log_evidence)
    row("    the same, refine(0)", first, ours, plain, "")
    far = float(bffg.backward(model, y, (B, L)).log_evidence) - float(kalman(B, L, R, y))
    print(f"    difference of the two log evidences: {far:.4f} nats")


def offset(T: int) -> None:
    """A float32 random walk with data about 1e4, against the same in float64 by numpy."""
    rng = np.random.default_rng(2)
    x = np.cumsum(rng.normal(size=T)) + 1e4
    y = (x + 0.1 * rng.normal(size=T)).astype(np.float32).astype(np.float64)
    m, P, level = 1e4, 1.0, 0.0
    for v in y:
        S = P + 0.01
        level += -0.5 * ((v - m) ** 2 / S + np.log(2 * np.pi * S))
        m, P = m + P / S * (v - m), P * 0.01 / S + 1.0
    eye = jnp.eye(1)
    model = bffg.chain(
        T,
        lambda p, c: bffg.LinearGaussian(eye, jnp.zeros(1), eye),
        lambda p, c: bffg.LinearGaussian.prior(jnp.full(1, 1e4), eye),
        lambda p, c: bffg.GaussianLeaf(eye, 0.01 * eye),
    )
    found = float(bffg.backward(model, jnp.asarray(y, jnp.float32)[:, None]).log_evidence)
    print(f"float32, T={T:,}, data about 1e4: error {abs(found - level):.4f} nats  (bound 0.1)")


@jax.jit
def forward_algorithm(P: Any, E: Any, y: Any) -> Any:
    """log p(y) of a hidden Markov model, uniform start."""

    def move(f: Any, y: Any) -> Any:
        f = f * E[:, y]
        total = f.sum()
        return (f / total) @ P, jnp.log(total)

    start = jnp.full(P.shape[0], 1.0 / P.shape[0])
    return jnp.sum(jax.lax.scan(move, start, y)[1])


def hmm(T: int, states: int, k: int = 8) -> None:
    """A dense matrix, and one with k children per state, against the forward algorithm."""
    rng = np.random.default_rng(3)
    child = (np.arange(states)[:, None] + np.arange(k)) % states
    p = rng.dirichlet(np.ones(k), states)
    P = np.zeros((states, states))
    P[np.arange(states)[:, None], child] = p
    E = jnp.asarray(rng.dirichlet(np.ones(16), states))
    y = rng.integers(0, 16, T)
    start = bffg.Finite(jnp.full(states, 1.0 / states))

    def model(kernel: Any) -> Any:
        return bffg.chain(T, kernel, lambda p, c: start, lambda p, c: bffg.FiniteLeaf(E))

    matrix, plain_y, data = jnp.asarray(P), jnp.asarray(y), jnp.asarray(y.astype(np.float64))
    _, plain = seconds(lambda: forward_algorithm(matrix, E, plain_y))
    levels = [float(forward_algorithm(matrix, E, plain_y))]
    for name, kernel, params in (
        ("dense", lambda q, c: bffg.Finite(q), matrix),
        (f"sparse, {k} children", lambda q, c: bffg.Sparse(*q), (jnp.asarray(child), jnp.asarray(p))),
    ):  # fmt: skip
        m = model(kernel)
        first, later = seconds(lambda m=m, q=params: bffg.backward(m, data, q).log_evidence)  # type: ignore[misc]
        row(f"HMM, T={T:,}, {states} states, {name}", first, later, plain, "")
        levels.append(float(bffg.backward(m, data, params).log_evidence))
    print(f"    log evidences: {', '.join(f'{v:.3f}' for v in levels)}")


def gaussian_graph(name: str, parents: list[tuple[int, ...]], observed: list[int]) -> None:
    """One guided draw with its weight, of a Gaussian graph whose edges have length 1."""

    def kernel(p: int) -> Any:
        return lambda q, c: bffg.LinearGaussian(
            jnp.full((1, p), 1.0 / max(p, 1)), jnp.zeros(1), jnp.sqrt(q) * jnp.eye(1)
        )

    model = bffg.dag(
        parents,
        {"root": lambda q, c: bffg.Point(jnp.zeros(1)), "one": kernel(1), "two": kernel(2)},
        [("root", "one", "two")[len(pa)] for pa in parents],
        observed,
        lambda q, c: bffg.GaussianLeaf(jnp.eye(1), 0.1 * jnp.eye(1)),
    )
    y = jnp.asarray(np.random.default_rng(4).normal(size=(len(observed), 1)))
    q = jnp.asarray(0.5)
    noise = bffg.draw_noise(model, 0, q)
    first, later = seconds(lambda: bffg.guided_path(bffg.backward(model, y, q), noise))
    bound = ">= 1.5x, compilation >= 3x faster than hyperiax" if name == "tree" else ""
    row(f"{name}, {len(parents):,} nodes, one weighted draw", first, later, None, bound)


def rule(Q: int, V: int, seed: int = 5) -> bffg.DFA:
    """A chain of states, and 200 tokens that lead anywhere, as of a regex."""
    rng = np.random.default_rng(seed)
    delta = np.tile(np.minimum(np.arange(Q) + 1, Q - 1)[:, None], (1, V))
    special = rng.choice(V, 200, replace=False)
    delta[:, special] = rng.integers(0, Q, (Q, 200))
    return bffg.DFA.dense(delta, tuple(range(Q)))


def surrogate(states: int, V: int, clusters: int | None = None, seed: int = 6) -> bffg.HMM:
    """A random one, in float32."""
    rng = np.random.default_rng(seed)
    start, A, B = (
        rng.dirichlet(np.ones(k), n)
        for k, n in ((states, 1), (states, states), (clusters or V, states))
    )
    found = None
    if clusters is not None:
        of = rng.integers(0, clusters, V)
        found = bffg.Clusters(of, 1.0 / np.bincount(of, minlength=clusters)[of])
    return bffg.HMM(start[0], A, B.astype(np.float32), found)


def strings(V: int, states: int, Q: int, N: int, repeats: int) -> None:
    """Scores of all next tokens: classes of tokens against the sum over tokens."""
    model, dfa = surrogate(states, V), rule(Q, V)
    guide = bffg.HMMAutomaton(model, dfa, 32, dfa.terminal(lambda s: 1.0 + s))
    at = guide.advance(guide.start(N), np.random.default_rng(7).integers(0, V, N))
    n = 32 - at.t - 1

    def dense() -> Any:
        phi, u = at.phi.astype(np.float32), guide.u[n].astype(np.float32)
        to = dfa.delta[at.s]
        mean = np.stack([np.einsum("h,hv,hv->v", phi[i], model.B, u[:, to[i]]) for i in range(N)])
        return np.log(mean / (phi @ model.B)) + guide.scales[n][to]

    gap = np.abs(dense() - guide.log_next(at)).max()

    a, b = (least(fn, repeats, time.perf_counter) for fn in (lambda: guide.log_next(at), dense))
    print(f"classes of tokens, Q={Q}, N={N}, V={V:,}, H={states}: {a * 1e3:.1f} ms, dense sum "
          f"{b * 1e3:.1f} ms, {b / a:.1f}x (bound 2.5x); they differ by {gap:.1e}")  # fmt: skip


def beside_smollm2(N: int, Q: int, repeats: int) -> None:
    """The guide's part of a step in which SmolLM2 draws a token for each of N strings.

    CPU seconds of this process. "guide": every token, as `guided_strings` asks; "rare": with
    `rare=1e-3`; "potential": as `LM(potential=...)`; "TopK": with `sampler=TopK(50)` besides.
    """
    lm, rng = load("smollm2"), np.random.default_rng(8)
    V, laws, chance = lm.vocab_size, [TokenLaw()] * N, GumbelMax()
    rows = lm.open([lm.context(f"Once upon a time there were {i} strings") for i in range(N)])
    keys = np.arange(N, dtype=np.uint64)

    def step() -> None:
        rows.push(rows.draw(keys, laws, None, chance).tokens)

    step()
    whole = least(step, repeats)
    likely = np.asarray(rows.log_probs()) >= np.log(1e-3)
    best = rows.weights(laws).proposal.largest(50)
    rows.close()
    print(f"a step of SmolLM2, {N} strings: {whole * 1e3:.1f} ms; {likely.sum() / N:.0f} tokens a string have "
          f"1e-3; of it, bound 20 %:\n{'':33}guide{'rare':>17}{'potential':>17}{'TopK':>17}")  # fmt: skip
    dfa, drawn = rule(Q, V), rng.integers(0, V, N)
    for states, clusters in ((8, None), (32, 256), (256, 256), (512, None)):
        guide = bffg.HMMAutomaton(
            surrogate(states, V, clusters), dfa, 32, dfa.terminal(lambda s: 1.0 + s)
        )
        at = guide.advance(guide.start(N), drawn)
        start = bffg.string_potential(guide).start(lm)
        trackers = [start.advance(int(v)) for v in drawn]
        ways: tuple[Callable[[], Any], ...] = (
            lambda: (guide.log_next(at), guide.advance(at, drawn)),  # noqa: B023
            lambda: (guide.log_among(at, likely), guide.advance(at, drawn)),  # noqa: B023
            lambda: next_rows(trackers),  # noqa: B023
            lambda: [t.log_next(ids.tolist()) for t, ids in zip(trackers, best, strict=True)],  # noqa: B023
        )
        kind = f"{states} states, {f'{clusters} clusters' if clusters else 'all tokens'}"
        times = [least(way, repeats) for way in ways]
        print(f"    {kind:24}" + "".join(f"{t * 1e3:7.1f} ms{t / whole:7.1%}" for t in times))


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema() -> None:
    """The automaton of a JSON schema, over the tokens of SmolLM2, and a filter of 64 tokens."""
    lm, clock = load("smollm2"), time.process_time
    times = [clock()]
    found = bffg.matching(json_schema=SCHEMA)
    times.append(clock())
    dfa = found.over(lm)
    times.append(clock())
    model = surrogate(32, lm.vocab_size, 256)
    bffg.HMMAutomaton(model, dfa, 64, dfa.terminal(lambda s: s.accepts))
    times.append(clock())
    learnt, read, filled = np.diff(times)
    print(f"a JSON schema: {learnt:.1f} s for {len(found.table)} states, {read:.2f} s for {len(dfa.of):,} tokens "
          f"in {dfa.table.shape[1]} classes, {filled:.2f} s for the filter (bound 20 s in all)")  # fmt: skip


def string_toy() -> None:
    """The toy of examples/guided_text_toy.py by exact sums: ESS / N, and the spread of one weight."""
    sizes = runpy.run_path(str(EXAMPLES / "guided_text_toy.py"))["toy"]()
    spread = {name: (1 / size - 1) ** 0.5 for name, size in sizes.items()}
    print(f"string toy: ESS/N {sizes['guide']:.3f} (bound 0.22), masks {sizes['masks']:.3f}; relative sd of "
          f"the evidence {spread['rejection'] / spread['guide']:.1f}x below bootstrap (bound 5x)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="sizes for a minute at most")
    quick = parser.parse_args().quick
    print(f"{'':38} {'first s':>7} {'then ms':>9} {'plain ms':>9} {'ratio':>6}  bound")
    gaussian_chain(1000 if quick else 10_000)
    hmm(500 if quick else 2000, 64 if quick else 512)
    levels = 9 if quick else 13
    n = 2**levels - 1
    tree: list[tuple[int, ...]] = [()] + [((i - 1) // 2,) for i in range(1, n)]
    gaussian_graph("tree", tree, list(range(n // 2, n)))
    for side in (5,) if quick else (12, 32):
        lattice = [
            tuple(v for v, ok in ((i - side, i >= side), (i - 1, i % side > 0)) if ok)
            for i in range(side * side)
        ]
        gaussian_graph("DAG with colliders", lattice, list(range(side * (side - 1), side * side)))
    offset(500 if quick else 2000)
    strings(4000 if quick else 32_000, 64 if quick else 512, 60, 8, 3)
    beside_smollm2(32, 60, 3 if quick else 8)
    schema()
    string_toy()


if __name__ == "__main__":
    main()
