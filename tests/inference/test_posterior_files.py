"""A posterior that was saved and loaded is the same, and a damaged file is never another one."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmppl import (
    LM,
    Bernoulli,
    Choice,
    Uniform,
    call,
    deterministic,
    effect,
    factor,
    loop,
    observe,
    plate,
    program,
    prompt,
    sample,
)
from lmppl.atomic import write_atomic
from lmppl.errors import BadArgument, DataError
from lmppl.inference import SMC, Enumerate, Greedy, Importance, Posterior, infer
from lmppl.inference.results.encoding import Opaque, decode, encode
from lmppl.inference.results.files import load, posterior_summary, save
from lmppl.ledger import Ledger
from lmppl.lm.table import TableLM
from lmppl.plainjson import dump
from lmppl.text import Span, Text
from lmppl.trace import Entry, Trace
from lmppl.values import FrozenDict, freeze

LM_ = TableLM(
    ["a", "é", " ", "<eos>"],
    {(): [0.4, 0.3, 0.2, 0.1], (0,): [0.1, 0.5, 0.2, 0.2], (1,): [0.6, 0.1, 0.1, 0.2]},
)


@program
def inner() -> bool:
    x = sample("x", Bernoulli(0.4))
    factor("soft", -0.5 if x else 0.0)
    return bool(x)


@program
def busy() -> Any:
    """Every primitive, many kinds of values, texts made of texts."""
    a = sample("a", LM("", max_tokens=3, stop=" "))
    deterministic("made", prompt("<{a}>", a=a))
    n = sample("n", Uniform([1, 2, 3]))
    parts = plate("facts", ["p", "q"], lambda item: sample("true", Choice(item, ["a", "é"])))
    total = loop(lambda c, t: c + int(sample("step", Bernoulli(0.3))), 0, 2)
    effect("tool", lambda: {"n": n, "list": [1.5, None], "$odd": True})
    kept = call(inner)
    factor("prefer", -0.3 * n - 0.1 * total)
    observe("seen", Bernoulli(0.9 if kept else 0.4), True)
    return a.strip() + "!", n, parts[0]


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return infer(busy, engine=SMC(particles=12, always=True), lm=LM_, seed=3)


def same_text(a: str, b: str) -> None:
    assert str(a) == str(b) and type(a) is type(b)
    if isinstance(a, Text) and isinstance(b, Text):
        assert (a.address, a.finish, a.spans, a.scheme) == (b.address, b.finish, b.spans, b.scheme)
        np.testing.assert_array_equal(_or_empty(a.token_ids), _or_empty(b.token_ids))
        np.testing.assert_array_equal(_or_empty(a.token_logprobs), _or_empty(b.token_logprobs))
        assert (a.token_ids is None) == (b.token_ids is None)


def _or_empty(array: Any) -> Any:
    return [] if array is None else array


def same(a: Posterior, b: Posterior) -> None:
    """Every number bit for bit, every text with its tokens."""
    assert len(a) == len(b)
    np.testing.assert_array_equal(a.log_weights, b.log_weights)
    np.testing.assert_array_equal(a.weights, b.weights)
    np.testing.assert_array_equal(a.eves, b.eves)
    kept = ("log_evidence", "engine", "target", "exact", "missing", "deaths", "warnings", "seed")
    for name in kept:
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.log_evidence_interval(), b.log_evidence_interval())
    assert a.ledger == b.ledger and a.death_examples == b.death_examples
    if a.history is None or b.history is None:
        assert a.history is b.history
    else:
        assert (a.history.ess, a.history.eves) == (b.history.ess, b.history.eves)
        assert a.history.log_evidence == b.history.log_evidence
        for x, y in zip(a.history.ancestors, b.history.ancestors, strict=True):
            assert (x is None) == (y is None)
            np.testing.assert_array_equal(_or_empty(x), _or_empty(y))
    for s, t in zip(a.traces, b.traces, strict=True):
        assert list(s) == list(t)
        assert s.log_joint == t.log_joint and s.log_weight == t.log_weight
        assert s.result == t.result
        for e, f in zip([e for e in s.sites if e.op != "jobs"], t.sites, strict=True):
            assert (e.op, e.address, e.logp, e.logq) == (f.op, f.address, f.logp, f.logq)
            assert e.logw == f.logw
            if isinstance(e.value, str):
                same_text(e.value, f.value)
            elif not isinstance(e.value, Posterior):
                assert e.value == f.value and type(e.value) is type(f.value), e.address
    if not a.dead:
        assert a.marginal() == b.marginal()
        np.testing.assert_array_equal(
            list(a.marginal().se.values()), list(b.marginal().se.values())
        )


@pytest.mark.parametrize(
    "engine", [SMC(12, ess_threshold=0.9), Importance(5), Greedy(), SMC(8, always=True)], ids=repr
)
def test_load_gives_back_what_save_wrote(engine: Any, tmp_path: Path) -> None:
    first = infer(busy, engine=engine, lm=LM_, seed=1)
    first.save(tmp_path / "p.jsonl")
    same(first, Posterior.load(tmp_path / "p.jsonl"))
    assert first.seed == posterior_summary(first)["seed"] == 1
    assert (f"seed={first.seed}" in repr(first)) and "seed=1" in first._repr_html_()


def test_a_file_from_before_seeds_were_kept_is_read(tmp_path: Path) -> None:
    infer(inner, engine=SMC(3), seed=2**70).save(tmp_path / "p.jsonl")
    assert load(tmp_path / "p.jsonl").seed == 2**70
    head, *rest = (tmp_path / "p.jsonl").read_bytes().splitlines(keepends=True)[:-1]
    old = json.loads(head)
    del old["seed"]
    body = dump(old) + b"\n" + b"".join(rest)
    end = dump({"end": 3, "crc32": f"{zlib.crc32(body):08x}"}) + b"\n"
    (tmp_path / "old.jsonl").write_bytes(body + end)
    again = load(tmp_path / "old.jsonl")
    assert again.seed is None and "seed" not in repr(again) and len(again) == 3


def test_an_exact_posterior_stays_exact(tmp_path: Path) -> None:
    first = infer(inner, engine=Enumerate(min_mass=0.01))
    first.save(tmp_path / "p.jsonl")
    again = load(tmp_path / "p.jsonl")
    same(first, again)
    assert again.log_evidence_se == 0.0


def test_a_dead_posterior_can_be_kept(tmp_path: Path) -> None:
    @program
    def never() -> None:
        sample("x", Bernoulli(0.5))
        factor("no", False)

    first = infer(never, engine=SMC(4), on_dead="return")
    first.save(tmp_path / "p.jsonl")
    again = load(tmp_path / "p.jsonl")
    same(first, again)
    assert again.dead and again.log_evidence == -math.inf and again.deaths == {"no": 4}


def test_a_posterior_inside_a_posterior(tmp_path: Path) -> None:
    @program
    def outer() -> Any:
        believed = infer(inner, engine=Enumerate())
        observe("agree", Bernoulli(believed.marginal()[True]), True)
        return round(believed.marginal()[True], 6)

    first = infer(outer, engine=Importance(3), seed=0)
    first.save(tmp_path / "p.jsonl")
    again = load(tmp_path / "p.jsonl")
    same(first, again)
    same(first.traces[0]["infer"], again.traces[0]["infer"])


def test_a_shared_past_is_written_and_read_once(posterior: Posterior, tmp_path: Path) -> None:
    save(posterior, tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    siblings = [i for i in range(1, 12) if posterior.eves[i] == posterior.eves[i - 1]]
    assert siblings and all(lines[1 + i]["shared"] > 0 for i in siblings)
    again = load(tmp_path / "p.jsonl")
    for i in siblings:
        assert again.traces[i].sites[0] is again.traces[i - 1].sites[0]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    trace = Trace(Entry(None, "deterministic", "x", (math.nan, -math.inf)), math.inf)
    first = Posterior([trace, trace], np.array([0.0, -np.inf]), -math.inf)
    save(first, tmp_path / "p.jsonl")
    for line in (tmp_path / "p.jsonl").read_bytes().splitlines():
        json.loads(line, parse_constant=refuse)
    x = load(tmp_path / "p.jsonl").traces[0]["x"]
    assert math.isnan(x[0]) and x[1] == -math.inf


# -- values ---------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=())),  # lone surrogates too
    st.binary(),
    st.complex_numbers(),
)
values = st.recursive(
    scalars,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3).map(tuple),
        st.dictionaries(st.text(st.sampled_from("$ab"), max_size=3), inside, max_size=3).map(
            freeze
        ),
        st.lists(inside, max_size=3),
        st.dictionaries(st.integers(), inside, max_size=2),
    ),
    max_leaves=8,
)


def alike(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down; nan is itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes() or a != a and b != b
    if isinstance(a, complex):
        return alike(a.real, b.real) and alike(a.imag, b.imag)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    return bool(a == b)


@given(values)
def test_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    line = dump(encode(value))
    assert alike(decode(json.loads(line)), value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([0.1, math.nan, -math.inf], dtype=np.float32),
        np.array([1 + 2j, complex(math.nan, 0)]),
        np.array([["a", "é"], ["", "long text"]]),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.array(7, dtype=np.uint8),
        np.float32(0.1),
        np.int64(-5),
        np.bool_(True),
    ],
    ids=repr,
)
def test_arrays_keep_their_type_and_shape(array: Any) -> None:
    again = decode(json.loads(dump(encode(array))))
    assert again.dtype == array.dtype and again.shape == array.shape
    np.testing.assert_array_equal(again, array)
    if again.shape:
        assert not again.flags.writeable


@pytest.mark.parametrize(
    "text",
    [
        Text(
            "ab",
            token_ids=[3, 1],
            token_logprobs=[-0.1, -math.inf],
            address="x/y[2]",
            finish="stop",
        ),
        Text("ab", address="x"),
        Text("ab"),
        Text("", address="x", token_ids=[], token_logprobs=[]),
        Text("so ab", spans=(Span(3, 5, "x"),), scheme=(1 << 63) + 5),
        Text("\ud800\x00\u2028</script>", address="x"),
    ],
    ids=repr,
)
def test_texts_keep_tokens_ending_and_origin(text: Text) -> None:
    same_text(text, decode(json.loads(dump(encode(text)))))


def test_sets_and_unusual_keys() -> None:
    for value in (frozenset({1, 2}), {"a"}, FrozenDict({(1, "a"): 2}), {"plain": [1]}):
        assert alike(decode(json.loads(dump(encode(value)))), value)


def test_an_array_of_another_library_comes_back_as_numpy() -> None:
    jnp = pytest.importorskip("jax.numpy")
    again = decode(json.loads(dump(encode(jnp.array([1.5, 2.5])))))
    assert isinstance(again, np.ndarray) and again.tolist() == [1.5, 2.5]


class Own:
    def __repr__(self) -> str:
        return "Own()"


def with_object() -> Posterior:
    return Posterior([Trace(Entry(None, "effect", "tool", Own()), 1)], np.zeros(1), 0.0)


def test_an_object_is_refused_with_its_site_and_the_cure(tmp_path: Path) -> None:
    with pytest.raises(BadArgument) as caught:
        with_object().save(tmp_path / "p.jsonl")
    assert str(caught.value) == (
        "a Own cannot be saved\n"
        "  where: site 'tool'\n"
        "  value: Own()\n"
        "  fix:   return or record numbers, texts, tuples, dicts or arrays; or save(path, "
        "opaque=True), which keeps its repr"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_object_can_be_kept_as_its_repr(tmp_path: Path) -> None:
    with_object().save(tmp_path / "p.jsonl", opaque=True)
    again = load(tmp_path / "p.jsonl")
    assert again.traces[0]["tool"] == Opaque("Own()") and repr(again.traces[0]["tool"]) == "Own()"
    again.save(tmp_path / "q.jsonl")
    assert load(tmp_path / "q.jsonl").traces[0]["tool"] == Opaque("Own()")


# -- damage ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    first = infer(inner, engine=Importance(3), seed=0)
    first.ledger = Ledger()  # seconds differ from run to run
    save(first, tmp_path / "p.jsonl")
    return tmp_path / "p.jsonl"


def test_no_cut_goes_unnoticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in range(len(whole) - 1):  # without its last line break the file is still whole
        saved.write_bytes(whole[:size])
        with pytest.raises(DataError):
            load(saved)


def test_no_flipped_bit_goes_unnoticed(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    for at in range(len(whole)):
        whole[at] ^= 1 << at % 8
        saved.write_bytes(whole)
        with pytest.raises(DataError):
            load(saved)
        whole[at] ^= 1 << at % 8


def edited(saved: Path, line: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one line on purpose, with a checksum that fits."""
    lines = [json.loads(text) for text in saved.read_text().splitlines()]
    change(lines[line])
    body = b"".join(dump(item) + b"\n" for item in lines[:-1])
    saved.write_bytes(body + dump({"end": 3, "crc32": f"{zlib.crc32(body):08x}"}) + b"\n")


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (
            0,
            lambda h: h.update(version=2),
            "format version 2 is unknown; this lmppl reads version 1",
        ),
        (0, lambda h: h.update(format="x"), "is no saved posterior"),
        (0, lambda h: h.update(particles=4), "ends early: 3 of 4 particles"),
        (0, lambda h: h.update(particles="4"), "no number of particles"),
        (0, lambda h: h.pop("engine"), "missing 'engine'"),
        (0, lambda h: h.update(ledger=[]), "damaged"),
        (0, lambda h: h["history"].update(ess=["x"]), "expected a number, got 'x'"),
        (2, lambda p: p.pop("eve"), "missing 'eve'"),
        (2, lambda p: p.update(log_weight=None), "expected a number, got None"),
        (2, lambda p: p.update(log_weight={"$f": "nan"}), "nan or inf"),
        (2, lambda p: p.update(shared=9), "shares 9 sites"),
        (2, lambda p: p.update(eve=-1), "ancestor below 0"),
        (2, lambda p: p["sites"][0].pop("op"), "missing 'op'"),
        (2, lambda p: p["sites"][0].update(value={"$exec": "x"}), "unknown kind of value '$exec'"),
        (
            2,
            lambda p: p.update(result={"$array": [1], "dtype": "|O", "shape": [1]}),
            "never written",
        ),
        (
            2,
            lambda p: p.update(result={"$array": [1], "dtype": "<f8", "shape": [10**9]}),
            "entries",
        ),
        (2, lambda p: p.update(result={"$text": 5}), "expected a text"),
        (2, lambda p: p.update(result={"$text": "a", "ids": [1], "logps": []}), "1 ids and 0"),
        (2, lambda p: p.update(result={"$posterior": [{}, []]}), "missing 'format'"),
    ],
)
def test_what_is_wrong_is_said(
    saved: Path, line: int, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    edited(saved, line, change)
    with pytest.raises(DataError) as caught:
        load(saved)
    assert said in str(caught.value)
    assert "fix:" in str(caught.value)


def test_where_it_is_wrong_is_said(saved: Path) -> None:
    text = saved.read_text().splitlines()
    text[2] = "{#" + text[2][1:]
    saved.write_text("\n".join(text))
    with pytest.raises(DataError, match=r"p\.jsonl:3:2"):
        load(saved)
    saved.write_bytes(b'{"format": "\xff"}\n')
    with pytest.raises(DataError, match=r"not UTF-8: byte 0xff\n  where: .*p\.jsonl:1:13"):
        load(saved)
    saved.write_text('{"format": NaN}\n')
    with pytest.raises(DataError, match="NaN is no JSON"):
        load(saved)
    saved.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"p\.jsonl:1:1"):
        load(saved)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / "none.jsonl")
    for content, said in ((b"", "is empty"), (b"\n\n", "is empty"), (b"[1]\n", "no JSON object"), (b'{"id": 1}\n', "no saved posterior")):  # fmt: skip
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match=said):
            load(tmp_path / "x")


