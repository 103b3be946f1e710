"""Expectation maximisation with any engine as its E-step.

    E-step   posterior p(trace | question n, θ_r) of each question, by an engine
    M-step   θ_{r+1} = callback(weighted traces, θ_r), which should raise Σ_n E_n[log γ_θ(trace)]

With exact posteriors and such a callback Σ_n log Z_n(θ_r) never falls (Dempster, Laird and Rubin,
1977; a callback that only raises the expectation is generalised EM). With sampled posteriors it is
Monte Carlo EM (Wei and Tanner, 1990), and the log-evidence is an estimate with an error; give more
particles to later rounds by an `engine` that is a function of the round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, excerpt
from lmppl.handlers import condition
from lmppl.inference.base import Engine
from lmppl.inference.calls import as_engine, infer_many
from lmppl.inference.learning.texts import Examples, arguments
from lmppl.inference.results.posterior import Posterior
from lmppl.lm.base import LanguageModel
from lmppl.lm.load import as_models
from lmppl.random import fold


class Model(NamedTuple):
    """What is learnt: language models by name, and values of `param` sites."""

    lms: Mapping[str, LanguageModel]
    params: Mapping[str, Any]

    @property
    def lm(self) -> Any:
        """The language model that programs mean when they name none."""
        return self.lms.get("default")

    @property
    def log_prior(self) -> float:
        """Of the models that have one (`TabularLM`)."""
        return float(sum(getattr(lm, "log_prior", 0.0) for lm in self.lms.values()))


MStep = Callable[[Examples, Model], Any]
"""Makes a new model of weighted traces: a `LanguageModel`, a mapping of `param` values, or a `Model`."""


class Round(NamedTuple):
    """One E-step."""

    log_evidence: float
    """Σ log Ẑ over the questions that have a posterior."""
    se: float
    """Its standard error; 0 when all are exact."""
    dead: int
    """Questions whose traces all have weight zero: they teach nothing."""
    log_prior: float
    tokens: int
    seconds: float
    """E-step alone."""
    exact: bool

    @property
    def objective(self) -> float:
        """What EM raises: evidence times prior."""
        return self.log_evidence + self.log_prior


@dataclass
class Fit:
    """What was learnt."""

    model: Model
    rounds: list[Round]
    """Before each M-step, and the last one under the final model."""
    examples: Examples
    """The posteriors under the final model."""
    converged: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def lm(self) -> Any:
        """The trained language model."""
        return self.model.lm

    @property
    def params(self) -> Mapping[str, Any]:
        """The learnt values of `param` sites."""
        return self.model.params

    @property
    def log_evidence(self) -> list[float]:
        """By round."""
        return [r.log_evidence for r in self.rounds]

    def __repr__(self) -> str:
        first, last = self.rounds[0], self.rounds[-1]
        return (
            f"Fit({len(self.rounds) - 1} rounds: log evidence {first.log_evidence:.4g} to "
            f"{last.log_evidence:.4g})"
        )


def refit(examples: Examples, model: Model) -> Model:
    """The M-step of models that have `fit(texts)`: each is fitted to the texts it was asked for.

    Exact for `LM` and `Chat` sites at temperature 1; `Choice` sites, whose law is normalised over
    their options, make it a generalised M-step that may not raise the evidence.
    """
    fitted = {}
    for name, lm in model.lms.items():
        fit = getattr(lm, "fit", None)
        fitted[name] = lm if fit is None else fit(examples.texts(model=name))
    if not any(hasattr(lm, "fit") for lm in model.lms.values()):
        raise BadArgument(
            "no model of this run can be fitted",
            value=excerpt(list(model.lms.values())),
            fix="give lm=TabularLM(...) or TrainableLM(...), or an m_step of your own",
        )
    return model._replace(lms=fitted)


def em(
    program: Callable[..., Any],
    data: Sequence[Any],
    *,
    engine: Engine | Callable[[int], Engine] | None = None,
    m_step: MStep = refit,
    rounds: int = 10,
    lm: Any = None,
    params: Mapping[str, Any] | None = None,
    observations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    from_base: bool = False,
    tol: float = 0.0,
    seed: int = 0,
    equal: bool = False,
    watch: Callable[[int, Round], None] = lambda number, round: None,
    **options: Any,
) -> Fit:
    """Learn models and parameters from questions with latent sites.

    Args:
        program: the program.
        data: its questions, as in `infer_many`.
        engine: the E-step; a function of the round for one that grows.
        m_step: gets the weighted traces (`Examples`) and the present `Model`.
        rounds: how many M-steps.
        lm: the models where learning starts, as in `infer`.
        params: values of `param` sites where it starts.
        observations: values of sample sites to condition on; one mapping for all questions, or
            one for each.
        from_base: the M-step starts from the first model every time, as STaR does; the E-step
            always uses the latest one.
        tol: stop when the objective rises by less (in nats); 0 never stops.
        seed: each round has draws of its own, all a function of it.
        equal: traces of positive weight count alike.
        watch: called with the number and numbers of each round.
        options: those of `infer_many`.

    Returns:
        A `Fit`: the model, the log-evidence of every round, and the last posteriors.
    """
    check_integers("em", 0, rounds=rounds)
    if not len(data):
        raise BadArgument("no questions to learn from", fix="give at least one")
    fn, questions = _conditioned(program, data, observations)
    base = model = Model(as_models(lm), dict(params or {}))
    found: list[Round] = []
    warnings: list[str] = []
    for number in range(rounds + 1):
        chosen = engine if engine is None or isinstance(engine, Engine) else engine(number)
        began = time.perf_counter()
        posteriors: list[Posterior] = infer_many(
            fn, questions, engine=as_engine(chosen), lm=dict(model.lms) or None,
            params=model.params, seed=fold(0, "em", seed, number) >> 1, on_dead="return", **options,
        )  # fmt: skip
        current = _round(posteriors, model, time.perf_counter() - began)
        found.append(current)
        watch(number, current)
        examples = Examples(fn, questions, posteriors, equal=equal)
        if number and (fell := _fell(found[-2], current)) is not None:
            warnings.append(f"round {number}: {fell}")
        rise = current.objective - found[-2].objective if number else math.inf
        if number and tol > 0 and rise < tol:
            return Fit(model, found, examples, True, warnings)
        if number < rounds:
            model = _updated(m_step(examples, base if from_base else model), model)
    return Fit(model, found, examples, False, warnings)


def _round(posteriors: Sequence[Posterior], model: Model, seconds: float) -> Round:
    alive = [p for p in posteriors if not p.dead]
    spread = [p.log_evidence_se for p in alive]
    return Round(
        math.fsum(p.log_evidence for p in alive),
        math.sqrt(math.fsum(s * s for s in spread)),
        len(posteriors) - len(alive),
        model.log_prior,
        sum(p.ledger.tokens for p in posteriors),
        seconds,
        all(p.exact and p.missing == 0 for p in posteriors),
    )


def _fell(before: Round, now: Round) -> str | None:
    """What is wrong where the objective of exact rounds falls."""
    slack = 1e-9 * max(1.0, abs(before.objective))
    if not (before.exact and now.exact) or before.dead or now.dead:
        return None
    if now.objective >= before.objective - slack:
        return None
    return (
        f"the objective fell by {before.objective - now.objective:.3g} although the posteriors are "
        "exact: the M-step does not raise the expected log-joint"
    )


def _updated(given: Any, model: Model) -> Model:
    """The model with what an M-step has returned."""
    if isinstance(given, Model):
        return Model(as_models(given.lms), dict(given.params))
    if isinstance(given, LanguageModel):
        return model._replace(lms={**model.lms, "default": given})
    if isinstance(given, Mapping):
        return model._replace(params={**model.params, **given})
    raise BadArgument(
        "the M-step must return a language model, a mapping of params, or a Model",
        value=excerpt(given),
        fix="end it with return lm, return {'rate': 0.3}, or return model._replace(...)",
    )


def _conditioned(
    program: Callable[..., Any], data: Sequence[Any], observations: Any
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The program with its observations, and its questions."""
    if observations is None:
        return program, data
    if isinstance(observations, Mapping):
        return condition(program, observations), data
    if len(observations) != len(data):
        raise BadArgument(
            f"{len(observations)} mappings of observations for {len(data)} questions",
            fix="give one mapping for all of them, or one for each",
        )
    each = [condition(program, found) for found in observations]

    def conditioned(number: int) -> Any:
        args, kwargs = arguments(data[number])
        return each[number](*args, **kwargs)

    return conditioned, range(len(data))
