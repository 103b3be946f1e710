"""Our backward filter beside dynamax and cuthbert on a chain, and hyperiax on a tree, in one run.

    chain   log evidence, T = 10,000, d = 4               bound: 1.2 times the faster of the two
    tree    8,191 nodes, one guided draw with its weight  bound: 1.5 times as fast, compiled 3 times

Run by `make peers-bffg`, in an environment of its own. "first" is what building and the first call
take, in seconds of the clock and of all cores: the latter say the same on a machine that others use.
"later" is the least of some calls, made in turn. Times are of float32; that all compute the same
number is checked in float64. `--parallel` adds the associative scans, which take minutes to compile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cuthbert
import hyperiax
import jax
import jax.numpy as jnp
import numpy as np
from cuthbert.gaussian import kalman
from dynamax.linear_gaussian_ssm import inference, parallel_inference
from hyperiax.prebuilt import bffg as theirs

from lmppl.inference import bffg

T, D, R = 10_000, 4, 0.1
DEPTH, SIGMA2, TAU2 = 12, 0.5, 0.1
REPEATS = 15
SAME = 1e-6

Call = Callable[[], Any]
"""A compiled function at its arguments: a log evidence, or one and the path of the draw."""


class Times:
    """Of some ways to compute one number."""

    def __init__(self, makers: dict[str, Callable[[], Call]], repeats: int) -> None:
        self.first, self.work, self.value = {}, {}, {}
        self.later = dict.fromkeys(makers, np.inf)
        calls = {}
        for name, make in makers.items():
            began, worked = time.perf_counter(), time.process_time()
            calls[name] = make()
            found = jax.block_until_ready(calls[name]())  # type: ignore[no-untyped-call]
            self.first[name] = time.perf_counter() - began
            self.work[name] = time.process_time() - worked
            self.value[name] = float(found[0] if isinstance(found, tuple) else found)
            print(f"    {name}: built and called in {self.first[name]:.1f} s", flush=True)
        for _ in range(repeats):
            for name, call in calls.items():
                began = time.perf_counter()
                jax.block_until_ready(call())  # type: ignore[no-untyped-call]
                self.later[name] = min(self.later[name], time.perf_counter() - began)

    def show(self, title: str) -> None:
        """A line for each."""
        print(f"{title:36} {'first s':>8} {'cores s':>8} {'later ms':>9} {'log evidence':>16}")
        for name, first in self.first.items():
            later, value = self.later[name] * 1e3, self.value[name]
            print(f"    {name:32} {first:8.2f} {self.work[name]:8.2f} {later:9.2f} {value:16.6f}")

    def gap(self) -> float:
        """The largest relative difference of the numbers from ours."""
        ours = self.value["lmppl"]
        return max(abs(v / ours - 1) for v in self.value.values())


# -- the chain -------------------------------------------------------------------------------------


def chain_data() -> tuple[Any, Any, Any]:
    """B, L and y_1 … y_T of a stable chain from x_0 ~ N(0, I), which is not observed."""
    rng = np.random.default_rng(0)
    B = 0.95 * np.linalg.qr(rng.normal(size=(D, D)))[0]
    L = 0.3 * np.eye(D) + 0.05 * np.tril(rng.normal(size=(D, D)))
    x, ys = rng.normal(size=D), []
    for _ in range(T):
        x = B @ x + L @ rng.normal(size=D)
        ys.append(x + np.sqrt(R) * rng.normal(size=D))
    return jnp.asarray(B), jnp.asarray(L), jnp.asarray(np.array(ys))


def our_chain(B: Any, L: Any, y: Any, rounds: int) -> Call:
    """By `bffg.backward`."""
    eye, zero = jnp.eye(D), jnp.zeros(D)
    model = bffg.chain(
        T + 1,
        lambda p, c: bffg.LinearGaussian(p[0], zero, p[1]),
        lambda p, c: bffg.LinearGaussian.prior(zero, eye),
        lambda p, c: bffg.GaussianLeaf(eye, R * eye),
        observed=range(1, T + 1),
    )

    @jax.jit
    def level(y: Any, p: Any) -> Any:
        return bffg.backward(model, y, p, anchors=bffg.refine(rounds)).log_evidence

    return lambda: level(y, (B, L))


def dynamax_chain(B: Any, L: Any, y: Any, module: Any) -> Call:
    """By its Kalman filter, whose first state is x_1."""
    eye, zero, Q = jnp.eye(D), jnp.zeros(D), L @ L.T
    params = inference.make_lgssm_params(zero, B @ B.T + Q, B, Q, eye, R * eye)
    level = jax.jit(lambda p, y: module.lgssm_filter(p, y).marginal_loglik)
    return lambda: level(params, y)


def cuthbert_chain(B: Any, L: Any, y: Any, parallel: bool) -> Call:
    """By its square-root Kalman filter."""
    eye, zero = jnp.eye(D), jnp.zeros(D)

    @jax.jit
    def level(B: Any, L: Any, y: Any) -> Any:
        filter_ = kalman.build_filter(
            zero, eye, lambda y: (B, zero, L), lambda y: (eye, zero, jnp.sqrt(R) * eye, y)
        )
        states = cuthbert.filter(filter_, y, filter_.init_prepare(), parallel=parallel)
        return states.log_normalizing_constant[-1]

    return lambda: level(B, L, y)


def chains(repeats: int, parallel: bool) -> Times:
    """All ways, on the same data."""
    data = chain_data()
    makers: dict[str, Callable[[], Call]] = {
        "lmppl": lambda: our_chain(*data, 1),
        "lmppl, refine(0)": lambda: our_chain(*data, 0),
        "dynamax": lambda: dynamax_chain(*data, inference),
        "cuthbert": lambda: cuthbert_chain(*data, False),
    }
    if parallel:
        makers["dynamax, parallel"] = lambda: dynamax_chain(*data, parallel_inference)
        makers["cuthbert, parallel"] = lambda: cuthbert_chain(*data, True)
    return Times(makers, repeats)


# -- the tree --------------------------------------------------------------------------------------


def tree_data() -> tuple[Any, Any]:
    """Observations of the leaves of a walk along unit edges from 0, and noise for a draw."""
    n = 2 ** (DEPTH + 1) - 1
    rng = np.random.default_rng(1)
    x = np.zeros(n)
    for i in range(1, n):
        x[i] = x[(i - 1) // 2] + np.sqrt(SIGMA2) * rng.normal()
    leaves = x[n // 2 :]
    y = leaves + np.sqrt(TAU2) * rng.normal(size=leaves.shape)
    return jnp.asarray(y[:, None]), jnp.asarray(rng.normal(size=(n, 1)))


def our_tree(y: Any, z: Any) -> Call:
    """log W of a guided draw, and the draw."""
    n, one = len(z), jnp.eye(1)
    model = bffg.tree(
        [-1] + [(i - 1) // 2 for i in range(1, n)],
        lambda q, c: bffg.LinearGaussian(one, jnp.zeros(1), jnp.sqrt(q) * one),
        lambda q, c: bffg.Point(jnp.zeros(1)),
        range(n // 2, n),
        lambda q, c: bffg.GaussianLeaf(one, TAU2 * one),
    )

    @jax.jit
    def draw(y: Any, z: Any, q: Any) -> Any:
        noise = {"root": jnp.zeros((1, 0)), "edge": z[1:]}
        values, log_w = bffg.guided_path(bffg.backward(model, y, q), noise)
        return log_w, values

    return lambda: draw(y, z, jnp.asarray(SIGMA2))


def hyperiax_tree(y: Any, z: Any) -> Call:
    """The same, as in its notebooks."""
    empty = hyperiax.Tree.empty(
        hyperiax.symmetric_topology(depth=DEPTH, degree=2), theirs.discrete_schema(d=1)
    )
    one = jnp.eye(1)

    def B(anchor: Any, p: Any) -> Any:
        return one

    def shift(anchor: Any, p: Any) -> Any:
        return jnp.zeros(1)

    def Q(anchor: Any, p: Any) -> Any:
        return p["q"] * one

    up = theirs.discrete_bf_sweep(B, shift, Q)
    down = theirs.discrete_fg_sweep(lambda x, p: x, Q, B, shift, Q)

    @jax.jit
    def draw(y: Any, z: Any, q: Any) -> Any:
        tree = theirs.init_discrete_tree(empty, y, obs_var=TAU2, d=1, root_val=jnp.zeros(1))
        tree = down(up(tree, params={"q": q}).set(z=z), params={"q": q})
        return tree.log_norm[0] + tree.log_corr.sum(), tree.val

    return lambda: draw(y, z, jnp.asarray(SIGMA2))


def trees(repeats: int) -> Times:
    """Both."""
    data = tree_data()
    return Times(
        {"lmppl": lambda: our_tree(*data), "hyperiax": lambda: hyperiax_tree(*data)}, repeats
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", action="store_true", help="associative scans too")
    chain = chains(REPEATS, parser.parse_args().parallel)
    chain.show(f"chain, T = {T:,}, d = {D}, float32")
    best = min((n for n in chain.later if not n.startswith("lmppl")), key=chain.later.__getitem__)
    for name in ("lmppl", "lmppl, refine(0)"):
        print(f"{name} / {best}: {chain.later[name] / chain.later[best]:.2f}  (bound 1.2)")
    tree = trees(REPEATS)
    tree.show(f"tree, {2 ** (DEPTH + 1) - 1:,} nodes, float32")
    print(f"one draw: {tree.later['hyperiax'] / tree.later['lmppl']:.2f} times as fast (bound 1.5); "
          f"compiled {tree.first['hyperiax'] / tree.first['lmppl']:.2f} times as fast by the clock, "
          f"{tree.work['hyperiax'] / tree.work['lmppl']:.2f} by all cores (bound 3)")  # fmt: skip
    with jax.enable_x64(True):
        gaps = {"chain": chains(0, False).gap(), "tree": trees(0).gap()}
    for name, gap in gaps.items():
        print(f"{name}: largest relative difference in float64 {gap:.1e}  (bound {SAME:.0e})")
    if max(gaps.values()) > SAME:
        raise SystemExit("the packages do not compute the same number")


if __name__ == "__main__":
    main()
