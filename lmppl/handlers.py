"""Handlers: context managers that change what the sites of a program mean.

The vocabulary is Pyro's and NumPyro's. A handler wraps a program, `condition(program, {...})`, and
the result is a program again, for a plain call or any engine; or it is entered around a call,
`with seed(rng_seed=0): program()`. Each is one verb: it rewrites messages on their way out
(`process`) or reads them on their way back (`postprocess`).

If unsure: `condition` to observe a sample site, `do` to intervene on it, `substitute` to fix its
value and keep it latent, `trace(seed(program, 0)).get_trace(...)` to look at one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from lmppl.context import local
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, NoActiveProgram, UnusedCondition, excerpt
from lmppl.lm.base import LanguageModel
from lmppl.lm.load import as_models
from lmppl.messages import Message
from lmppl.messengers import DataHandler, Handler, placed, wrapped
from lmppl.program import ProgramFunction, plain_key
from lmppl.random import fold
from lmppl.trace import Trace

__all__ = [
    "Handler",
    "block",
    "condition",
    "do",
    "log_density",
    "mask",
    "replay",
    "scale",
    "seed",
    "substitute",
    "trace",
    "using",
]


class condition(DataHandler):  # noqa: N801
    """Observe sample sites at given values: the weight is multiplied by p(value).

    >>> from lmppl import Bernoulli, program, sample
    >>> @program
    ... def rain():
    ...     return sample("rain", Bernoulli(0.25))
    >>> trace(condition(rain, {"rain": True})).get_trace().site("rain").op
    'observe'
    """

    unmet = DataHandler.left

    def process(self, message: Message) -> None:
        """Turn the site into an observation."""
        if message.op == "sample" and not message.done:
            found, value = self.lookup(message)
            if found:
                message.op, message.value, message.proposal = "observe", value, None
                message.conditioned = True


class substitute(DataHandler):  # noqa: N801
    """Fix the values of sample sites and keep them latent: their weight is log p(value)."""

    def process(self, message: Message) -> None:
        """Give the site its value."""
        if message.op in ("sample", "param") and not message.done:
            found, value = self.lookup(message)
            if found:
                message.value, message.done, message.proposal = value, message.op == "sample", None


class do(DataHandler):  # noqa: N801
    """Intervene: fix sample sites at weight 0, whatever they depended on (Pearl, 2009)."""

    unmet = DataHandler.left

    def process(self, message: Message) -> None:
        """Cut the site off from its law."""
        if message.op == "sample" and not message.done:
            found, value = self.lookup(message)
            if found:
                message.op, message.value = "deterministic", value
                message.conditioned = True


class replay(Handler):
    """Give each sample site the value it has in a trace; sites that are not there are drawn.

    An effect that the trace records is not run again.
    """

    def __init__(self, fn: Any = None, trace: Mapping[str, Any] | None = None) -> None:
        """Keep the trace."""
        super().__init__(fn)
        if isinstance(fn, Mapping) and trace is None:
            fn, trace = None, fn
        if not isinstance(trace, Mapping):
            raise BadArgument(
                f"replay needs a trace, got {type(trace).__name__}",
                value=excerpt(trace),
                fix="write replay(program, posterior.traces[0]), or a mapping from site to value",
            )
        super().__init__(fn)
        self.trace = trace

    def process(self, message: Message) -> None:
        """Take the value over."""
        if message.done or message.address not in self.trace:
            return
        if message.op == "sample":
            message.value = placed(self.trace[message.address], message.address)
            message.done, message.proposal = True, None
        elif message.op == "effect":
            message.op, message.value = "deterministic", self.trace[message.address]


class block(Handler):
    """Hide sites from the handlers further out.

    Args:
        fn: the program.
        hide: addresses to hide, or a predicate of a message; everything when left out.
        expose: addresses that stay visible.
    """

    def __init__(self, fn: Any = None, hide: Any = None, expose: Any = None) -> None:
        """Keep the rule."""
        super().__init__(fn)
        self.hide = hide
        self.expose = expose

    def process(self, message: Message) -> None:
        """Stop hidden messages here."""
        if callable(self.hide):
            hidden = bool(self.hide(message))
        elif self.hide is not None:
            hidden = message.address in self.hide
        else:
            hidden = self.expose is None or message.address not in self.expose
        message.stop = message.stop or hidden

    def postprocess(self, message: Message) -> None:
        """The outer handlers stay blind on the way back."""


class mask(Handler):
    """Turn weights off: with `mask=False` observations and factors count nothing.

    A latent site, drawn or fixed, keeps its law: so all engines agree, and so does replay.
    """

    def __init__(self, fn: Any = None, mask: bool = False) -> None:
        """Keep the switch."""
        if isinstance(fn, bool):
            fn, mask = None, fn
        super().__init__(fn)
        self.mask = mask

    def process(self, message: Message) -> None:
        """Switch off."""
        if not self.mask:
            message.masked = True


class scale(Handler):
    """Multiply log-probabilities of sites by a positive number: a tempered target."""

    def __init__(self, fn: Any = None, scale: float = 1.0) -> None:
        """Check the number."""
        if isinstance(fn, (int, float)):
            fn, scale = None, fn
        if not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
            raise BadArgument(
                f"scale must be a positive number, got {scale!r}",
                fix="write scale(program, 0.5), or mask(program) to count nothing",
            )
        super().__init__(fn)
        self.scale = scale

    def process(self, message: Message) -> None:
        """Multiply."""
        message.scale *= self.scale


class seed(Handler):
    """Fix the randomness of a plain call; engines take `seed=` instead.

    >>> from lmppl import Uniform, program, sample
    >>> @program
    ... def die():
    ...     return sample("eyes", Uniform([1, 2, 3, 4, 5, 6]))
    >>> seed(die, 7)() == seed(die, 7)()
    True
    """

    def __init__(self, fn: Any = None, rng_seed: Any = None) -> None:
        """Check the seed."""
        if isinstance(fn, Integral) and rng_seed is None:
            fn, rng_seed = None, fn
        if isinstance(rng_seed, bool) or not isinstance(rng_seed, Integral):
            raise BadArgument(
                f"seed needs an integer, got {rng_seed!r}", fix="write seed(program, 0)"
            )
        super().__init__(fn)
        self.rng_seed = int(rng_seed)

    def __enter__(self) -> Any:
        if local.active is None:
            local.seeds.append(fold(0, "seed", self.rng_seed))
        return self

    def __exit__(self, *_: object) -> None:
        if local.active is None and local.seeds:
            local.seeds.pop()


class using(Handler):
    """Give a program its language model: `using(program, lm)`, or `with using(lm): program()`.

    Inside a program it holds for the sites of its block; the innermost one counts. A site that
    names its model, `LM(..., lm="judge")`, gets the one of that name.
    """

    def __init__(self, fn: Any = None, lm: Any = None) -> None:
        """Take a model, its name, or a mapping of models."""
        if lm is None and (isinstance(fn, (str, LanguageModel, Mapping))):
            fn, lm = None, fn
        super().__init__(fn)
        self.models = as_models(lm)
        self._before: list[dict[str, Any]] = []

    def __enter__(self) -> Any:
        if local.active is not None:
            return super().__enter__()
        self._before.append(local.models)
        local.models = {**local.models, **self.models}
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before:
            local.models = self._before.pop()
        else:
            super().__exit__(*exc)

    def process(self, message: Message) -> None:
        """Tell the distribution of the site which model it means."""
        if message.dist is not None:
            message.dist = message.dist.bound(self.models)
            if message.proposal is not None:
                message.proposal = message.proposal.bound(self.models)

    def fresh(self) -> Handler:
        """A copy that restores nothing of the original's."""
        new = super().fresh()
        new._before = []  # type: ignore[attr-defined]
        return new