def test_a_byte_order_mark_and_empty_lines_do_no_harm(saved: Path) -> None:
    first = load(saved)
    lines = saved.read_bytes().splitlines(keepends=True)
    lines.insert(2, b"\n")
    saved.write_bytes(b"".join(lines))
    same(first, load(saved))


# -- atomic writing -------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def chunks() -> Any:
        yield b"new"
        raise RuntimeError("in the middle")

    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_atomic(tmp_path / "f", chunks())
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    write_atomic(tmp_path / "f", [b"a", b"b"])
    assert (tmp_path / "f").read_bytes() == b"ab"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make the folder"):
        write_atomic(tmp_path / "no" / "f", [b""])


# -- summaries ------------------------------------------------------------------------------------


def test_a_summary_says_what_the_posterior_says(posterior: Posterior) -> None:
    found = json.loads(dump(posterior_summary(posterior, most=3)))
    marginal = posterior.marginal()
    assert found["answer"] == list(marginal.best)
    assert [p for _, p, _ in found["posterior"]] == list(marginal.values())[:3]
    assert found["answers"] == len(marginal)
    assert found["log_evidence"] == posterior.log_evidence
    assert found["log_evidence_interval"] == list(posterior.log_evidence_interval())
    assert found["ess"] == posterior.ess and found["particles"] == 12
    assert found["unique_ancestors"] == posterior.unique_ancestors
    assert found["tokens_out"] == posterior.ledger.tokens_out > 0
    assert found["ledger"]["models"]["table"]["tokens_out"] == found["tokens_out"]


def test_a_summary_is_a_result_record(posterior: Posterior) -> None:
    from lmppl.records import ResultRecord

    record = ResultRecord(id=7, program="busy", engine="SMC", **posterior_summary(posterior))
    again = ResultRecord.model_validate_json(record.model_dump_json())
    assert again == record and again.ess == posterior.ess and again.log_evidence is not None


def test_a_summary_of_nothing_has_no_answer() -> None:
    dead = Posterior([Trace(None)], np.array([-np.inf]), -math.inf)
    found = json.loads(dump(posterior_summary(dead)))
    assert found["answer"] is None and found["posterior"] == []
    assert found["log_evidence"] == {"$f": "-inf"} and found["log_evidence_se"] == {"$f": "nan"}
