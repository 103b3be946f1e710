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
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.context import Context, local
from lmppl.distributions import Distribution
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference.bffg.finite import Finite, FiniteLeaf
from lmppl.inference.bffg.gaussian import (
    GaussianLeaf,
    LinearGaussian,
    NonlinearGaussian,
    NonlinearLeaf,
)
from lmppl.inference.bffg.messages import Array
from lmppl.inference.bffg.model import Model, Point, chain
from lmppl.messages import Message

SHAPE = "from_program takes a program with one loop, whose step draws the next state and returns it"


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


@dataclass
class _Seen:
    """What a run of the program, or of one step, did."""

    samples: list[tuple[str, Any]] = field(default_factory=list)
    observed: list[tuple[str, Any, Any]] = field(default_factory=list)


class Recorder(Context):
    """A run whose states are given, and whose laws are kept.

    Args:
        choose: the value of a sample site, given its law.
    """

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        """Start with nothing seen."""
        super().__init__([])
        self.choose = choose
        self.seen = _Seen()
        self.steps: list[tuple[Callable[..., Any], Any, int, str]] = []
        self.loops = 0
        self.before = 0
        """Observations before the loop."""

    def answer(self, message: Message) -> None:
        """Keep laws and observations; refuse what a chain does not have."""
        if message.op == "sample":
            message.value = self.choose(message.dist)
            self.seen.samples.append((message.address, message.dist))
        elif message.op == "observe":
            self.seen.observed.append((message.address, message.dist, message.value))
        elif message.op == "cached":
            message.value = message.fn(*message.args)
        elif message.op not in ("deterministic", "param"):
            raise BadArgument(
                f"site {message.address!r}: from_program cannot convert {message.op!r}", why=SHAPE
            )
        message.done = True

    def mark(self) -> Any:
        """There is no tape."""
        return None

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        """There is no tape."""

    def run(self, address: str, steps: Any) -> Any:
        """Keep the steps of the loop, and run them."""
        self.loops += 1
        self.before = len(self.seen.observed)
        try:
            thunk = next(steps)
            while True:
                if not hasattr(thunk, "func"):
                    raise BadArgument(f"{address!r} is no loop", why=SHAPE)
                carry, t = thunk.args
                self.steps.append((thunk.func, carry, t, self.scope))
                thunk = steps.send(thunk())
        except StopIteration as stop:
            return stop.value

    def enter(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `fn` here."""
        before = local.active
        local.active = self
        try:
            return fn(*args, **kwargs)
        finally:
            local.active = before


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
    recorder = Recorder(_any_value)
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
    if _is_gaussian(laws[-1]):
        model, data = _gaussian_chain(recorder, prior, first)
        return Converted(model, data, addresses)
    return _finite_chain(recorder, prior, first, addresses)


def _any_value(law: Any) -> Any:
    if _is_gaussian(law):
        return _moments(law)[0]
    return _support(law)[0][0]


def _step(step: tuple[Any, Any, int, str], carry: Any, value: Any = None) -> _Seen:
    """What a step does from a carry, when the state it draws is `value`."""
    fn, _, t, scope = step
    recorder = Recorder(_any_value if value is None else lambda law: value)
    recorder.scope = scope
    result = recorder.enter(fn, carry, t)
    seen = recorder.seen
    if len(seen.samples) != 1 or len(seen.observed) > 1:
        raise BadArgument(
            f"step {t} has {len(seen.samples)} sample and {len(seen.observed)} observe sites",
            why=SHAPE,
        )
    if value is not None and result is not value and not np.array_equal(result, value):
        raise BadArgument(f"step {t} does not return the state that it draws", why=SHAPE)
    return seen


# -- finite states -------------------------------------------------------------------------------


def _support(law: Any) -> list[tuple[Any, float]]:
    from lmppl.distributions import _plain_env
    from lmppl.jobs import run_now
    from lmppl.ledger import Ledger

    pairs: list[tuple[Any, float]] = run_now(
        law.support(_plain_env(None)), _plain_env(None), Ledger()
    )
    return pairs


def _finite_chain(
    recorder: Recorder, prior: Any, first: Any, addresses: tuple[str, ...]
) -> Converted:
    start = [first] if prior is None else [v for v, _ in _support(prior)]
    states: dict[Any, int] = {}
    for v in start:
        states.setdefault(v, len(states))
    reach, rows, tables = list(start), [], []
    for step in recorder.steps:
        found: dict[Any, dict[Any, float]] = {}
        for x in reach:
            _, law = _step(step, x).samples[0]
            found[x] = {v: float(np.exp(lp)) for v, lp in _support(law)}
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
    for v, lp in _support(prior) if prior is not None else [(first, 0.0)]:
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
        seen = _step(step, x, value).observed
        found.append(float(np.exp(_log_prob(seen[0][1], seen[0][2]))) if seen else 1.0)
    if not np.isclose(found[0], found[1], rtol=1e-12, atol=0):
        raise BadArgument(
            f"the observation of step {step[2]} depends on the state before", why=SHAPE
        )
    return found[0]


# -- Gaussian states -----------------------------------------------------------------------------


def _base(law: Any) -> Any:
    return getattr(law, "dist", law)


def _is_gaussian(law: Any) -> bool:
    base = _base(law)
    inner = getattr(base, "base_dist", base)
    return type(inner).__name__ in ("Normal", "MultivariateNormal")


def _moments(law: Any) -> tuple[Array, Array]:
    """Mean [d] (or [] for a scalar state), and noise factor [d, d]."""
    base = _base(law)
    inner = getattr(base, "base_dist", base)
    mean = jnp.asarray(base.mean)
    if type(inner).__name__ == "MultivariateNormal":
        return mean, inner.scale_tril
    scale = jnp.broadcast_to(jnp.asarray(inner.scale), mean.shape)
    return mean, jnp.diag(jnp.ravel(scale))


def _gaussian_chain(recorder: Recorder, prior: Any, first: Any) -> tuple[Model, Array]:
    steps = recorder.steps
    shape = jnp.shape(first)
    d = max(1, int(np.prod(shape, dtype=int)))
    start = jnp.asarray(first, jnp.result_type(float))

    def law_of(step: Any, x: Array) -> tuple[Array, Array]:
        mean, L = _moments(_step(step, x.reshape(shape)).samples[0][1])
        return jnp.ravel(mean), L

    def seen_of(step: Any, y: Array) -> Any:
        found = _step(step, start, y.reshape(shape)).observed
        if not found:
            return None
        mean, L = _moments(found[0][1])
        return jnp.ravel(mean), L

    observed, data = [], []
    for t, step in enumerate(steps):
        seen = _step(step, start).observed
        if seen:
            if not _is_gaussian(seen[0][1]):
                raise BadArgument(
                    f"step {t} observes {type(_base(seen[0][1])).__name__}",
                    fix="observe Normal or MultivariateNormal, or write the model with bffg.chain",
                )
            observed.append(t + 1)
            data.append(jnp.ravel(jnp.asarray(seen[0][2])))
    probes = [np.random.default_rng(0).normal(size=(4, d)) * s for s in (1.0, 10.0)]
    root = _root(prior, start, d)
    leaf, leaves = _leaves(steps, observed, seen_of, probes, d)
    rows = [_affine(lambda x, step=step: law_of(step, x), probes, d) for step in steps]
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
    mean, L = _moments(prior)
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
