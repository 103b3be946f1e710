"""Posteriors as data frames and as ArviZ trees, in memory and through netCDF.

Runs on ArviZ 0.23 (Python 3.11) and 1.x (3.12): whichever is installed.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    Uniform,
    deterministic,
    factor,
    observe,
    plate,
    program,
    sample,
)
from lmppl.errors import BadArgument
from lmppl.inference import SMC, Enumerate, Importance, Posterior, infer
from lmppl.inference.results.export import (
    address_of,
    to_arviz,
    to_dataframe,
    to_netcdf,
    variable_name,
)
from lmppl.lm.table import TableLM
from lmppl.trace import Entry, Trace

xarray = pytest.importorskip("xarray")
pandas = pytest.importorskip("pandas")

GROUPS = ["posterior", "posterior_text", "weighted_posterior", "sample_stats", "smc"]
LM_ = TableLM(["a", "b", " ", "<eos>"], {(): [0.4, 0.3, 0.2, 0.1]})


@program
def mixed() -> Any:
    sample("thought", LM("", max_tokens=4, stop=" "))
    n = sample("n", Uniform([1, 2, 3]))
    ok = sample("ok", Bernoulli(0.4))
    facts = plate("facts", ["p", "q"], lambda item: sample("true", Choice(item, ["a", "b"])))
    deterministic("half", n / 2)
    if ok:
        sample("only", Categorical({"x": 0.5, "y": 0.5}))
        sample("count", Uniform([10, 20]))
    deterministic("ragged", tuple(range(n)))
    factor("prefer", -0.5 * n)
    observe("seen", Bernoulli(0.8 if ok else 0.3), True)
    return facts[0] if n < 3 else "none of them"


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return infer(mixed, engine=SMC(particles=40, ess_threshold=0.95), lm=LM_, seed=2)


@pytest.fixture(scope="module")
def tree(posterior: Posterior) -> Any:
    return to_arviz(posterior, seed=1)


def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces its successor on import
        return pytest.importorskip("arviz")


# -- data frames ----------------------------------------------------------------------------------


def test_a_row_per_particle_and_a_column_per_site(posterior: Posterior) -> None:
    frame = to_dataframe(posterior)
    assert frame.shape[0] == 40 and frame.index.name == "particle"
    assert list(frame.columns) == [
        "weight", "log_weight", "result", "thought", "n", "ok", "facts[0]/true", "facts[1]/true",
        "half", "only", "count", "ragged",
    ]  # fmt: skip
    np.testing.assert_array_equal(frame["weight"], posterior.weights)
    np.testing.assert_array_equal(frame["log_weight"], posterior.log_weights)
    for i, trace in enumerate(posterior.traces):
        row = frame.iloc[i]
        assert row["result"] == trace.result and row["thought"] == trace["thought"]
        assert row["n"] == trace["n"] and row["ragged"] == trace["ragged"]
        assert pandas.isna(row["count"]) == ("count" not in trace)
    shares = frame.groupby("result")["weight"].sum().to_dict()
    assert shares == pytest.approx(dict(posterior.marginal()))


def test_sites_with_the_names_of_other_columns() -> None:
    trace = Trace(Entry(Entry(None, "sample", "weight", 5), "sample", "result", 6), 7)
    frame = to_dataframe(Posterior([trace], np.zeros(1), 0.0))
    assert frame.iloc[0].to_dict() == {
        "weight": 1.0, "log_weight": 0.0, "result": 7, "weight_": 5, "result_": 6,
    }  # fmt: skip


def test_strings_are_plain_and_arrays_stay_in_their_cell() -> None:
    array = np.array([1.0, 2.0])
    trace = Trace(Entry(None, "sample", "x", array), {"k": 1})
    frame = to_dataframe(Posterior([trace, trace], np.zeros(2), 0.0))
    assert frame["x"][1] is array and frame["result"][0] == {"k": 1}


# -- the tree -------------------------------------------------------------------------------------


def test_groups_dims_and_root(posterior: Posterior, tree: Any) -> None:
    assert list(tree.children) == GROUPS
    for name in GROUPS[:4]:
        assert tree[name].sizes["chain"] == 1 and tree[name].sizes["draw"] == 40
    attrs = tree.attrs
    assert attrs["inference_library"] == "lmppl" and attrs["engine"] == posterior.engine
    assert attrs["log_evidence"] == posterior.log_evidence and attrs["ess"] == posterior.ess
    assert attrs["target"] == posterior.target and json.loads(attrs["models"]) == ["table"]
    assert attrs["resampling_seed"] == 1 and attrs["particles"] == 40


def test_only_numbers_where_arviz_takes_only_numbers(tree: Any) -> None:
    for group in ("posterior", "weighted_posterior", "sample_stats", "smc"):
        for name, variable in tree[group].data_vars.items():
            assert variable.dtype.kind in "if", (group, name)
    assert all(v.dtype == object for v in tree["posterior_text"].data_vars.values())
    assert not any("seen" in str(v) or "prefer" in str(v) for v in tree["posterior"].data_vars)


def test_each_draw_is_a_particle_with_all_its_values(posterior: Posterior, tree: Any) -> None:
    draws, texts = tree["posterior"].to_dataset(), tree["posterior_text"].to_dataset()
    labels = json.loads(draws["result_code"].attrs["labels"])
    assert labels == sorted({t.result for t in posterior.traces})
    for d, i in enumerate(draws["particle"].values[0].tolist()):
        trace = posterior.traces[i]
        assert posterior.weights[i] > 0
        assert labels[draws["result_code"].values[0, d]] == trace.result
        assert texts["result"].values[0, d] == trace.result
        assert texts["thought"].values[0, d] == trace["thought"]
        assert draws["n"].values[0, d] == trace["n"]
        assert draws["ok"].values[0, d] == float(trace["ok"])
        ragged = draws["ragged"].values[0, d]
        assert ragged[: trace["n"]].tolist() == list(range(trace["n"]))
        assert np.isnan(ragged[trace["n"] :]).all()
        if "only" in trace:
            assert draws["count"].values[0, d] == trace["count"]
            assert texts["only"].values[0, d] == trace["only"]
        else:
            assert np.isnan(draws["count"].values[0, d])
            assert texts["only"].values[0, d] == "" and draws["only_code"].values[0, d] == -1


def test_raw_particles_carry_their_weights(posterior: Posterior, tree: Any) -> None:
    raw, stats = tree["weighted_posterior"], tree["sample_stats"]
    np.testing.assert_array_equal(stats["log_weight"].values[0], posterior.log_weights)
    assert stats["lp"].values[0].tolist() == [t.log_joint for t in posterior.traces]
    assert raw["n"].values[0].tolist() == [t["n"] for t in posterior.traces]
    w = np.exp(stats["log_weight"].values[0] - stats["log_weight"].values.max())
    mean = float((w * raw["n"].values[0]).sum() / w.sum())
    assert mean == pytest.approx(posterior.expectation("n").value, rel=1e-12)


@pytest.mark.parametrize("draws", [1, 7, 40, 1000])
def test_resampled_counts_are_those_of_systematic_resampling(
    posterior: Posterior, draws: int
) -> None:
    """Each particle is drawn its weight times `draws`, rounded down or up: no statistics needed."""
    picks = to_arviz(posterior, draws=draws, seed=3)["posterior"]["particle"].values[0]
    counts = np.bincount(picks, minlength=40)
    expected = draws * posterior.weights
    assert counts.sum() == draws
    assert (counts >= np.floor(expected - 1e-9)).all() and (
        counts <= np.ceil(expected + 1e-9)
    ).all()


def test_resampling_is_unbiased_over_seeds_and_in_no_order(posterior: Posterior) -> None:
    """Mean over 200 seeds of 3 draws; 4.5 standard errors of a share (7e-6)."""
    picks = np.array(
        [to_arviz(posterior, 3, s)["posterior"]["particle"].values[0] for s in range(200)]
    )
    top = int(posterior.weights.argmax())
    w = float(posterior.weights[top])
    for column in picks.T:
        assert abs(float((column == top).mean()) - w) < 4.5 * math.sqrt(w * (1 - w) / 200)
    assert not (np.diff(picks, axis=1) >= 0).all(), "draws are shuffled"


def test_the_steps_of_the_filter(posterior: Posterior, tree: Any) -> None:
    smc, history = tree["smc"].to_dataset(), posterior.history
    assert history is not None and smc.sizes["step"] == len(history.ess)
    assert smc["ess"].values[0].tolist() == history.ess
    assert smc["log_ml"].values[0].tolist() == history.log_evidence
    assert smc["log_ml_increment"].values.sum() == pytest.approx(posterior.log_evidence)
    assert smc["unique_ancestors"].values[0].tolist() == history.eves
    for t, parents in enumerate(history.ancestors):
        assert smc["resampled"].values[0, t] == (parents is not None)
        row = smc["ancestor"].values[0, t]
        assert np.isnan(row).all() if parents is None else row.tolist() == parents.tolist()


def test_an_exact_posterior_gets_a_thousand_draws_and_no_steps() -> None:
    @program
    def coin() -> Any:
        return sample("x", Bernoulli(0.25))

    tree = to_arviz(infer(coin, engine=Enumerate()))
    assert "smc" not in tree.children and tree.attrs["exact"] == 1
    assert tree["posterior"].sizes["draw"] == 1000
    assert float(tree["posterior"]["x"].mean()) == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize("draws", [0, -1, True, 2.5])
def test_bad_numbers_of_draws(posterior: Posterior, draws: Any) -> None:
    with pytest.raises(BadArgument, match="draws must be a positive integer"):
        to_arviz(posterior, draws=draws)


# -- values and names -----------------------------------------------------------------------------


def tree_of(values: list[Any], address: str = "x") -> Any:
    """The tree of equally weighted traces with these values at one site; `...` means no site."""
    found = [
        Trace(None if v is ... else Entry(None, "sample", address, v), result=i)
        for i, v in enumerate(values)
    ]
    return to_arviz(Posterior(found, np.zeros(len(found)), 0.0))["weighted_posterior"]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([1, 2], [1, 2]),
        ([True, False], [1.0, 0.0]),
        ([1, None, ...], [1.0, math.nan, math.nan]),
        ([1.5, 2, True], [1.5, 2.0, 1.0]),
        ([10**400, -(10**400)], [math.inf, -math.inf]),
        ([math.nan, math.inf], [math.nan, math.inf]),
        ([np.float32(0.5), np.int8(3)], [0.5, 3.0]),
        ([(1, 2), (3,), ...], [[1.0, 2.0], [3.0, math.nan], [math.nan, math.nan]]),
        ([np.ones((1, 2)), np.zeros((2, 1))], [[[1, 1], [math.nan] * 2], [[0, math.nan]] * 2]),
    ],
)
def test_numbers(values: list[Any], want: Any) -> None:
    found = tree_of(values)["x"]
    np.testing.assert_array_equal(found.values[0], np.array(want))
    assert found.attrs["missing"] == sum(v is ... for v in values)


def test_exact_integers_stay_integers() -> None:
    assert tree_of([1, 2])["x"].dtype == np.int64
    assert tree_of([1, 2**60])["x"].dtype == np.float64


@pytest.mark.parametrize(
    ("values", "labels", "codes"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        (["b", ..., None], ["None", "b"], [1, -1, 0]),
        (["1", 1], ["1"], [0, 0]),
        ([("a", 1), ("a", 1)], ["('a', 1)"], [0, 0]),
        ([np.zeros(2), np.zeros((2, 2))], None, [0, 1]),
    ],
)
def test_everything_else_gets_a_code(values: list[Any], labels: Any, codes: list[int]) -> None:
    found = tree_of(values)["x_code"]
    assert found.values[0].tolist() == codes
    assert labels is None or json.loads(found.attrs["labels"]) == labels
    assert found.attrs["role"] == "code" and found.attrs["address"] == "x"


def test_too_many_different_texts_get_a_length_instead() -> None:
    found = tree_of([f"{'z' * (i % 7)}{i:03d}" for i in range(300)])
    assert "x_code" not in found.data_vars
    assert found["x_length"].values[0, :3].tolist() == [3.0, 4.0, 5.0]


def test_names_that_are_taken() -> None:
    """Sites called as dimensions, as what the program returned, and as a derived variable."""
    sites = {"draw": 1, "result": 2, "word": "w", "word_code": 9, "y": (1, 2), "y_dim_0": 3}
    head = None
    for address, value in sites.items():
        head = Entry(head, "sample", address, value)
    found = to_arviz(Posterior([Trace(head, 5)], np.zeros(1), 0.0))["posterior"]
    by_role = {(v.attrs["role"], v.attrs["address"]): v for v in found.data_vars.values()}
    assert by_role["site", "draw"].values.tolist() == [[1]]
    assert by_role["site", "result"].values.tolist() == [[2]]
    assert by_role["result", ""].values.tolist() == [[5]]
    assert by_role["site", "word_code"].values.tolist() == [[9]]
    assert by_role["code", "word"].values.tolist() == [[0]]
    assert by_role["site", "y"].values.tolist() == [[[1, 2]]]
    assert by_role["site", "y_dim_0"].values.tolist() == [[3]]


@given(st.text(min_size=1))
def test_names_are_reversible_and_legal(address: str) -> None:
    if address.encode(errors="ignore").decode() != address:
        return  # lone surrogates are refused as site names
    name = variable_name(address)
    assert address_of(name) == address
    assert "/" not in name and name == name.strip(" ")
    assert not any(ord(c) < 32 or ord(c) == 127 for c in name)


# -- netCDF and ArviZ -----------------------------------------------------------------------------

HARD = [
    Trace(Entry(Entry(None, "sample", "a[0]/b%[1]/é x", v), "sample", "t/s", s), s)
    for v, s in (
        (1.5, "nul \x00"),
        (2.5, "half \ud800"),
        (-1.0, ""),
        (0.5, "line\n\u2028 </script>"),
    )
]


def test_netcdf_gives_back_the_tree(posterior: Posterior, tree: Any, tmp_path: Path) -> None:
    to_netcdf(posterior, tmp_path / "p.nc", seed=1)
    with xarray.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as again:
        assert again.equals(tree)
        assert again.attrs == tree.attrs
        for group in GROUPS:
            for name, variable in tree[group].data_vars.items():
                assert again[group][name].attrs == variable.attrs


def test_netcdf_of_hard_names_and_texts(tmp_path: Path) -> None:
    post = Posterior(HARD, np.zeros(4), 0.0, engine="</script>")
    tree = to_arviz(post)
    tree.to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as again:
        assert again.equals(tree)
        raw = again["weighted_posterior"]
        names = {address_of(str(n)): v for n, v in raw.data_vars.items()}
        assert names["a[0]/b%[1]/é x"].values.tolist() == [[1.5, 2.5, -1.0, 0.5]]
        assert again["posterior_text"]["t%2Fs"].attrs["address"] == "t/s"
        order = again["posterior"]["particle"].values[0].tolist()
        texts = ["nul \\x00", "half \\ud800", "", "line\n\u2028 </script>"]
        assert again["posterior_text"]["t%2Fs"].values[0].tolist() == [texts[i] for i in order]


def test_a_dead_beginning_does_not_stop_the_file(tmp_path: Path) -> None:
    """-inf and nan in every place of the statistics."""

    @program
    def half() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("must", x)
        return x

    tree = to_arviz(infer(half, engine=Importance(8), seed=0))
    tree.to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as again:
        assert np.isneginf(again["sample_stats"]["log_weight"].values).any()
        assert (again["posterior"]["x"].values == 1.0).all()


@pytest.mark.filterwarnings("ignore")  # ArviZ's own: one chain, few draws
def test_arviz_reads_it(posterior: Posterior, tmp_path: Path) -> None:
    az = arviz()
    tree = to_arviz(posterior, draws=500)
    expected = posterior.expectation("n").value
    if az.__version__.startswith("0."):
        data = az.InferenceData.from_datatree(tree)
        assert set(data.groups()) == set(GROUPS)
        table = az.summary(data, kind="stats")
        data.to_netcdf(str(tmp_path / "p.nc"), engine="h5netcdf")
        again = az.from_netcdf(str(tmp_path / "p.nc"), engine="h5netcdf")
        assert again.to_datatree().equals(tree)
    else:
        table = az.summary(tree, kind="stats", round_to="none")
        texts = az.extract(tree, group="posterior_text", num_samples=20, random_seed=1)
        assert set(texts["result"].values.tolist()) <= {t.result for t in posterior.traces}
    mean = float(tree["posterior"]["n"].mean())
    assert mean == pytest.approx(expected, abs=0.02)
    assert float(table.loc["n", "mean"]) == pytest.approx(mean, abs=0.001)
    assert "thought_code" in table.index and "facts[0]%2Ftrue_code" in table.index
