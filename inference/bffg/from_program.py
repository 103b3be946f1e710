"""`from_program`: a program with a `loop` over numeric states as a backward-filtered model, in JAX.

The program draws at most one state before its `loop` (or `markov`); each step draws the next state
and returns it, and may observe it once. States are finite (`Categorical`, `Bernoulli`, …) or
Gaussian (NumPyro's `Normal`, `Normal.to_event(1)`, `MultivariateNormal`). The same program still
runs under every engine: "observe at the leaves, guide the inside" needs no second model.

A finite step is run once per state. A Gaussian step is run with JAX values: where its mean is
affine and its noise constant, to a numerical check, it becomes an exact `LinearGaussian`, else a
`NonlinearGaussian`, which is guided through its linearisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.distributions import Distribution
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference.bffg.families.finite import Finite, FiniteLeaf
from lmppl.inference.bffg.families.gaussian import (
    GaussianLeaf,
    LinearGaussian,
    NonlinearGaussian,
    NonlinearLeaf,
)
from lmppl.inference.bffg.messages import Array
from lmppl.inference.bffg.model import Model, Point, chain
from lmppl.inference.bffg.recorder import (
    SHAPE,
    Recorder,
    any_value,
    base_of,
    is_gaussian,
    moments,
    run_step,
    support,
)


@dataclass(frozen=True)
class Converted:
    """A program as a model.

    Args:
        model: for `backward`, with `data`.
        data: what the program observes.
        addresses: of the sample site of each node; "" for a first state that is no site.
        states: the values of a finite state, by index; None for real ones.
    """

    model: Model
    data: Array
    addresses: tuple[str, ...]
    states: tuple[Any, ...] | None = None

    def decode(self, values: Any) -> Any:
        """Node values as the program's: indices become states."""
        if self.states is None:
            return np.asarray(values)
        table = np.empty(len(self.states), dtype=object)
        table[:] = self.states
        return table[np.asarray(values)]


