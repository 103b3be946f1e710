"""`infer` and its kin: run an engine on a program, on many questions, or as an awaitable."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmppl.arguments import check_seed
from lmppl.context import local
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, LmpplWarning, excerpt
from lmppl.inference.base import Engine
from lmppl.inference.checks import (
    check_call,
    check_capabilities,
    check_conditions,
    unused_params,
)
from lmppl.inference.machine.nested import (
    await_nested,
    inherited,
    run_alone,
    run_eager,
    run_nested,
)
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.machine.scheduler import drive_many
from lmppl.inference.results.posterior import Asked, Posterior
from lmppl.jobs import Env
from lmppl.lm.base import LanguageModel
from lmppl.lm.load import as_models, shared
from lmppl.program import check_program
from lmppl.random import Argmax, Chance, GumbelMax, fold
from lmppl.strands import FrameContext


def infer(
    program: Callable[..., Any],
    *args: Any,
    engine: Engine | None = None,
    lm: Any = None,
    seed: int = 0,
    observations: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    driver: str | None = None,
    on_error: str = "raise",
    on_dead: str = "raise",
    strict: bool = False,
    chance: Chance | None = None,
) -> Posterior:
    """The posterior of a program.

    Works in scripts, in notebooks and inside a running event loop. Called inside a program, it is
    nested inference: its model calls join the batch of the outer run. In an `async def` program
    write `await ainfer(...)`.

    Args:
        program: a function decorated with `@program` (or any function with sites).
        args: its arguments.
        engine: the algorithm; `SMC()` when left out.
        lm: the language model: a model, a name for `lmppl.load`, or a mapping from the names a
            program uses to either.
        seed: all randomness is a function of it.
        observations: values of sample sites to condition on, by address.
        params: values of `param` sites.
        kwargs: keyword arguments of the program.
        driver: "greenlet", "coroutine" or "eager" (`lmppl.frames`).
        on_error: what an exception inside a particle does: "raise", "kill" (weight zero, counted),
            "retry".
        on_dead: when every particle has weight zero: "raise" `AllParticlesDead`, or "return" a
            posterior with log-evidence -inf.
        strict: raise `DuplicateSite` on a repeated name in place of counting.
        chance: who answers all draws; tests enumerate with it.

    Returns:
        A `Posterior`.

    >>> from lmppl import Uniform, observe, program, sample
    >>> from lmppl.inference import Enumerate
    >>> @program
    ... def two_dice():
    ...     a, b = sample("a", Uniform([1, 2, 3])), sample("b", Uniform([1, 2, 3]))
    ...     observe("sum", Uniform([a + b]), 4)
    ...     return a
    >>> post = infer(two_dice, engine=Enumerate())
    >>> {v: round(p, 3) for v, p in post.marginal().items()}
    {1: 0.333, 2: 0.333, 3: 0.333}
    """
    options = {
        "engine": engine, "lm": lm, "seed": seed, "observations": observations, "params": params,
        "kwargs": kwargs, "driver": driver, "on_error": on_error, "on_dead": on_dead,
        "strict": strict, "chance": chance,
    }  # fmt: skip
    run, answers = _prepare(program, args, options)
    outer = local.active
    if isinstance(outer, FrameContext):
        if outer.is_async:
            raise BadArgument(
                "infer inside an async def program blocks it", fix="write await ainfer(...)"
            )
        return run_nested(outer, run)
    if isinstance(outer, EagerContext):
        return run_eager(outer, run, answers)
    return run_alone(run, answers)


async def ainfer(program: Callable[..., Any], *args: Any, **options: Any) -> Posterior:
    """`infer` for async code: the event loop goes on meanwhile; nested inside async programs."""
    outer = local.active
    if isinstance(outer, FrameContext):
        run, _ = _prepare(program, args, options)
        return await await_nested(outer, run)
    if isinstance(outer, EagerContext):
        return infer(program, *args, **options)
    models, ambient = local.models, list(local.ambient)

    def alone() -> Posterior:
        before = local.models, local.ambient
        local.models, local.ambient = models, ambient
        try:
            return infer(program, *args, **options)
        finally:
            local.models, local.ambient = before

    return await asyncio.to_thread(alone)


def infer_many(
    program: Callable[..., Any],
    questions: Sequence[Any],
    *,
    concurrency: int = 64,
    on_question_error: str = "raise",
    ids: Sequence[Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> list[Any]:
    """`infer` for many questions, which share batches.

    Args:
        program: the function.
        questions: one entry per question: a tuple of arguments, a mapping of keyword arguments,
            or a single argument.
        concurrency: how many questions share a batch at most.
        on_question_error: "raise" the first error after all questions have ended (with the
            results on its `results`), or "return" it in the place of its posterior.
        ids: what the randomness of each question depends on; its position when left out.
        progress: show a bar on the standard error.
        options: those of `infer`.

    Returns:
        One `Posterior` per question, in order; equal to `infer` one by one with the same ids.
    """
    if isinstance(questions, str) or not isinstance(questions, Sequence):
        raise BadArgument(
            f"infer_many needs a list of questions, got {type(questions).__name__}",
            value=excerpt(questions),
            fix="write infer_many(program, [question, ...]), or list(questions)",
        )
    results: list[Any] = [None] * len(questions)
    ended = infer_stream(program, questions, concurrency=concurrency, ids=ids, **options)
    if progress:
        from rich.console import Console
        from rich.progress import track

        total = len(questions)
        ended = track(ended, "questions", total=total, console=Console(stderr=True))  # type: ignore[assignment]
    for index, result in ended:
        results[index] = result
    errors = [r for r in results if isinstance(r, BaseException)]
    if errors and on_question_error == "raise":
        error = errors[0]
        error.results = results  # type: ignore[attr-defined]
        raise error
    return results


def infer_stream(
    program: Callable[..., Any],
    questions: Sequence[Any],
    *,
    concurrency: int = 64,
    ids: Sequence[Any] | None = None,
    observer: Callable[[int], None] | None = None,
    chance: Chance | None = None,
    lm: Any = None,
    engine: Engine | None = None,
    **options: Any,
) -> Iterator[tuple[int, Posterior | Exception]]:
    """As `infer_many`, one (index, posterior or exception) after the other as they end."""
    if concurrency < 1:
        raise BadArgument(f"concurrency must be at least 1, got {concurrency!r}")
    if local.active is not None:
        raise BadArgument(
            "infer_many was called inside a program",
            why="its randomness would not be the particle's own",
            fix='write plate("questions", items, lambda item: infer(...)): the branches share a batch',
        )
    if ids is not None and len(ids) != len(questions):
        raise BadArgument(
            f"infer_many got {len(ids)} ids for {len(questions)} questions",
            fix="give each question one, or leave ids out",
        )
    engine = as_engine(engine)
    models = as_models(lm)
    answers = engine.chance(chance or GumbelMax())

    def make(index: int) -> Callable[[], Jobs]:
        args, kwargs = _arguments(questions[index])
        question = index if ids is None else ids[index]

        def start() -> Jobs:
            run, _ = _prepare(
                program,
                args,
                {**options, "kwargs": kwargs, "lm": models, "engine": engine, "chance": chance},
                question=question,
            )
            return run

        return start

    before, local.active = local.active, None
    try:
        yield from drive_many(
            (make(i) for i in range(len(questions))),
            answers,
            concurrency=concurrency,
            observer=observer,
        )
    finally:
        local.active = before


def _arguments(question: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(question, Mapping):
        return (), dict(question)
    if isinstance(question, tuple):
        return question, {}
    return (question,), {}


def as_kwargs(kwargs: Any) -> dict[str, Any]:
    """Keyword arguments of the program."""
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(k, str) for k in kwargs):
        raise BadArgument(
            "kwargs must be a mapping from argument name to value",
            value=excerpt(kwargs),
            fix='write kwargs={"hint": "..."}',
        )
    return dict(kwargs)


def as_engine(engine: Any) -> Engine:
    """An engine as it is; `SMC()` where none is given."""
    from lmppl.inference.smc.particle_filter import SMC

    if engine is None:
        return SMC()
    if not isinstance(engine, Engine):
        raise BadArgument(
            f"engine={excerpt(engine, 60)} is no engine", fix="write engine=SMC(particles=16)"
        )
    return engine


OPTIONS: dict[str, Any] = {
    "engine": None, "lm": None, "seed": 0, "observations": None, "params": None, "kwargs": None,
    "driver": None, "on_error": "raise", "on_dead": "raise", "strict": False, "chance": None,
}  # fmt: skip
"""What `infer` takes besides the program and its arguments, with defaults."""


def _prepare(
    program: Any, args: tuple[Any, ...], options: Mapping[str, Any], question: Any = None
) -> tuple[Jobs, Chance]:
    """Check everything that can be checked before a token is drawn; the run and its chance."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise BadArgument(
            f"infer has no option {', '.join(unknown)}",
            fix="options of an engine go into it, engine=SMC(particles=8); keyword arguments of the "
            "program go into kwargs={...}",
        )
    o = {**OPTIONS, **options}
    engine, kwargs = o["engine"], as_kwargs(o["kwargs"])
    check_program(program)
    engine = as_engine(engine)
    seed = check_seed(o["seed"])
    for name in ("observations", "params"):
        given = o[name]
        if not (given is None or isinstance(given, Mapping)):
            raise BadArgument(
                f"{name} must be a mapping from site to value, got {type(given).__name__}",
                value=excerpt(given),
                fix=f'write {name}={{"site": value}}',
            )
    check_call(program, args, kwargs)
    if o["on_dead"] not in ("raise", "return"):
        raise BadArgument(
            f'on_dead must be "raise" or "return", got {o["on_dead"]!r}',
            fix='write on_dead="return" for a posterior without weight in place of an error',
        )
    ambient, outer_chance, root = inherited(local.active)
    models = {**ambient, **as_models(o["lm"])}
    for name, model in models.items():
        check_capabilities(engine, program, name, model)

    def resolve(name: str) -> LanguageModel:
        found = shared(name)
        check_capabilities(engine, program, name, found)
        return found

    key = fold(0, "seed", seed)
    asked = 0 if question is None else question
    identity = asked if isinstance(asked, (int, str)) else str(asked)
    if root:
        key = fold(key, root)
    answers = engine.chance(o["chance"] or outer_chance or GumbelMax())
    env = Env(models, answers, resolve, weighted="logprobs" in engine.needs)
    machine = Machine(
        program,
        args,
        kwargs,
        env,
        fold(key, "question", identity),
        driver_name=o["driver"],
        on_error=o["on_error"],
        strict=o["strict"],
        conditions=dict(o["observations"] or {}),
        params=dict(o["params"] or {}),
    )
    machine.label = None if question is None else f"question {question!r}"
    if local.active is None:
        machine.launch.handlers = tuple(local.ambient)
    machine.launch.models = models
    machine.launch.chance = None if isinstance(answers, Argmax) else answers
    return _checked(engine, machine, o["on_dead"], seed), answers


def _checked(engine: Engine, machine: Machine, on_dead: str, seed: int) -> Jobs:
    """The engine's run, with its errors and its end checked."""
    posterior: Posterior = yield from engine.run(machine)
    posterior.seed = seed
    launch = machine.launch
    posterior.asked = Asked(machine.program, launch.args, launch.kwargs, machine.conditions)
    for text in machine.borders.values():
        if text is not None:
            warnings.warn(text, LmpplWarning, stacklevel=2)
    if posterior.dead:  # first: who died early has not met the later sites
        if on_dead == "raise":
            raise machine.all_dead(len(posterior))
        return posterior
    check_conditions(machine)
    for text in unused_params(machine, posterior):
        posterior.warnings.append(text)
        warnings.warn(text, LmpplWarning, stacklevel=2)
    return posterior
