"""Size and speed of a report of 1,000 particles × 50 sites (figures of `make bench`).

Run `python tests/benchmarks/bench_report.py`. Two runs: every thought of its own text (importance
sampling, the worst case for size), and SMC that resamples. `opens` is from the start of the
navigation to the page having drawn all of its sections, in headless Chromium; the aims are 3 MB
and 2 s. A dash where there is no Chromium.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from lmppl import LM, Bernoulli, observe, program, sample
from lmppl.inference import SMC, Importance, infer
from lmppl.lm.table import TableLM

SYLLABLES = "ka lo mi ne ru ta vo se pi du ha go be ji fu za".split()
WORDS = [f"{a}{b} " for a in SYLLABLES for b in SYLLABLES[:15]] + ["\n"]
FREE = TableLM(WORDS, {(): [0.95 / 240] * 240 + [0.05]}, order=1, name="syllables")
THOUGHTS = 25


@program
def reasoning() -> str:
    """25 thoughts of about 60 characters, each with an observation: 50 sites."""
    for i in range(THOUGHTS):
        thought = sample(f"thought {i}", LM("ka lo ", max_tokens=24, stop="\n"))
        observe(f"sound {i}", Bernoulli(0.5 + 0.4 * (len(thought) % 2)), True)
    return "even" if len(thought) % 2 else "odd"


def browser_module() -> ModuleType:
    """`tests/browser.py`."""
    path = Path(__file__).parent.parent / "browser.py"
    spec = importlib.util.spec_from_file_location("lmppl_bench_browser", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opening(module: ModuleType, path: Path) -> list[float]:
    """Seconds to open, three times, each in a browser of its own."""
    if module.chromium() is None:
        return []
    times = []
    for _ in range(3):
        with module.Browser() as browser:
            page = browser.open(path.as_uri())
            page.wait("document.body && document.body.dataset.ready", 60)
            times.append(float(page.evaluate("document.body.dataset.ready")) / 1000)
    return times


def main() -> None:
    """Print the table."""
    browser = browser_module()
    print(f"{'engine':<28} {'nodes':>8} {'write s':>8} {'MB':>6}  opens s")
    engines: list[Any] = [Importance(1000), SMC(1000), SMC(1000, always=True)]
    with tempfile.TemporaryDirectory() as folder:
        for engine in engines:
            posterior = infer(reasoning, engine=engine, lm=FREE, seed=0)
            path = Path(folder) / "run.html"
            began = time.perf_counter()
            posterior.report(path)
            wrote = time.perf_counter() - began
            size = path.stat().st_size / 1e6
            opens = ", ".join(f"{t:.2f}" for t in opening(browser, path)) or "-"
            nodes = sum(len(t.sites) for t in posterior.traces)
            name = repr(engine)[:28]
            print(f"{name:<28} {nodes:>8,} {wrote:>8.1f} {size:>6.2f}  {opens}", flush=True)


if __name__ == "__main__":
    main()