def from_program(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Converted:
    """The model and the data of a program.

    >>> from lmppl import Categorical, loop, observe, program, sample
    >>> P = [Categorical({0: 0.9, 1: 0.1}), Categorical({0: 0.2, 1: 0.8})]
    >>> @program
    ... def hmm(ys):
    ...     def step(x, t):
    ...         x = sample("x", P[x])
    ...         observe("y", P[x], ys[t])
    ...         return x
    ...     return loop(step, 0, n=len(ys))
    >>> found = from_program(hmm, [0, 1, 1])
    >>> found.addresses, found.states
    (('', 'loop[0]/x', 'loop[1]/x', 'loop[2]/x'), (0, 1))
    """
    recorder = Recorder(any_value)
    recorder.enter(getattr(program, "fn", program), *args, **kwargs)
    if recorder.loops != 1 or not recorder.steps:
        raise BadArgument(f"{SHAPE}; this one has {recorder.loops} loops")
    n = len(recorder.steps)
    before = len(recorder.seen.samples) - n
    if before not in (0, 1):
        raise BadArgument(
            f"{SHAPE}; this one has {len(recorder.seen.samples)} sample sites in {n} steps"
        )
    laws = [law for _, law in recorder.seen.samples]
    names = tuple(a for a, _ in recorder.seen.samples)
    addresses = names if before else ("", *names)
    prior = laws[0] if before else None
    if recorder.before:
        raise BadArgument("from_program cannot convert an observation before the loop", why=SHAPE)
    first = recorder.steps[0][1]
    if is_gaussian(laws[-1]):
        model, data = _gaussian_chain(recorder, prior, first)
        return Converted(model, data, addresses)
    return _finite_chain(recorder, prior, first, addresses)


# -- finite states -------------------------------------------------------------------------------


def _finite_chain(
    recorder: Recorder, prior: Any, first: Any, addresses: tuple[str, ...]
) -> Converted:
    start = [first] if prior is None else [v for v, _ in support(prior)]
    states: dict[Any, int] = {}
    for v in start:
        states.setdefault(v, len(states))
    reach, rows, tables = list(start), [], []
    for step in recorder.steps:
        found: dict[Any, dict[Any, float]] = {}
        for x in reach:
            _, law = run_step(step, x).samples[0]
            found[x] = {v: float(np.exp(lp)) for v, lp in support(law)}
        rows.append(found)
        reach = list(dict.fromkeys(v for row in found.values() for v in row))
        for v in reach:
            states.setdefault(v, len(states))
        tables.append({v: _likelihood(step, list(found), v) for v in reach})
    size = len(states)
    P = np.zeros((len(rows) + 1, size, size))
    P[:, range(size), range(size)] = 1.0  # states that cannot be reached at a step
    for t, found in enumerate(rows):
        for x, row in found.items():
            P[t + 1, states[x]] = 0.0
            for v, p in row.items():
                P[t + 1, states[x], states[v]] += p
    E = [np.array([table.get(v, 1.0) for v in states]) for table in tables]
    root = np.zeros(size)
    for v, lp in support(prior) if prior is not None else [(first, 0.0)]:
        root[states[v]] += np.exp(lp)
    ones = np.ones(size)
    model = chain(
        len(rows) + 1,
        lambda p, c: Finite(c),
        lambda p, c: Finite(jnp.asarray(root)),
        lambda p, c: FiniteLeaf(c[:, None]),
        covariates=P,
        leaf_covariates=np.stack([ones, *E]),
    )
    return Converted(model, jnp.zeros(len(rows) + 1), addresses, tuple(states))


def _log_prob(law: Distribution, value: Any) -> float:
    return law.log_prob(value)


def _likelihood(step: Any, parents: list[Any], value: Any) -> float:
    found = []
    for x in (parents[0], parents[-1]):
        seen = run_step(step, x, value).observed
        found.append(float(np.exp(_log_prob(seen[0][1], seen[0][2]))) if seen else 1.0)
    if not np.isclose(found[0], found[1], rtol=1e-12, atol=0):
        raise BadArgument(
            f"the observation of step {step[2]} depends on the state before", why=SHAPE
        )
    return found[0]


# -- Gaussian states -----------------------------------------------------------------------------


def _gaussian_chain(recorder: Recorder, prior: Any, first: Any) -> tuple[Model, Array]:
    steps = recorder.steps
    shape = jnp.shape(first)
    d = max(1, int(np.prod(shape, dtype=int)))
    start = jnp.asarray(first, jnp.result_type(float))

    def law_of(step: Any, x: Array) -> tuple[Array, Array]:
        mean, L = moments(run_step(step, x.reshape(shape)).samples[0][1])
        return jnp.ravel(mean), L

    def seen_of(step: Any, y: Array) -> Any:
        found = run_step(step, start, y.reshape(shape)).observed
        if not found:
            return None
        mean, L = moments(found[0][1])
        return jnp.ravel(mean), L

    observed, data = [], []
    for t, step in enumerate(steps):
        seen = run_step(step, start).observed
        if seen:
            if not is_gaussian(seen[0][1]):
                raise BadArgument(
                    f"step {t} observes {type(base_of(seen[0][1])).__name__}",
                    fix="observe Normal or MultivariateNormal, or write the model with bffg.chain",
                )
            observed.append(t + 1)
            data.append(jnp.ravel(jnp.asarray(seen[0][2])))
    probes = [np.random.default_rng(0).normal(size=(4, d)) * s for s in (1.0, 10.0)]
    root = _root(prior, start, d)
    leaf, leaves = _leaves(steps, observed, seen_of, probes, d)
    rows = [_affine(partial(law_of, step), probes, d) for step in steps]
    if all(r is not None for r in rows):
        filled = [rows[0], *rows]
        covariates = tuple(np.stack([r[i] for r in filled if r is not None]) for i in range(3))

        def kernel(p: Any, c: Any) -> Any:
            return LinearGaussian(*c)
    else:
        for step in steps[1:]:
            for x in probes[0]:
                here, there = law_of(step, jnp.asarray(x)), law_of(steps[0], jnp.asarray(x))
                if not all(np.allclose(a, b) for a, b in zip(here, there, strict=True)):
                    raise BadArgument(
                        f"the nonlinear step {step[2]} differs from step 0",
                        fix="write the model with bffg.chain, where a covariate carries the time",
                    )
        covariates = None
        made = NonlinearGaussian(
            None, lambda x, _: law_of(steps[0], x)[0], lambda x, _: law_of(steps[0], x)[1], d
        )

        def kernel(p: Any, c: Any) -> Any:
            return made

    model = chain(
        len(steps) + 1, kernel, root, leaf, observed, covariates=covariates, leaf_covariates=leaves
    )
    return model, jnp.stack(data) if data else jnp.zeros((0, 1))


def _root(prior: Any, start: Array, d: int) -> Any:
    if prior is None:
        value = jnp.ravel(start)
        return lambda p, c: Point(value)
    mean, L = moments(prior)
    return lambda p, c: LinearGaussian.prior(jnp.ravel(mean), L)


def _affine(law: Callable[[Array], tuple[Array, Array]], probes: Any, d: int) -> Any:
    """(B, β, L) when the mean is affine and the noise constant, else None."""
    zero = jnp.zeros(d)
    beta, L = law(zero)
    B = jax.jacfwd(lambda x: law(x)[0])(zero)
    for scale in probes:
        for x in scale:
            mean, noise = law(jnp.asarray(x))
            if not np.allclose(mean, B @ x + beta, rtol=1e-5, atol=1e-5) or not np.allclose(
                noise, L
            ):
                return None
    return np.asarray(B), np.asarray(beta), np.asarray(L)


def _leaves(steps: Any, observed: list[int], seen_of: Any, probes: Any, d: int) -> Any:
    """The leaf function and its covariates."""
    if not observed:
        return None, None

    def law_at(node: int) -> Callable[[Array], tuple[Array, Array]]:
        return lambda y: seen_of(steps[node - 1], y)

    rows = [_affine(law_at(node), probes, d) for node in observed]
    if all(r is not None for r in rows):
        A, shift, L = (np.stack([r[i] for r in rows]) for i in range(3))
        covariates = {"A": A, "R": L @ np.swapaxes(L, 1, 2), "shift": shift}
        return lambda p, c: GaussianLeaf(c["A"], c["R"], c["shift"]), covariates
    first = law_at(observed[0])
    L = first(jnp.zeros(d))[1]
    for node in observed:
        for x in probes[0]:
            (mean, noise), (other, _) = law_at(node)(jnp.asarray(x)), first(jnp.asarray(x))
            if not np.allclose(mean, other) or not np.allclose(noise, L):
                raise LmpplError(
                    f"the nonlinear observation at node {node} differs from the first, or its noise varies",
                    fix="write the model with bffg.chain",
                )
    return lambda p, c: NonlinearLeaf(None, L @ L.T, lambda x, _: first(x)[0]), None
