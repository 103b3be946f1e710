"""Handlers: context managers that change what the sites of a program mean.

The vocabulary is Pyro's and NumPyro's. A handler wraps a program, `condition(program, {...})`, and
the result is a program again, for a plain call or any engine; or it is entered around a call,
`with seed(rng_seed=0): program()`. Each is one verb: it rewrites messages on their way out
(`process`) or reads them on their way back (`postprocess`).

If unsure: `condition` to observe a sample site, `do` to intervene on it, `substitute` to fix its
value and keep it latent, `trace(seed(program, 0)).get_trace(...)` to look at one run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lmppl.context import Message, local
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, NoActiveProgram, excerpt
from lmppl.lm.base import LanguageModel
from lmppl.program import ProgramFunction, plain_key
from lmppl.random import fold
from lmppl.trace import Trace


class Handler:
    """The base: passes everything on."""

    def __init__(self, fn: Callable[..., Any] | None = None) -> None:
        """Wrap `fn`, or wrap what is run inside a `with` block."""
        self.fn = fn

    def process(self, message: Message) -> None:
        """See a message before it is answered."""

    def postprocess(self, message: Message) -> None:
        """See it with its answer."""

    def __enter__(self) -> Any:
        (local.active.handlers if local.active is not None else local.ambient).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        (local.active.handlers if local.active is not None else local.ambient).remove(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped program under a copy of this handler."""
        if self.fn is None:
            raise BadArgument(
                f"{type(self).__name__} wraps no program",
                fix=f"write {type(self).__name__}(program, ...) or use it in a with block",
            )
        from lmppl.frames import is_async

        if local.active is not None and is_async(self.fn):
            return self._call_async(args, kwargs)
        with copy.copy(self):
            return self.fn(*args, **kwargs)

    async def _call_async(self, args: Any, kwargs: Any) -> Any:
        with copy.copy(self):
            return await self.fn(*args, **kwargs)  # type: ignore[misc]


class _Data(Handler):
    """A handler with values by site; a bare name also means its address in any scope."""

    def __init__(
        self, fn: Any = None, data: Mapping[str, Any] | Callable[[Message], Any] | None = None
    ) -> None:
        """Take `handler(program, data)`, `handler(program, data=...)` and `handler(data=...)`."""
        if isinstance(fn, Mapping) and data is None:
            fn, data = None, fn
        if not isinstance(data, Mapping) and not callable(data):
            raise BadArgument(
                f"{type(self).__name__} needs a mapping from site to value",
                value=excerpt(data),
                fix=f'write {type(self).__name__}(program, data={{"site": value}})',
            )
        super().__init__(fn)
        self.data = data

    def _lookup(self, message: Message) -> tuple[bool, Any]:
        if not isinstance(self.data, Mapping):
            value = self.data(message)
            return value is not None, value
        if message.address in self.data:
            return True, self.data[message.address]
        return False, None


class condition(_Data):  # noqa: N801
    """Observe sample sites at given values: the weight is multiplied by p(value).

    >>> from lmppl import Bernoulli, program, sample
    >>> @program
    ... def rain():
    ...     return sample("rain", Bernoulli(0.25))
    >>> trace(condition(rain, {"rain": True})).get_trace().site("rain").op
    'observe'
    """

    def process(self, message: Message) -> None:
        """Turn the site into an observation."""
        if message.op == "sample" and not message.done:
            found, value = self._lookup(message)
            if found:
                message.op, message.value, message.proposal = "observe", value, None


class substitute(_Data):  # noqa: N801
    """Fix the values of sample sites and keep them latent: their weight is log p(value)."""

    def process(self, message: Message) -> None:
        """Give the site its value."""
        if message.op in ("sample", "param") and not message.done:
            found, value = self._lookup(message)
            if found:
                message.value, message.done, message.proposal = value, message.op == "sample", None


