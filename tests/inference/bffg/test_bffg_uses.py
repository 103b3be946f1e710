"""Uses of the guided program: SMC, particle Gibbs, pCN, NUTS, PMMH, export, programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl import Categorical, loop, markov, observe, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import Enumerate, bffg, infer  # noqa: E402
from lmppl.inference.bffg.families.finite import Finite, FiniteLeaf  # noqa: E402
from lmppl.inference.bffg.families.gaussian import GaussianLeaf, LinearGaussian  # noqa: E402
from lmppl.inference.bffg.kernels import Guessed  # noqa: E402

LOG_P = -4.298385836837264
SMOOTHED = np.array([0.2370406, 0.04076392, 0.54830685, 1.05584978, 0.84264163])
Y = np.array([0.3, -0.1, np.nan, 1.2, 0.8])[:, None]


pytestmark = pytest.mark.usefixtures("float64")


def walk(q: Any) -> LinearGaussian:
    return LinearGaussian(jnp.eye(1), jnp.zeros(1), jnp.sqrt(q) * jnp.eye(1))


def root(p: Any, c: Any) -> LinearGaussian:
    return LinearGaussian.prior(jnp.zeros(1), jnp.eye(1))


def leaf(p: Any, c: Any) -> GaussianLeaf:
    return GaussianLeaf(jnp.eye(1), 0.1 * jnp.eye(1))


@pytest.fixture(scope="module")
def exact() -> Any:
    return bffg.chain(5, lambda q, c: walk(q), root, leaf)


@pytest.fixture(scope="module")
def wrong() -> Any:
    """A surrogate of variance 0.15 where the truth is q."""
    return bffg.chain(5, lambda q, c: Guessed(walk(q), walk(jnp.asarray(0.15))), root, leaf)


# -- SMC and particle Gibbs ----------------------------------------------------------------------


def test_the_guided_filter_has_no_variance_with_an_exact_guide(exact: Any) -> None:
    bf = bffg.backward(exact, Y, 0.5)
    out = bffg.forward(bf, 0, n=8, resample="ess:1")
    assert out.log_evidence == pytest.approx(LOG_P, abs=1e-12)
    assert out.history is not None and out.history.resamplings == 0


@pytest.mark.slow
def test_the_guided_filter_is_unbiased_and_finds_the_smoother(wrong: Any) -> None:
    """z-tests at 1e-6, over 3,000 filters of 6 particles that resample at every step."""
    bf = bffg.backward(wrong, Y, 0.5)
    filters = 3000
    from lmppl.inference.bffg import particle_filter as pf

    noise = bffg.draw_noise(wrong, 3, 0.5, filters * 6)
    noise = {k: v.reshape(filters, 6, *v.shape[1:]) for k, v in noise.items()}
    offsets = jax.random.uniform(jax.random.key(4), (filters, 4))
    run = jax.vmap(lambda z, u: pf._filter(bf, z, u, jnp.asarray(1.0), True, None)[:3])
    paths, lw, level = run(noise, offsets)
    ratio = np.exp(np.asarray(level)[:, None] + np.asarray(lw) - LOG_P)
    z = ratio.mean(1)
    assert abs(z.mean() - 1) < 4.9 * z.std() / np.sqrt(filters)
    means = (ratio[:, :, None] * np.asarray(paths)[..., 0]).mean(1)
    error = means - z[:, None] * SMOOTHED
    assert (np.abs(error.mean(0)) < 4.9 * error.std(0) / np.sqrt(filters)).all()
    history = bffg.forward(bf, 0, n=50, resample=1.0).history
    assert history is not None and history.resamplings > 0


@pytest.mark.slow
@pytest.mark.parametrize("ancestor", [False, True])
def test_conditional_smc_leaves_the_posterior_invariant(
    exact: Any, wrong: Any, ancestor: bool
) -> None:
    """Exact posterior draws, one sweep with the wrong guide: means and squares stay (1e-6)."""
    n = 20_000
    start = jnp.asarray(bffg.forward(bffg.backward(exact, Y, 0.5), 0, n=n).values)
    bf = bffg.backward(wrong, Y, 0.5)
    keys = jax.random.split(jax.random.key(1), n)
    sweep: Any = jax.vmap(lambda k, x: bffg.conditional_filter(bf, k, x, 4, ancestor=ancestor))
    after = sweep(keys, start)
    x, y = np.asarray(start)[..., 0], np.asarray(after)[..., 0]
    assert (np.abs(y - x).max(1) > 0).mean() > 0.5  # paths do move
    powers = [np.array(v) for v in (x - SMOOTHED, y - SMOOTHED)]
    for before, now in (powers, [v**2 for v in powers], [v[:, 1:] * v[:, :-1] for v in powers]):
        change = now - before
        assert (np.abs(change.mean(0)) < 4.9 * change.std(0) / np.sqrt(n)).all()


@pytest.mark.slow
def test_particle_gibbs_on_a_hidden_markov_model() -> None:
    """The marginal of the casino's first throw, 0.2141, within 0.04 over 3,000 sweeps."""
    K = jnp.array([[0.95, 0.05], [0.85, 0.15]])
    E = jnp.array([[1 / 6] * 6, [0.1] * 5 + [0.5]])
    flat = jnp.full((2, 2), 0.5)
    model = bffg.chain(
        10, lambda p, c: Guessed(Finite(K), Finite(flat)), lambda p, c: Finite(flat[0]),
        lambda p, c: FiniteLeaf(E),
    )  # fmt: skip
    bf = bffg.backward(model, np.array([6, 6, 6, 1, 2, 6, 6, 3, 6, 6]) - 1.0)
    paths = bffg.particle_gibbs(bf, 0, 3000, 8, ancestor=True)
    assert abs(float((np.asarray(paths)[:, 0] == 0).mean()) - 0.2141372287) < 0.04