class trace(Handler):
    """Run a program once, eagerly, and keep what happened.

    >>> from lmppl import Delta, program, sample
    >>> @program
    ... def one():
    ...     return sample("x", Delta(1))
    >>> trace(one).get_trace()["x"]
    1
    """

    def __enter__(self) -> Any:
        if self.fn is None:
            raise BadArgument(
                "trace is no context manager", fix="write trace(program).get_trace(...)"
            )
        return super().__enter__()

    def get_trace(self, *args: Any, **kwargs: Any) -> Trace:
        """Run the wrapped program with these arguments and return its trace."""
        fn = self.fn
        if fn is None:
            raise BadArgument("trace wraps no program", fix="write trace(program).get_trace(...)")
        if local.active is not None:
            raise NoActiveProgram(
                "get_trace runs a program of its own, and there is one running",
                fix="call the program itself, or infer(...) for nested inference",
            )
        seeds = [h for h in wrapped(fn) if isinstance(h, seed)]
        for s in seeds:
            s.__enter__()
        try:
            context = EagerContext(plain_key())
            context.enter(fn if not isinstance(fn, ProgramFunction) else fn.fn, args, kwargs)
        finally:
            for s in seeds:
                s.__exit__()
        return context.trace


def log_density(
    program: Callable[..., Any], data: Mapping[str, Any], *args: Any, lm: Any = None, **kwargs: Any
) -> float:
    """log γ of a program at given values of all its sample sites."""
    with using(lm=lm):
        found = trace(substitute(program, data)).get_trace(*args, **kwargs)
    known = {e.address for e in found.sites}
    if unknown := [a for a in data if a not in known]:
        raise UnusedCondition(unknown, sorted(known))
    free = [e.address for e in found.sites if e.op == "sample" and e.address not in data]
    if free:
        raise BadArgument(
            f"sites without a value: {', '.join(free)}",
            fix="give data a value for each sample site",
        )
    return found.log_joint