class do(_Data):  # noqa: N801
    """Intervene: fix sample sites at weight 0, whatever they depended on (Pearl, 2009)."""

    def process(self, message: Message) -> None:
        """Cut the site off from its law."""
        if message.op == "sample" and not message.done:
            found, value = self._lookup(message)
            if found:
                message.op, message.value = "deterministic", value


class replay(Handler):
    """Give each sample site the value it has in a trace; sites that are not there are drawn."""

    def __init__(self, fn: Any = None, trace: Mapping[str, Any] | None = None) -> None:
        """Keep the trace."""
        super().__init__(fn)
        if trace is None:
            raise BadArgument("replay needs a trace", fix="write replay(program, trace)")
        self.trace = trace

    def process(self, message: Message) -> None:
        """Take the value over."""
        if message.op == "sample" and not message.done and message.address in self.trace:
            message.value, message.done, message.proposal = self.trace[message.address], True, None


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
    """Turn weights off: with `mask=False` observations, factors and fixed values count nothing.

    A sample site that is drawn keeps its law.
    """

    def __init__(self, fn: Any = None, mask: bool = False) -> None:
        """Keep the switch."""
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
        if not scale > 0:
            raise BadArgument(f"scale must be positive, got {scale!r}")
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

    def __init__(self, fn: Any = None, rng_seed: int | None = None) -> None:
        """Check the seed."""
        if isinstance(fn, int) and rng_seed is None:
            fn, rng_seed = None, fn
        if not isinstance(rng_seed, int):
            raise BadArgument(
                f"seed needs an integer, got {rng_seed!r}", fix="write seed(program, 0)"
            )
        super().__init__(fn)
        self.rng_seed = rng_seed

    def __enter__(self) -> Any:
        if local.active is None:
            local.seeds.append(fold(0, "seed", self.rng_seed))
        return self

    def __exit__(self, *_: object) -> None:
        if local.active is None and local.seeds:
            local.seeds.pop()


class using(Handler):
    """Give plain calls a language model: `with using(lm): program()`."""

    def __init__(self, fn: Any = None, lm: Any = None) -> None:
        """Take a model, its name, or a mapping of models."""
        if lm is None and (isinstance(fn, (str, LanguageModel, Mapping))):
            fn, lm = None, fn
        super().__init__(fn)
        self.models = as_models(lm)
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self._before = local.models
        local.models = {**local.models, **self.models}
        return self

    def __exit__(self, *_: object) -> None:
        local.models = self._before


def as_models(lm: Any) -> dict[str, LanguageModel]:
    """A mapping of models by name from a model, a name, a mapping, or None."""
    from lmppl.lm.load import load

    if lm is None:
        return {}
    if not isinstance(lm, Mapping):
        lm = {"default": lm}
    models = {name: load(m) if isinstance(m, str) else m for name, m in lm.items()}
    for model in models.values():
        if not isinstance(model, LanguageModel):
            raise BadArgument(
                f"lm={excerpt(model)} is no language model",
                fix='write lm="smollm2", lm=load("path"), or lm={"default": ..., "judge": ...}',
            )
    return models


class trace(Handler):
    """Run a program once, eagerly, and keep what happened.

    >>> from lmppl import Delta, program, sample
    >>> @program
    ... def one():
    ...     return sample("x", Delta(1))
    >>> trace(one).get_trace()["x"]
    1
    """

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
        seeds = []
        inner: Any = fn
        while isinstance(inner, Handler):
            if isinstance(inner, seed):
                seeds.append(inner)
            inner = inner.fn
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
    models = using(lm) if lm is not None else None
    if models is not None:
        models.__enter__()
    try:
        found = trace(substitute(program, data)).get_trace(*args, **kwargs)
    finally:
        if models is not None:
            models.__exit__()
    free = [e.address for e in found.sites if e.op == "sample" and e.address not in data]
    if free:
        raise BadArgument(
            f"sites without a value: {', '.join(free)}",
            fix="give data a value for each sample site",
        )
    return found.log_joint