# -- noise chains and parameters -----------------------------------------------------------------


def test_pcn_with_an_exact_guide_accepts_everything(exact: Any) -> None:
    chain = bffg.pcn(bffg.backward(exact, Y, 0.5), 0, 2000, bffg.PCN(0.5, blocks=2))
    assert chain.acceptance == 1.0
    squares = np.mean([float((z**2).mean()) for z in chain.noise.values()])
    assert abs(squares - 1) < 0.15
    assert np.ptp(chain.log_weights) < 1e-12


@pytest.mark.slow
def test_pcn_with_a_wrong_guide_finds_the_smoother(wrong: Any) -> None:
    chain = bffg.pcn(bffg.backward(wrong, Y, 0.5), 0, 40_000, bffg.PCN(0.6, blocks=2))
    assert 0.5 < chain.acceptance < 0.99
    assert np.allclose(np.asarray(chain.values)[:, :, 0].mean(0), SMOOTHED, atol=0.03)


def posterior_of_q() -> tuple[float, float, float]:
    """Mean and sd of log q under N(0, 1), and log evidence, by quadrature."""
    grid = np.linspace(-5, 5, 401)
    levels = []
    for q in np.exp(grid):
        P, m, level = 1.0, 0.0, 0.0
        for t, y in enumerate(Y[:, 0]):
            P = P + (q if t else 0.0)
            if y == y:
                S = P + 0.1
                level += -0.5 * np.log(2 * np.pi * S) - 0.5 * (y - m) ** 2 / S
                m, P = m + P / S * (y - m), P * 0.1 / S
        levels.append(level - 0.5 * np.log(2 * np.pi))
    logs = np.array(levels) - 0.5 * grid**2
    w = np.exp(logs - logs.max())
    mean = (w * grid).sum() / w.sum()
    evidence = np.log(w.sum() * (grid[1] - grid[0])) + logs.max()
    return mean, float(np.sqrt((w * (grid - mean) ** 2).sum() / w.sum())), evidence


