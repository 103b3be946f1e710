"""pgmax 0.6.1 and ours on one factor graph: sum-product is marginal mode, at temperature 1/λ.

pgmax pins an older JAX, so it runs in an interpreter of its own: set PGMAX_PYTHON to one that has
`pip install --no-deps pgmax==0.6.1` and `pip install jax==0.4.34 jaxlib==0.4.34 numba numpy<2.1 scipy`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lmppl.inference.planning import CPT, FactoredMDP, Reward
from lmppl.inference.planning.factors import factors_of
from lmppl.inference.planning.vbp import propagate

STATES, ACTIONS, HORIZON = 6, 3, 20
THEIRS = """
import itertools, sys, time
import jax, numpy as np
from pgmax import fgraph, fgroup, infer, vgroup
given = np.load(sys.argv[1])
p, r = given["p"], given["r"]
s, a, _ = p.shape
h = int(given["h"])
xs = vgroup.NDVarArray(num_states=s, shape=(h + 1,))
acts = vgroup.NDVarArray(num_states=a, shape=(h,))
fg = fgraph.FactorGraph(variable_groups=[xs, acts])
configs = np.array(list(itertools.product(range(s), range(a), range(s))))
logs = np.log(p[configs[:, 0], configs[:, 1], configs[:, 2]]) + r[configs[:, 0], configs[:, 1]]
fg.add_factors(fgroup.EnumFactorGroup(
    variables_for_factors=[[xs[t], acts[t], xs[t + 1]] for t in range(h)],
    factor_configs=configs, log_potentials=np.tile(logs, (h, 1))))
bp = infer.build_inferer(fg.bp_state, backend="bp")
evidence = np.zeros((h + 1, s))
evidence[0, 1:] = -1000.0
@jax.jit
def run():
    arrays = bp.init(evidence_updates={xs: evidence})
    return bp.get_beliefs(bp.run(arrays, num_iters=2 * h, damping=0.0, temperature=1.0))
times = []
for _ in range(6):
    began = time.perf_counter()
    found = jax.block_until_ready(run())
    times.append(time.perf_counter() - began)
beliefs = infer.get_marginals(found)
np.savez(sys.argv[2], x=np.asarray(beliefs[xs]), a=np.asarray(beliefs[acts]), times=times)
"""


def main() -> None:
    python = os.environ.get("PGMAX_PYTHON")
    if not python:
        print("not run: set PGMAX_PYTHON to an interpreter with pgmax 0.6.1", file=sys.stderr)
        return
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
    r = rng.normal(size=(STATES, ACTIONS))
    mdp = FactoredMDP({"x": STATES}, ACTIONS, {"x": CPT(["x"], p)}, [Reward(["x"], r)])
    problem = factors_of(mdp, HORIZON)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        found = propagate(problem, risk=1.0, temperature=1.0, anneal=0, sweeps=3)
        times.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given.npz"), Path(folder, "out.npz")
        np.savez(given, p=p, r=r, h=HORIZON)
        subprocess.run([python, "-c", THEIRS, str(given), str(out)], check=True, env={**os.environ, "PYTHONPATH": ""})  # fmt: skip
        theirs = dict(np.load(out))
    gap = np.abs(found.beliefs[:, 0] - theirs["x"]).max()
    gap_a = np.abs(found.action_probs - theirs["a"][0]).max()
    print(f"largest difference of beliefs: states {gap:.1e}, first action {gap_a:.1e}")
    for name, t in (("ours", times), ("pgmax 0.6.1", theirs["times"])):
        print(f"{name:<12} first {t[0]:>7.2f} s, later {np.median(t[1:]) * 1e3:>8.2f} ms")
    print(
        f"pgmax / ours, later calls: {np.median(theirs['times'][1:]) / np.median(times[1:]):.1f}x"
    )


if __name__ == "__main__":
    main()
