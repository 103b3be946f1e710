"""Language models in planning problems: tables they fill, actions they propose, states that are texts.

* `LanguageCPT` is a transition over a closed set of labels, each row scored by a model and
  normalised over the labels; `fill` scores the rows that can be reached and no others, in one batch
  per step, each (model, prompt, labels) once.
* `propose` draws actions; `pad` makes one array of proposals of unequal length, with a mask.
* `text_problem` interns texts as states: w next texts are drawn for each state and action, with
  common random numbers, and the finite graph that they make is solved exactly.

A table that a model filled is the model's opinion: its optimum is the model's, not the world's. A
graph of w draws is optimistic for small w: what is drawn is taken for all there is.

Reference: sample average approximation with common random numbers: Kearns, Mansour and Ng, A sparse
sampling algorithm for near-optimal planning (2002).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lmppl.batches import run_lm_jobs
from lmppl.choice import Choice
from lmppl.errors import BadArgument, excerpt
from lmppl.inference.calls import infer
from lmppl.inference.forward import Forward
from lmppl.inference.planning.mdp import CPT, TabularMDP
from lmppl.inference.planning.tables import Array, labels
from lmppl.jobs import Env, Score
from lmppl.ledger import Ledger
from lmppl.lm.load import as_models, shared
from lmppl.primitives import sample
from lmppl.random import GumbelMax, fold, hash_text
from lmppl.strings import LM

Memo = dict[Hashable, Array]
MOST_NODES = 4096


@dataclass(frozen=True)
class LanguageCPT:
    """P(next label | parents, action) as a language model scores the labels.

    Args:
        parents: variables that the prompt is about.
        prompt: from their values (a mapping) and the action to a prompt.
        surfaces: label -> the text that is scored after the prompt; `" " + label` when left out.
        temperature: of the scores; 1 is the model's own law over the labels.
    """

    parents: Sequence[str]
    prompt: Callable[[Mapping[str, Any], Any], str]
    surfaces: Mapping[Any, str] | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Filled:
    """Tables that are ready for a `FactoredMDP`."""

    transitions: dict[str, CPT]
    scored: int
    """Rows that a model scored; rows with the same prompt are scored once."""
    rows: int
    """Rows of the language tables, unreachable ones included: these are uniform."""
    ledger: Ledger
    temperatures: dict[str, float]


def fill(
    states: Mapping[str, Any],
    actions: Any,
    transitions: Mapping[str, CPT | LanguageCPT],
    initial: Mapping[str, Any],
    horizon: int,
    *,
    lm: Any = None,
    memo: Memo | None = None,
) -> Filled:
    """Score what can be reached within `horizon` actions.

    Args:
        states: as in `FactoredMDP`.
        actions: as there.
        transitions: as there, with `LanguageCPT`s among them.
        initial: the first value of every variable.
        horizon: how many actions; the values after the last one are not asked for.
        lm: the model.
        memo: rows by (model, prompt, labels), kept by the caller across calls.
    """
    known = {k: labels(f"states[{k!r}]", v) for k, v in states.items()}
    acts = labels("actions", actions)
    env = Env(as_models(lm), GumbelMax(), shared)
    ledger = Ledger()
    memo = {} if memo is None else memo
    made: dict[str, dict[tuple[int, ...], Array]] = {
        k: {} for k, t in transitions.items() if isinstance(t, LanguageCPT)
    }
    reach = {k: {v.index(initial[k])} if k in initial else {0} for k, v in known.items()}
    scored = 0
    for _ in range(horizon):
        asked: dict[Hashable, tuple[Choice, float]] = {}
        rows = {
            k: list(itertools.product(*(sorted(reach[p]) for p in transitions[k].parents), range(len(acts))))
            for k in known
        }  # fmt: skip
        keys: dict[tuple[str, tuple[int, ...]], Hashable] = {}
        for k in made:
            for row in rows[k]:
                if row not in made[k]:
                    choice, key, heat = _question(transitions[k], known, acts, k, row, env)
                    keys[k, row] = key
                    if key not in memo:
                        asked[key] = choice, heat
        scored += len(asked)
        _score(asked, env, ledger, memo)
        for (k, row), key in keys.items():
            made[k][row] = memo[key]
        following = {k: set(v) for k, v in reach.items()}
        for k in known:
            cpt = transitions[k]
            for row in rows[k]:
                law = made[k][row] if k in made else _row(cpt, row)
                following[k] |= set(np.flatnonzero(law > 0.0).tolist())
        reach = following
    done: dict[str, CPT] = {}
    total = 0
    for k, t in transitions.items():
        if isinstance(t, CPT):
            done[k] = t
            continue
        shape = (*(len(known[p]) for p in t.parents), len(acts), len(known[k]))
        table = np.full(shape, 1.0 / len(known[k]))
        total += int(np.prod(shape[:-1]))
        for row, law in made[k].items():
            table[row] = law
        done[k] = CPT(tuple(t.parents), table)
    heats = {k: t.temperature for k, t in transitions.items() if isinstance(t, LanguageCPT)}
    return Filled(done, scored, total, ledger, heats)


def _row(cpt: Any, row: tuple[int, ...]) -> Array:
    table = np.asarray(cpt.table, float)
    return np.asarray(table[row] if table.ndim == len(row) + 1 else table[row[:-1]])


def _question(
    t: Any, known: Mapping[str, Any], acts: Any, name: str, row: tuple[int, ...], env: Env
) -> tuple[Choice, Hashable, float]:
    values = {p: known[p][c] for p, c in zip(t.parents, row[:-1], strict=True)}
    prompt = t.prompt(values, acts[row[-1]])
    surfaces = t.surfaces or {v: f" {v}" for v in known[name]}
    if set(surfaces) != set(known[name]):
        raise BadArgument(
            f"surfaces of {name!r} must have one text for each label",
            value=excerpt(dict(surfaces)),
            fix=f"labels: {excerpt(known[name])}",
        )
    texts = {i: surfaces[v] for i, v in enumerate(known[name])}
    key = (env.model(None).name, prompt, tuple(texts.values()), t.temperature)
    return Choice(prompt, texts), key, t.temperature


def _score(
    asked: Mapping[Hashable, tuple[Choice, float]], env: Env, ledger: Ledger, memo: Memo
) -> None:
    """All rows in one batch."""
    steps: dict[Hashable, Any] = {key: c.support(env) for key, (c, _) in asked.items()}
    jobs = [s for s in steps.values() if isinstance(s, Score)]
    for job in jobs:
        job.ledger = ledger
    run_lm_jobs(jobs, env.chance)
    for key, (choice, heat) in asked.items():
        pairs = steps[key].step() if isinstance(steps[key], Score) else steps[key]
        if not pairs:
            raise BadArgument(f"no label is possible after {excerpt(choice.prompt)}")
        law = np.zeros(len(choice.values))
        top = max(lp for _, lp in pairs)
        for i, lp in pairs:
            law[i] = np.exp((lp - top) / heat)
        memo[key] = law / law.sum()


# -- actions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposals:
    """Different actions, most often drawn first, with how often each was drawn."""

    actions: tuple[str, ...]
    shares: tuple[float, ...]


def propose(
    prompt: str,
    n: int = 8,
    *,
    lm: Any = None,
    seed: int = 0,
    canonical: Callable[[str], str] | None = None,
    **options: Any,
) -> Proposals:
    """Actions that a language model draws: brought to one form, each once.

    Args:
        prompt: the text before an action.
        n: how many are drawn, in one batch.
        lm: the model.
        seed: the draws are a function of it.
        canonical: the one form; white space and case are evened out when left out.
        options: of `LM`: stop, max_tokens, temperature, ...

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["go", "Go", "stay", "."], {(): [.3, .3, .4, 0]}, order=1)
    >>> sorted(propose("", 16, lm=lm, max_tokens=1).actions)
    ['go', 'stay']
    """
    form = canonical or (lambda text: re.sub(r"\s+", " ", text).strip().lower())

    def one() -> Any:
        return sample("action", LM(prompt, **options))

    found = infer(one, engine=Forward(n), lm=lm, seed=seed)
    counts: dict[str, int] = {}
    for trace in found.traces:
        action = form(str(trace.result))
        if action:
            counts[action] = counts.get(action, 0) + 1
    ranked = sorted(counts, key=lambda a: -counts[a])
    return Proposals(tuple(ranked), tuple(counts[a] / n for a in ranked))


def pad(
    proposals: Sequence[Sequence[Any]], width: int | None = None
) -> tuple[list[tuple[Any, ...]], npt.NDArray[np.bool_]]:
    """Rows of one width, filled with None, and the mask [rows, width] of what is there."""
    longest = max((len(p) for p in proposals), default=0)
    width = longest if width is None else width
    if longest > width or width < 1 or any(len(p) == 0 for p in proposals):
        raise BadArgument(
            f"proposals need between 1 and {width} actions in each row",
            value=excerpt([len(p) for p in proposals]),
        )
    rows = [(*p, *[None] * (width - len(p))) for p in proposals]
    mask = np.array([[k < len(p) for k in range(width)] for p in proposals])
    return rows, mask


# -- texts as states ---------------------------------------------------------------------------


@dataclass
class Interned:
    """Texts by number, in the order in which they were met."""

    texts: list[str] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: str) -> int:
        """The number of a text; a new one gets the next."""
        if text not in self.ids:
            self.ids[text] = len(self.texts)
            self.texts.append(text)
        return self.ids[text]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextProblem:
    """A problem over texts: its states are texts, its actions are places in `actions[state]`."""

    mdp: TabularMDP
    actions: dict[str, tuple[Any, ...]]
    """By state: what each place means; None is padding."""

    def named(self, state: str, law: Mapping[int, float]) -> dict[Any, float]:
        """A law over places as one over the actions of a state."""
        return {a: law[k] for k, a in enumerate(self.actions[state]) if a is not None}


def text_problem(
    start: str,
    actions: Callable[[str], Sequence[Any]],
    draw: Callable[[str, Any, int], str],
    reward: Callable[[str, Any], float],
    *,
    horizon: int,
    width: int = 1,
    seed: int = 0,
) -> TextProblem:
    """The graph of `width` draws for each text and action, `horizon` actions deep.

    Args:
        start: the first text.
        actions: of a text; none where the run ends.
        draw: the next text, a function of (text, action, key); the k-th draw has the same key for
            every action of a text: common random numbers.
        reward: of a text and an action.
        horizon: how many actions.
        width: draws for each text and action.
        seed: the keys are a function of it.
    """
    known = Interned()
    known(start)
    edges: dict[int, dict[Any, list[int]]] = {}
    level = [0]
    for _ in range(horizon):
        new: list[int] = []
        for i in level:
            if i in edges:
                continue
            text = known.texts[i]
            edges[i] = {}
            for action in actions(text):
                keys = [fold(seed, hash_text(text), k) for k in range(width)]
                edges[i][action] = [known(draw(text, action, key)) for key in keys]
                new += edges[i][action]
            if len(known) > MOST_NODES:
                raise BadArgument(
                    f"more than {MOST_NODES:,} texts within {horizon} actions",
                    fix='use a smaller width, or plan(OpenMDP(...), method="mcts")',
                )
        level = list(dict.fromkeys(new))
    n = len(known)
    offered = [tuple(edges.get(i, {})) or (None,) for i in range(n)]
    rows, mask = pad(offered)
    moves = np.zeros((n, mask.shape[1], n))
    gains = np.zeros((n, mask.shape[1]))
    moves[np.arange(n), :, np.arange(n)] = 1.0
    for i, by_action in edges.items():
        for k, (action, following) in enumerate(by_action.items()):
            moves[i, k] = np.bincount(following, minlength=n) / len(following)
            gains[i, k] = reward(known.texts[i], action)
    mdp = TabularMDP(known.texts, mask.shape[1], moves, gains, allowed=mask)
    return TextProblem(mdp, {known.texts[i]: rows[i] for i in range(n)})
