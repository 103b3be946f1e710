"""What a seed gives, on record: a change of the random stream is seen, and has to be meant.

`pytest tests/laws/test_golden_seeds.py --update-golden` writes `tests/golden/seeds.json` anew. Do
so when keys, counters or the order of draws change on purpose, and say `RNG-CHANGE:` in the
changelog: users who quote a seed get other numbers from then on.

What is drawn (sites, token ids, texts, results) is compared through its hash and must be equal;
log-weights and the evidence to 1e-12, since `exp` and `log` differ by an ulp between processors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl.inference import SMC, Importance, Posterior, infer, tokens

GOLDEN = Path(__file__).parent.parent / "golden" / "seeds.json"
TOLERANCE = 1e-12
PROGRAMS = (
    "one_site", "cascade", "branching", "random_loop", "recursion", "observed", "hard", "soft",
    "shared_parent", "calculator", "early_return", "plated", "nested", "hidden_markov", "mixture",
    "regexed", "proposals", "forced_end", "stopped", "chosen", "tempered", "half_characters",
)  # fmt: skip
ENGINES = {
    "importance": Importance(particles=4),
    "smc": SMC(particles=4, always=True),
    "smc by tokens": SMC(particles=4, always=True, resampling="multinomial", resample_at=tokens(1)),
}
SEED = 20


def drawn(post: Posterior) -> str:
    """A hash of everything that chance decided, the same in every process."""
    found = []
    for trace, eve in zip(post.traces, post.eves.tolist(), strict=True):
        sites: list[Any] = []
        for e in trace.sites:
            if e.op != "jobs":
                ids = getattr(e.value, "token_ids", None)
                sites.append(
                    [e.op, e.address, repr(e.value), None if ids is None else ids.tolist()]
                )
        found.append([sites, eve, repr(trace.result)])
    text = json.dumps(found, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def record(program: Any, engine: Any) -> dict[str, Any]:
    """What is kept of one run."""
    post = infer(
        program.program, *program.args, engine=engine, lm=program.lm, seed=SEED, on_dead="return"
    )
    return {
        "drawn": drawn(post),
        "log_evidence": number(post.log_evidence),
        "log_weights": [number(w) for w in post.log_weights.tolist()],
    }


def number(x: float) -> float | str:
    """JSON has no infinity."""
    return x if np.isfinite(x) else str(x)


def all_records(programs: ModuleType) -> dict[str, dict[str, Any]]:
    """By program, then by engine."""
    by_name = {c.name: c for c in programs.CASES}
    return {
        name: {label: record(by_name[name], engine) for label, engine in ENGINES.items()}
        for name in PROGRAMS
    }


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest, programs: ModuleType) -> Any:
    if request.config.getoption("--update-golden"):
        found = {"seed": SEED, "runs": all_records(programs)}
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_the_record_is_complete(golden: Any) -> None:
    assert golden["seed"] == SEED
    assert {name: set(runs) for name, runs in golden["runs"].items()} == {
        name: set(ENGINES) for name in PROGRAMS
    }


@pytest.mark.parametrize("label", ENGINES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_seed_gives_what_it_gave(
    golden: Any, programs: ModuleType, name: str, label: str
) -> None:
    case = next(c for c in programs.CASES if c.name == name)
    expected, found = golden["runs"][name][label], record(case, ENGINES[label])
    assert found["drawn"] == expected["drawn"], (
        "the random stream has changed; if that was meant, run pytest with --update-golden "
        "and write RNG-CHANGE: into the changelog"
    )
    for key in ("log_evidence", "log_weights"):
        np.testing.assert_allclose(
            np.array(found[key], dtype=np.float64),
            np.array(expected[key], dtype=np.float64),
            rtol=0,
            atol=TOLERANCE,
        )


def test_another_seed_is_seen(programs: ModuleType) -> None:
    """The hash is of what was drawn: other seeds, other hashes, in nearly all programs."""
    by_name = {c.name: c for c in programs.CASES}
    engine = Importance(particles=8)
    changed = 0
    for name in PROGRAMS:
        case = by_name[name]
        posts = [
            infer(case.program, *case.args, engine=engine, lm=case.lm, seed=s, on_dead="return")
            for s in (1, 2)
        ]
        changed += drawn(posts[0]) != drawn(posts[1])
    assert changed >= len(PROGRAMS) - 2