@pytest.mark.slow
@pytest.mark.parametrize("collapse", ["auto", False])
def test_nuts_over_parameters(exact: Any, wrong: Any, collapse: Any) -> None:
    """A15: mean of log q -0.581, sd 0.822, collapsed and with explored noise."""
    import numpyro
    from numpyro.infer import MCMC, NUTS

    mean, sd, evidence = posterior_of_q()
    assert (mean, sd, evidence) == pytest.approx((-0.581, 0.822, -4.7377), abs=2e-3)
    model = exact if collapse == "auto" else wrong

    def program() -> None:
        q = jnp.exp(numpyro.sample("log_q", numpyro.distributions.Normal(0.0, 1.0)))
        z = bffg.sample_noise("z", model, q, collapse=collapse)
        assert (z is None) == (collapse == "auto")
        bffg.factor("y", model, Y, q, z, anchors=bffg.refine(0), collapse=collapse)

    mcmc = MCMC(NUTS(program), num_warmup=300, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    found = np.asarray(mcmc.get_samples()["log_q"])
    assert abs(found.mean() - mean) < 0.08 and abs(found.std() - sd) < 0.08


@pytest.mark.slow
def test_pseudo_marginal_mh(wrong: Any) -> None:
    mean, sd, _ = posterior_of_q()
    model = bffg.chain(
        5, lambda p, c: Guessed(walk(jnp.exp(p)), walk(jnp.asarray(0.5))), root, leaf
    )
    visited, rate = bffg.PMMH(n=16, scale=1.2).run(
        model, Y, lambda p: -0.5 * p**2, jnp.asarray(0.0), 0, 20_000, anchors=bffg.refine(0)
    )
    assert 0.2 < rate < 0.8
    assert abs(visited.mean() - mean) < 0.08 and abs(visited.std() - sd) < 0.08


# -- explain, warnings, export -------------------------------------------------------------------


def test_explain_names_rungs_and_collapse(exact: Any, wrong: Any) -> None:
    told = bffg.explain(exact, 0.5)
    assert "weight 1" in told and "model: collapsible" in told
    told = bffg.explain(wrong, 0.5)
    assert "rung 1 (closed form)" in told and "weight before draw" in told
    assert "model: not collapsible; 5 noise numbers" in told


def test_a_bad_guide_is_reported() -> None:
    lw = np.random.default_rng(0).pareto(0.7, 4000)
    bad = bffg.Guided.of(np.zeros((4000, 1)), np.log(lw))
    assert bad.pareto_k > 0.7 and any("Pareto" in w for w in bad.warnings)
    one = bffg.Guided.of(np.zeros((400, 1)), np.r_[0.0, np.full(399, -50.0)])
    assert any("ESS 1.0 of 400" in w for w in one.warnings)


def test_pareto_k_recovers_the_tail() -> None:
    for k in (0.3, 0.6, 0.9):
        u = np.random.default_rng(1).uniform(size=20_000)
        x = (u**-k - 1) / k
        assert abs(bffg.pareto_k(np.log(x)) - k) < 0.15


def test_export(exact: Any) -> None:
    pytest.importorskip("xarray")
    out = bffg.forward(bffg.backward(exact, Y, 0.5), 0, n=200)
    tree = out.to_arviz(draws=50)
    assert tree["posterior"]["result"].shape == (1, 50, 5, 1)
    assert tree.attrs["engine"] == "BFFG"
    assert out.posterior().log_evidence == pytest.approx(LOG_P)


def test_wrong_arguments_are_refused(exact: Any) -> None:
    with pytest.raises(BadArgument, match="5 nodes are observed"):
        bffg.backward(exact, Y[:3], 0.5)
    bf = bffg.backward(exact, Y, 0.5)
    with pytest.raises(BadArgument, match="resample must be"):
        bffg.forward(bf, 0, resample="often")
    with pytest.raises(BadArgument, match="n must be"):
        bffg.forward(bf, 0, n=0)
    with pytest.raises(BadArgument, match="cycle"):
        bffg.dag([(1,), (0,)], {"a": root}, ["a", "a"])


# -- programs ------------------------------------------------------------------------------------

STEP = [Categorical({0: 0.8, 1: 0.2}), Categorical({0: 0.3, 1: 0.7})]
SEE = [Categorical({0: 0.9, 1: 0.1}), Categorical({0: 0.2, 1: 0.8})]
START = Categorical({0: 0.5, 1: 0.5})


@program
def hidden(ys: list[int]) -> Any:
    def step(state: Any, y: int) -> Any:
        new = sample("state", START if state is None else STEP[state])
        observe("y", SEE[new], y)
        return new

    return markov(step, None, ys)


def test_a_finite_program_converts() -> None:
    ys = [0, 1, 1, 0]
    found = bffg.from_program(hidden, ys)
    bf = bffg.backward(found.model, found.data)
    exact = infer(hidden, ys, engine=Enumerate())
    assert float(bf.log_evidence) == pytest.approx(exact.log_evidence, abs=1e-12)
    assert found.states == (None, 0, 1)
    out = bffg.forward(bf, 0, n=4000)
    last = found.decode(out.values)[:, -1]
    assert abs((last == 1).mean() - exact.marginal()[1]) < 4.9 * 0.5 / np.sqrt(4000)


def test_a_linear_gaussian_program_converts_to_an_exact_model() -> None:
    from numpyro.distributions import Normal

    ys = [0.3, -0.1, 1.2, 0.8]

    @program
    def level(ys: Any) -> Any:
        def step(x: Any, t: int) -> Any:
            x = sample("x", Normal(x, 0.5**0.5))
            observe("y", Normal(2.0 * x + 1.0, 0.1**0.5), ys[t])
            return x

        return loop(step, sample("start", Normal(0.0, 1.0)), n=len(ys))

    found = bffg.from_program(level, ys)
    assert bffg.is_exact(found.model)
    assert found.addresses[:2] == ("start", "loop[0]/x")
    m, P, level_ = 0.0, 1.0, 0.0
    for y in ys:
        P += 0.5
        S = 4 * P + 0.1
        level_ += -0.5 * np.log(2 * np.pi * S) - 0.5 * (y - 2 * m - 1) ** 2 / S
        m, P = m + 2 * P / S * (y - 2 * m - 1), P - 4 * P**2 / S
    assert float(bffg.backward(found.model, found.data).log_evidence) == pytest.approx(
        level_, abs=1e-5
    )


@pytest.mark.slow
def test_a_nonlinear_program_converts_to_an_unbiased_guide() -> None:
    from numpyro.distributions import Normal

    ys = [0.5, 1.5]

    @program
    def bent(ys: Any) -> Any:
        def step(x: Any, t: int) -> Any:
            x = sample("x", Normal(jnp.sin(2 * x) + x, 0.5))
            observe("y", Normal(x, 0.3), ys[t])
            return x

        return loop(step, 0.2, n=2)

    found = bffg.from_program(bent, ys)
    assert not bffg.is_exact(found.model)
    out = bffg.forward(bffg.backward(found.model, found.data), 0, n=20_000)
    grid = np.linspace(-6, 8, 4001)
    h = grid[1] - grid[0]

    def normal(x: Any, m: Any, s: float) -> Any:
        return np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))

    a = normal(grid, np.sin(0.4) + 0.2, 0.5) * normal(0.5, grid, 0.3)
    second = normal(1.5, np.sin(2 * grid) + grid, np.sqrt(0.25 + 0.09))
    truth = float((a * second).sum() * h)
    w = np.exp(out.log_weights) / truth
    assert abs(w.mean() - 1) < 4.9 * w.std() / np.sqrt(len(w))
    assert out.ess > 0.3 * len(w)


def test_programs_of_another_shape_are_refused() -> None:
    @program
    def no_loop() -> Any:
        return sample("x", START)

    with pytest.raises(BadArgument, match="one loop"):
        bffg.from_program(no_loop)

    @program
    def other_state(ys: Any) -> Any:
        def step(x: int, t: int) -> int:
            sample("x", STEP[x])
            return 1 - x

        return loop(step, 0, n=2)

    with pytest.raises(BadArgument, match="does not return"):
        bffg.from_program(other_state, [])
