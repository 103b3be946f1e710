"""`lmppl run --ray`: the same results as without it, and none lost when a process dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmppl.commands.loading import load_program
from lmppl.commands.ray_runner import Crew, _of_tier
from lmppl.errors import LmpplError
from lmppl.inference.questions.rundir import read_results

PROGRAM = '''
import os
from pathlib import Path
from lmppl import LM, effect, observe, program, sample, Categorical
from helper import LENGTH

def once(name):
    """End this process at the first call, or at every one."""
    file = Path(os.environ["LMPPL_TEST_KILLS"]) / name
    if name == "always" or (name == "once" and not file.exists()):
        file.touch()
        os._exit(9)

@program
def answered(question, kill=""):
    text = str(sample("text", LM(question, max_tokens=LENGTH)))
    effect("kill", once, kill)
    observe("seen", Categorical({True: 0.7, False: 0.3}), "a" in text)
    return text
'''
TABLE = {"tokens": ["a", "b", " c", "<eos>"], "table": {"": [0.4, 0.3, 0.2, 0.1]}}


def test_an_actor_keeps_to_its_server() -> None:
    tier = "http://a:1#m,http://b:2#m"
    assert [_of_tier(tier, i) for i in range(3)] == ["http://a:1#m", "http://b:2#m", "http://a:1#m"]
    assert _of_tier("smollm2", 3) == "smollm2" and _of_tier("a,b/c", 0) == "a,b/c"


@pytest.fixture
def answers(tmp_path: Path) -> Any:
    """`answers(kills, out, *options)`: what `lmppl run` writes, in a process of its own.

    The i-th question ends its process as `kills[i]` says.
    """
    (tmp_path / "answered.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("LENGTH = 4\n")
    (tmp_path / "toy.json").write_text(json.dumps(TABLE))

    def run(kills: dict[int, str], out: str, *options: str) -> tuple[int, dict[Any, Any]]:
        lines = [{"id": i, "question": "ab" * (i % 3), "kill": kills.get(i, "")} for i in range(14)]
        data = tmp_path / f"{out}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [
            sys.executable, "-m", "lmppl", "run", str(tmp_path / "answered.py"), "--data", str(data),
            "--out", str(tmp_path / out), "--engine", "smc:particles=8", "--concurrency", "4",
            "--lm", f"table:{tmp_path / 'toy.json'}", *options,
        ]  # fmt: skip
        own = {**os.environ, "LMPPL_TEST_KILLS": str(tmp_path)}
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=280)
        assert done.returncode in (0, 1), done.stderr
        records, torn = read_results(tmp_path / out)
        written = (tmp_path / out / "results.jsonl").read_text().splitlines()
        assert not torn and len(written) == len(records) == 14  # none is lost, none is there twice
        return done.returncode, {r.id: (r.posterior, r.log_evidence, r.error) for r in records}

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_answer_as_one_does_and_a_death_loses_nothing(
    answers: Any, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    _, alone = answers({}, "alone")
    code, spread = answers({}, "spread", "--ray", "local", "--ray-actors", "2")
    assert [e for _, _, e in spread.values() if e] == [] and code == 0
    assert spread == alone
    kills = {2: "once", 9: "always"}
    code, hurt = answers(kills, "hurt", "--ray", "local", "--ray-actors", "2")
    assert code == 1 and (tmp_path / "once").exists() and (tmp_path / "always").exists()
    failed = {i for i, (_, _, error) in hurt.items() if error is not None}
    assert failed == {9} and "ended 3 times" in hurt[9][2]
    assert {i: hurt[i] for i in hurt if i != 9} == {i: alone[i] for i in alone if i != 9}


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "answered.py").write_text(
        PROGRAM.replace("from helper import LENGTH", "LENGTH = 1")
    )
    loaded = load_program(str(tmp_path / "answered.py"))
    with pytest.raises(LmpplError, match="no Ray cluster at 127.0.0.1:1"):
        Crew("127.0.0.1:1", 1, loaded, {})
