"""A small language model with a verifier, at equal token budgets: what the budget is spent on.

The program is that of `word_problems.py`: notes, a formula, a calculator, and a verifier that is
part of the program as an observation and two factors: the answer asked for outright, and no number
forgotten or made up. Every engine may spend the same tokens per question, verifier included:

| engine | does with the verifier |
| --- | --- |
| `greedy` | nothing; one run, so it spends less |
| `forward` | nothing: plain draws and their majority |
| `smc` | weights runs by it, and resamples by the factors on the way |
| `beam` | ranks by it, with the model's own probability |

What comes out is printed, whatever it is. A few questions cannot rank engines: the intervals say so.
The default size shows that the budgets are met; `main(questions=15, tokens=8000)` takes minutes.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

from lmppl.commands.compare import SUMMARY, Comparison, compare
from lmppl.inference.questions.rundir import RESULTS

NEEDS = "smollm2"
SLOW = True

HERE = Path(__file__).parent
ENGINES = ("greedy", "forward", "smc", "beam:expand=2")


def main(questions: int = 2, tokens: int = 4000, lm: str = NEEDS, out: str | None = None) -> None:
    folder = Path(out or tempfile.mkdtemp(prefix="lmppl-")) / "verifier_budget"
    done = compare(
        Comparison(
            program=str(HERE / "word_problems.py"),
            data=str(HERE / "data" / "word_problems.jsonl"),
            out=str(folder),
            engines=ENGINES,
            models=(lm,),
            limit=questions,
            budgets=(f"tokens={tokens}",),
            first=min(questions, 2),
        )
    )
    assert done == 0, "every question was answered"
    table = json.loads((folder / SUMMARY).read_text())["engines"]
    assert len(table) == len(ENGINES)
    for line in table:
        assert line["answered"] == questions, line["engine"]
        if line["size"] is not None:  # greedy has none
            assert abs(line["tokens"] / tokens - 1) < 0.25, line["engine"]
    for text in (folder / RESULTS).read_text().splitlines():
        record = json.loads(text)
        assert math.isfinite(record["log_evidence"]) or record["engine"].startswith("forward")
        assert math.isclose(sum(mass for _, mass, _ in record["posterior"]), 1.0, abs_tol=1e-9)


if __name__ == "__main__":
    main()
