"""The primitives: each sends one message to the run it is called in.

| primitive | log-weight |
| --- | --- |
| `sample(name, dist)` | log p(x) - log q(x); 0 when drawn from `dist` itself |
| `observe(name, dist, value)` | log p(value) |
| `factor(name, log_weight)` | the number |
| `deterministic`, `effect`, `cached`, `param` | 0 |
| `plate`, `loop`, `call` | the sum of what is inside |

Inside an `async def` program they are awaited: `await sample(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any

from lmppl.arguments import check_integers
from lmppl.context import Context, current, local
from lmppl.distributions import KNOWN, as_distribution
from lmppl.errors import BadArgument, BadProgram, excerpt
from lmppl.messages import Message
from lmppl.values import freeze

_make = object.__new__
Thunks = Generator[Callable[[], Any], Any, Any]


def sample(name: str, dist: Any, obs: Any = None, proposal: Any = None) -> Any:
    """A named random choice.

    Args:
        name: the site's name, unique in its scope (a repeated one becomes `name[1]`, `name[2]`).
        dist: the law p of the value: one of this package's distributions or a NumPyro one.
        obs: a value to observe in place of drawing, as in NumPyro: the same as `observe`.
        proposal: a law q to draw from instead; the weight is log p(x) - log q(x). A mapping such
            as `{"temperature": 0.7}` draws from the same language model with these settings.

    Returns:
        The value: immutable, a `Text` for a string.

    >>> from lmppl import Uniform, handlers, program, sample
    >>> @program
    ... def die():
    ...     return sample("eyes", Uniform([1, 2, 3, 4, 5, 6]))
    >>> handlers.seed(die, 0)() in range(1, 7)
    True
    """
    ctx = local.active
    if ctx is None:
        ctx = current("sample")
    address = ctx.address(name)
    if type(dist) not in KNOWN:
        dist = as_distribution(dist, address)
    if obs is not None:
        return ctx.perform(Message("observe", name, address, dist, obs))
    message = _make(Message)  # its constructor, written out: calling a class costs a third more
    message.op, message.name, message.address, message.dist = "sample", name, address, dist
    message.done = message.masked = False
    message.proposal, message.scale = None, 1.0
    if proposal is not None:
        if isinstance(proposal, dict):
            adapt = getattr(dist, "proposed", None)
            if adapt is None:
                raise BadArgument(
                    f"site {address!r}: a mapping as proposal sets a language model's sampling",
                    value=excerpt(proposal),
                    fix="give a distribution, or use LM or Chat",
                )
            message.dist = adapt(**proposal)
        else:
            message.proposal = as_distribution(proposal, address)
    return ctx.perform(message)


def observe(name: str, dist: Any, value: Any) -> Any:
    """Condition on a value: multiplies the weight of the run by p(value); returns the value."""
    ctx = current("observe")
    address = ctx.address(name)
    return ctx.perform(Message("observe", name, address, as_distribution(dist, address), value))


def factor(name: str, log_weight: Any) -> Any:
    """Multiply the weight of the run by exp(log_weight); a bool is a hard constraint.

    `-inf` ends the run with weight zero; nan and +inf raise `NonFiniteWeight`.
    """
    ctx = local.active
    if ctx is None:
        ctx = current("factor")
    message = _make(Message)  # as in `sample`
    message.op, message.name, message.address = "factor", name, ctx.address(name)
    message.value, message.scale, message.masked, message.origin = log_weight, 1.0, False, None
    return ctx.perform(message)


def deterministic(name: str, value: Any) -> Any:
    """Record a derived value in the trace; it is returned frozen (lists become tuples)."""
    ctx = current("deterministic")
    return ctx.perform(Message("deterministic", name, ctx.address(name), value=freeze(value)))


def effect(
    name: str,
    fn: Callable[..., Any],
    *args: Any,
    on_error: str | None = None,
    timeout: float | None = None,
    retries: int = 2,
    **kwargs: Any,
) -> Any:
    """Run a tool or any side effect; its result is recorded, and never run again on replay.

    A blocking `fn` runs on a thread, an `async def` one on an event loop of its own, both beside
    the scheduler: other particles go on. Each lineage runs it once; particles that fork later
    share the recorded result, which is frozen (lists become tuples).

    Args:
        name: the site's name.
        fn: the function; it gets `*args` and `**kwargs`.
        on_error: what an exception does: "raise", "kill" (the particle gets weight zero) or
            "retry" (up to `retries` more times, then as the run's policy); the run's policy
            when left out.
        timeout: seconds after which it counts as failed.
        retries: for "retry".
        *args: its arguments.
        **kwargs: its keyword arguments.
    """
    if on_error not in (None, "raise", "kill", "retry"):
        raise BadArgument(
            f'effect {name!r}: on_error must be "raise", "kill" or "retry", got {on_error!r}',
            fix='write on_error="retry", or leave it out for the run\'s policy',
        )
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise BadArgument(
            f"effect {name!r}: timeout must be a positive number of seconds, got {timeout!r}",
            fix="write timeout=10.0, or leave it out",
        )
    check_integers(f"effect {name!r}", 0, retries=retries)
    if not callable(fn):
        raise BadArgument(
            f"effect {name!r} needs a function, got {type(fn).__name__}",
            value=excerpt(fn),
            fix="write effect(name, function, *arguments): the function is not called before",
        )
    ctx = current("effect")
    options = (on_error, timeout, retries)
    return ctx.perform(Message.of("effect", name, ctx.address(name), fn, args, kwargs, options))


def cached(name: str, fn: Callable[..., Any], *args: Any) -> Any:
    """A pure, costly function: computed once per run and arguments, for all particles."""
    ctx = current("cached")
    return ctx.perform(
        Message.of("cached", name, ctx.address(name), fn, args, None, (None, None, 0))
    )


def param(name: str, init: Any) -> Any:
    """A constant of the run: `init`, unless the run is given another (`infer(params={...})`)."""
    ctx = current("param")
    return ctx.perform(Message("param", name, ctx.address(name), value=init))


def plate(name: str, items: Iterable[Any], fn: Callable[[Any], Any] | None = None) -> Any:
    """Independent sites for each item.

    With `fn`, the branches `fn(item)` run in parallel, each in the scope `name[i]/`: all their
    strings are one batch, and the results come as a tuple in the order of the items. A branch
    cannot see another. Without `fn`, an iterator that only names the scopes:
    `for fact in plate("facts", facts): sample("true", ...)` makes `facts[0]/true` and so on.
    """
    if isinstance(items, (set, frozenset)) or not isinstance(items, Iterable):
        raise BadArgument(
            f"plate {name!r} needs a sequence of items, got {type(items).__name__}",
            value=excerpt(items),
            why="branches are numbered, and a set has no order that replay could rely on",
            fix="write plate(name, sorted(items), fn), or range(n) for n branches",
        )
    if fn is not None and not callable(fn):
        raise BadArgument(
            f"plate {name!r} needs a function of one item, got {type(fn).__name__}",
            value=excerpt(fn),
            fix="write plate(name, items, fn)",
        )
    ctx = current("plate")
    listed = tuple(items)
    address = ctx.address(name)
    ctx.indexed.add(address)
    if fn is None:
        return _scoped(ctx, address, listed, ctx.scope)
    # the handlers of now: the eager driver has left their blocks when the branches start
    around = tuple(ctx.handlers)
    return ctx.perform(Message.of("plate", name, address, fn, listed, options=around))


def _scoped(ctx: Context, address: str, items: tuple[Any, ...], outer: str) -> Iterator[Any]:
    for i, item in enumerate(items):
        ctx.scope = f"{address}[{i}]/"
        try:
            yield item
        finally:
            ctx.scope = outer


def call(sub: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> Any:
    """Run a subprogram in its own scope `name/` (its own name when left out).

    Once it has returned, replay takes its result from the tape in one step; the trace keeps its
    sites. What it returns must not be changed afterwards.
    """
    ctx = current("call")
    inner = sub
    while not hasattr(inner, "__name__") and callable(getattr(inner, "fn", None)):
        inner = inner.fn  # type: ignore[attr-defined]  # through handlers
    own: str = getattr(inner, "__name__", type(inner).__name__)
    address = ctx.address(name or own)
    if (first := f"{ctx.scope}{name or own}") in ctx.indexed:
        raise BadProgram(
            f"call {address!r} has the scope of an item of the loop or plate {first!r}",
            why="sites of both would have the same addresses, and the same random numbers",
            fix='give the call a name of its own: call(sub, ..., name="other")',
        )
    return ctx.run(address, _call(ctx, address, sub, args, kwargs))


def _call(ctx: Context, address: str, sub: Callable[..., Any], args: Any, kwargs: Any) -> Thunks:
    from lmppl.frames import is_async

    finished = ctx.skip("call", address)
    if finished is not None:
        return finished.value
    base, outer, colour = ctx.mark(), ctx.scope, ctx.is_async
    ctx.scope = f"{address}/"
    try:
        ctx.is_async = is_async(sub)
        value = freeze((yield lambda: sub(*args, **kwargs)))
    finally:
        ctx.scope, ctx.is_async = outer, colour
    ctx.fold(base, "call", address, value)
    return value


def loop(
    step: Callable[..., Any],
    init: Any,
    n: int | None = None,
    *,
    until: Callable[[Any], bool] | None = None,
    name: str = "loop",
) -> Any:
    """Carry a state through steps: `carry = step(carry, t)` for t = 0, 1, …; returns the last.

    The step may read only its carry and the program's arguments. So a fork replays the present
    iteration and no other: long Markov programs cost O(1) per fork. Sites are named
    `name[t]/site`.

    Args:
        step: a function of (carry, t); its sites are those of iteration t.
        init: the first carry; carries must be immutable.
        n: how many iterations.
        until: ends the loop after an iteration whose carry it accepts.
        name: the scope.
    """
    if n is None and until is None:
        raise BadArgument(
            "loop needs n or until", fix="write loop(step, init, n=10) or until=lambda c: ..."
        )
    if n is not None:
        check_integers("loop", 0, n=n)
    ctx = current("loop")
    address = ctx.address(name)
    return ctx.run(address, _loop(ctx, address, step, init, n, until))


def _loop(
    ctx: Context, address: str, step: Callable[..., Any], carry: Any, n: int | None, until: Any
) -> Thunks:
    from lmppl.frames import is_async

    base, outer, colour = ctx.mark(), ctx.scope, ctx.is_async
    ctx.indexed.add(address)
    t, carry = 0, freeze(carry)
    done = ctx.skip("loop", address)
    if done is not None:
        base, carry, t = done.prev, done.value, done.note + 1
        if until is not None and until(carry):
            return carry
    while n is None or t < n:
        ctx.scope = f"{address}[{t}]/"
        start, now = carry, t
        try:
            ctx.is_async = is_async(step)
            carry = freeze((yield partial(step, start, now)))
        finally:
            ctx.scope, ctx.is_async = outer, colour
        ctx.fold(base, "loop", address, carry, t)
        if until is not None and until(carry):
            break
        t += 1
    return carry


def markov(step: Callable[..., Any], init: Any, xs: Iterable[Any], *, name: str = "markov") -> Any:
    """`loop` over a known sequence: `carry = step(carry, x)`; the past matters only through it."""
    items = tuple(xs)

    def move(carry: Any, t: int) -> Any:
        return step(carry, items[t])

    move.fn = step  # type: ignore[attr-defined]  # async if the step is
    return loop(move, init, n=len(items), name=name)
