r"""AB-MCTS as an engine: a program that answers afresh, or refines what an earlier run returned.

The program takes the result of another run by its keyword `parent`; None asks for a fresh answer.

    @program
    def solve(question, parent=None):
        if parent is None: draft = sample("draft", LM(f"{question}\nAnswer:", stop="\n"))
        else:              draft = sample("draft", LM(f"{question}\nNot {parent}. Answer:", stop="\n"))
        observe("right", judge(question, draft), " yes")
        return draft

    infer(solve, "…", engine=ABMCTS(nodes=64, batch=8), lm=…).best

Each wave asks the allocator for `batch` trials and runs them as one batch. The score of a run is
its likelihood, exp(Σ log p(observations) + Σ factors), at most 1, unless `score` says otherwise.

Reference: Inoue et al., Wider or deeper?, 2503.04412 (2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_functions, check_integers, check_known, check_word
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_actions, check_call
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.abmcts import ABMCTS_A
from lmppl.inference.search.abmcts_mixed import ABMCTS_M
from lmppl.inference.search.allocator import Trial
from lmppl.inference.search.found import found
from lmppl.inference.search.priors import BetaPrior, Relative
from lmppl.inference.search.results import ResultTree
from lmppl.inference.search.wider_deeper import WiderDeeper
from lmppl.jobs import Env
from lmppl.lm.load import as_models
from lmppl.messages import Message
from lmppl.random import fold
from lmppl.strands import Launch, Strand
from lmppl.trace import Trace
from lmppl.types import Key

KINDS: dict[str, Callable[..., ResultTree]] = {
    "nix2": ABMCTS_A,
    "beta": lambda actions, **more: ABMCTS_A(actions, prior=BetaPrior(), **more),
    "relative": lambda actions, **more: ABMCTS_A(actions, prior=Relative(), **more),
    "mixed": ABMCTS_M,
    "wider_deeper": WiderDeeper,
}


@dataclass(frozen=True)
class ABMCTS(Engine):
    """AB-MCTS over runs of a program.

    Args:
        nodes: how many runs in all.
        batch: how many of them at a time.
        posterior: "nix2", "beta" or "relative" (AB-MCTS-A), "mixed" (AB-MCTS-M), "wider_deeper".
        parent: the keyword by which the program takes a parent's result.
        score: a number for a finished trace, in [0, 1] for "beta"; the likelihood when left out.
        actions: what can make a run, by name: a language model (or its name) that takes the place
            of the default one, or a mapping of keyword arguments of the program, such as prompts.
        choose: how actions are chosen: "thompson", "ucb" or "stack"; see
            `lmppl.inference.search.results`.
        prune: leave subtrees out whose scores are nearly all equal.
    """

    nodes: int = 32
    batch: int = 4
    posterior: str = "nix2"
    parent: str = "parent"
    score: Callable[[Trace], float] | None = None
    actions: Mapping[str, Any] | None = None
    choose: str = "thompson"
    prune: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_integers("ABMCTS", nodes=self.nodes, batch=self.batch)
        check_known("ABMCTS", tuple(KINDS), posterior=self.posterior)
        check_word("ABMCTS", parent=self.parent)
        check_functions("ABMCTS", score=self.score)
        check_actions("ABMCTS", self.actions)
        self._tree(0)

    def target(self, program: Any = None) -> str:
        """What is returned."""
        return (
            "no sample: every run of the search with weight ∝ its score (equal where one is "
            "negative); the best is map()\nno evidence is estimated"
        )

    def run(self, machine: Machine) -> Jobs:
        """Ask, run, tell."""
        tree = self._tree(fold(machine.key, "abmcts"))
        envs: dict[int, Env] = {}

        def drawn(p: Particle, m: Message, key: Key) -> Any:
            env = envs.get(p.index)
            return machine.draw_site(p, m, key) if env is None else m.dist.draw(key, env)

        machine.draws = drawn
        runs: list[Particle] = []
        while tree.asked < self.nodes:
            trials = tree.ask(min(self.batch, self.nodes - tree.asked))
            wave = [self._particle(machine, t, envs) for t in trials]
            yield from machine.advance(wave, "end")
            for t, p in zip(trials, wave, strict=True):
                score = 0.0 if p.dead else score_of(p.trace, self.score)
                tree.tell(t.id, p.strand.result, score)
            runs += wave
        scores = [tree.told[p.index] * 2.0**-40 for p in runs]
        for p, score in zip(runs, scores, strict=True):
            if not p.dead:
                p.logw = 0.0 if min(scores) < 0 else (math.log(score) if score > 0 else -math.inf)
        return found(
            machine,
            self,
            runs,
            scores,
            expansions=len({tree.nodes[p.index].parent for p in runs}),
            nodes=len(runs),
            distinct=True,
            log_evidence=float("nan"),
            allocator=tree,
        )

    def _tree(self, seed: int) -> ResultTree:
        names = tuple(self.actions or ("",))
        if self.posterior == "wider_deeper":
            return WiderDeeper(names, seed=seed)
        return KINDS[self.posterior](names, seed=seed, choose=self.choose, prune=self.prune)

    def _particle(self, machine: Machine, trial: Trial, envs: dict[int, Env]) -> Particle:
        """A run that has not started, from its parent's result, by its action."""
        kwargs = {**machine.launch.kwargs, self.parent: trial.state}
        action = (self.actions or {}).get(trial.action)
        if isinstance(action, Mapping):
            kwargs.update(action)
        elif action is not None:
            env = machine.env
            envs[trial.id] = Env({**env.models, **as_models(action)}, env.chance, env.resolve)
        base = machine.launch
        check_call(machine.program, base.args, kwargs)
        launch = Launch(
            base.fn, base.args, kwargs, base.driver, base.handlers, base.scope, base.strict
        )
        launch.models, launch.chance, launch.met = base.models, base.chance, base.met
        return Particle(Strand(launch), fold(machine.key, "trial", trial.id), trial.id)


def score_of(trace: Trace, score: Callable[[Trace], float] | None) -> float:
    """The number of a finished trace: by a function, or its likelihood."""
    return likelihood(trace) if score is None else float(score(trace))


def likelihood(trace: Trace) -> float:
    """exp(Σ log p of observations + Σ factors), at most 1: how well a run meets what is given."""
    total = math.fsum(
        e.logw if e.op == "factor" else e.logp for e in trace.sites if e.op in ("observe", "factor")
    )
    return math.exp(min(total, 0.0))
