"""Reward models, each in one line: a function, a yes/no question, a classifier, an HTTP endpoint.

    Reward.of(function)                          one number per text
    Reward.of(function, batched=True)            a list of numbers for a list of texts
    Reward.yes_no("...{text}... Is it right?")   P(yes) / (P(yes) + P(no)) by a language model
    Reward.classifier(model, tokenizer)          a torch module or a sequence classifier
    Reward.http("https://...")                   {"inputs": [...]} -> [number, ...]

A reward is data about a text (or about a tuple of values): what it does to a program is said by a
potential (`lmppl.potentials`), and what it does to an engine by a guide. All particles that wait
are asked in one call, equal inputs once; `Ledger.reward_calls` counts inputs, `reward_passes` calls.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmppl.arguments import check_integers, check_numbers
from lmppl.batches import run_now
from lmppl.choice import Choice
from lmppl.distributions import after, fingerprint_of
from lmppl.errors import BadArgument, LmpplError, excerpt
from lmppl.jobs import Batch, Env, Score, Step
from lmppl.ledger import Ledger
from lmppl.lm.base import LanguageModel
from lmppl.random import fold, hash_text
from lmppl.weights import check_log_weight, exp

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which asking again may help."""


class Reward(ABC):
    """A number about a text, asked for many particles at once."""

    name: str = "reward"

    @abstractmethod
    def score(self, given: Any, env: Env) -> Step[float]:
        """The number, or a job that finds it."""

    @property
    @abstractmethod
    def fingerprint(self) -> int:
        """Equal for equal rewards in every process."""

    def bound(self, models: Mapping[str, LanguageModel]) -> Reward:
        """With the language model that it names (`handlers.using`)."""
        return self

    def __call__(self, given: Any, *, lm: Any = None) -> float:
        """The number for one input, outside of any program."""
        from lmppl.lm.load import as_models, shared

        env = Env(as_models(lm), resolve=shared)
        return float(run_now(self.score(given, env), env, Ledger()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @staticmethod
    def of(reward: Any, *, batched: bool = False, name: str | None = None) -> Reward:
        """A reward as it is, or a Python function as one.

        Args:
            reward: a function of a text (or of what the potential's `of=` says).
            batched: whether it takes a list and returns a list.
            name: for `target()` and the trace.

        >>> Reward.of(lambda text: text.count("a") / 4)("banana")
        0.75
        """
        if isinstance(reward, Reward):
            return reward
        if not callable(reward):
            raise BadArgument(
                f"a reward must be a function of a text, got {type(reward).__name__}",
                value=excerpt(reward),
                fix="write Reward.of(lambda text: ...), or Reward.yes_no(template)",
            )
        return FunctionReward(reward, batched, name)

    @staticmethod
    def yes_no(
        prompt: str | Callable[[Any], Any],
        *,
        lm: Any = None,
        yes: str | Sequence[str] = " yes",
        no: str | Sequence[str] = " no",
        name: str = "yes_no",
    ) -> Reward:
        """P(yes) / (P(yes) + P(no)) after a prompt, by a language model.

        Args:
            prompt: a text with `{text}` in it, or a function from the input to a prompt.
            lm: the model, or its name in the run; the run's default when left out.
            yes: the good answer, a text or several.
            no: the other one.
            name: for `target()` and the trace.
        """
        return YesNo(prompt, lm, yes, no, name)

    @staticmethod
    def classifier(model: Any, tokenizer: Any = None, **options: Any) -> Reward:
        """The probability of a class: `TorchReward(model, tokenizer, label=..., batch_size=...)`."""
        return TorchReward(model, tokenizer, **options)

    @staticmethod
    def http(url: str, **options: Any) -> Reward:
        """An endpoint: `HttpReward(url, headers=..., timeout=..., retries=..., parse=...)`."""
        return HttpReward(url, **options)


class BatchedReward(Reward):
    """A reward that a plain function of many inputs gives."""

    beside = False
    """Whether it waits for the outside world: model batches do not wait for it then."""
    size: int | None = None
    """Inputs of one call at most, where it is `beside`."""

    @abstractmethod
    def scores(self, inputs: list[Any]) -> Sequence[Any]:
        """One number per input."""

    def score(self, given: Any, env: Env) -> Step[float]:
        """One input of the next shared call."""
        return Batch(
            self.scores,
            given,
            lambda found: number(found, self.name),
            beside=self.beside,
            size=self.size,
        )

    @property
    def fingerprint(self) -> int:
        """Of kind and name."""
        return fold(hash_text(type(self).__name__), hash_text(self.name))


def number(value: Any, name: str) -> float:
    """A finite score, or -inf; a bool counts 1 or 0."""
    if isinstance(value, (bool, np.bool_)):
        return float(value)
    return check_log_weight(value, site=f"reward {name!r}", term="score")


class FunctionReward(BatchedReward):
    """A Python function."""

    def __init__(self, fn: Callable[[Any], Any], batched: bool, name: str | None) -> None:
        """Keep it."""
        self.fn = fn
        self.batched = batched
        own = getattr(fn, "__name__", type(fn).__name__)
        self.name = name or ("reward" if own == "<lambda>" else own)

    def __eq__(self, other: object) -> bool:
        """Rewards of one function share its calls, wherever they were made."""
        same = isinstance(other, FunctionReward) and other.fn is self.fn
        return same and other.batched == self.batched  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((id(self.fn), self.batched))

    def scores(self, inputs: list[Any]) -> Sequence[Any]:
        """All at once, or one by one."""
        if not self.batched:
            return [self.fn(given) for given in inputs]
        found = self.fn(inputs)
        return list(found.tolist() if hasattr(found, "tolist") else found)


class YesNo(Reward):
    """A language model's answer to a yes/no question."""

    def __init__(self, prompt: Any, lm: Any, yes: Any, no: Any, name: str) -> None:
        """Check that the prompt has a place for the text."""
        if isinstance(prompt, str) and "{text}" not in prompt:
            raise BadArgument(
                "the prompt of a yes/no reward has no place for the text",
                value=excerpt(prompt),
                fix='write Reward.yes_no("{text}\\nIs this right?")',
            )
        self.prompt, self.lm, self.yes, self.no, self.name = prompt, lm, yes, no, name

    def bound(self, models: Mapping[str, LanguageModel]) -> Reward:
        """With the model that it names."""
        if self.lm is not None and not isinstance(self.lm, str):
            return self
        found = models.get("default" if self.lm is None else self.lm)
        return self if found is None else YesNo(self.prompt, found, self.yes, self.no, self.name)

    def score(self, given: Any, env: Env) -> Step[float]:
        """Score both answers in the shared batch."""
        asked = self.prompt
        prompt = asked.replace("{text}", str(given)) if isinstance(asked, str) else asked(given)
        step = Choice(prompt, {True: self.yes, False: self.no}, lm=self.lm).score(True, env)
        if isinstance(step, Score):
            step.reward = True
        return after(step, exp)  # type: ignore[no-any-return]

    @property
    def fingerprint(self) -> int:
        """Of the question."""
        asked = self.prompt if isinstance(self.prompt, str) else self.name
        return fold(hash_text(asked), fingerprint_of(self.yes), fingerprint_of(self.no))


class TorchReward(BatchedReward):
    """A torch module, or a sequence classifier of transformers, in evaluation mode.

    Args:
        model: called with the tokenizer's output (or with the list of inputs, without one); gives
            logits [B], [B, 1] or [B, classes], or an object with `.logits`.
        tokenizer: called with a list of texts and `return_tensors="pt"`.
        label: which class is good; for one logit the score is its sigmoid.
        probability: False gives the logit itself, for `link="logit"`.
        batch_size: texts per forward pass.
        max_length: of a text in tokens.
        name: for `target()` and the trace.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        label: int = -1,
        probability: bool = True,
        batch_size: int = 32,
        max_length: int | None = None,
        name: str = "classifier",
    ) -> None:
        """Switch dropout off."""
        if batch_size < 1:
            raise BadArgument(f"batch_size must be positive, got {batch_size!r}")
        if not callable(model):
            raise BadArgument(
                f"a classifier must be a torch module, got {type(model).__name__}",
                fix="write Reward.classifier(model, tokenizer)",
            )
        if hasattr(model, "eval"):
            model.eval()
        self.model, self.tokenizer, self.label, self.name = model, tokenizer, label, name
        self.probability, self.batch_size, self.max_length = probability, batch_size, max_length

    def scores(self, inputs: list[Any]) -> Sequence[Any]:
        """Forward passes of `batch_size` texts."""
        import torch

        found: list[float] = []
        with torch.inference_mode():
            for at in range(0, len(inputs), self.batch_size):
                logits = self._logits(inputs[at : at + self.batch_size])
                found += self._numbers(logits.detach().double().cpu(), torch)
        return found

    def _logits(self, inputs: list[Any]) -> Any:
        if self.tokenizer is None:
            out = self.model(inputs)
        else:
            tokens = self.tokenizer(
                [str(given) for given in inputs], return_tensors="pt", padding=True,
                truncation=True, max_length=self.max_length,
            )  # fmt: skip
            device = getattr(self.model, "device", None)
            out = self.model(**(tokens if device is None else tokens.to(device)))
        return getattr(out, "logits", out)

    def _numbers(self, logits: Any, torch: Any) -> list[float]:
        if logits.ndim == 1 or logits.shape[-1] == 1:
            flat = logits.reshape(len(logits))
            return list((torch.sigmoid(flat) if self.probability else flat).tolist())
        logp = torch.log_softmax(logits, dim=-1)[:, self.label]
        odds = logp - torch.log1p(-torch.exp(logp))
        return list((torch.exp(logp) if self.probability else odds).tolist())


class HttpReward(BatchedReward):
    """An endpoint: all who wait are one request, or several at the same time.

    Requests run beside the scheduler, as effects do: particles that do not wait for them go on, and
    model batches are not held up.

    Args:
        url: POST {"inputs": [...]} gives a list of numbers, or {"scores": [...]}.
        headers: such as an authorisation; never shown in errors.
        timeout: seconds for one request.
        retries: more tries after a time-out or a busy server, with growing pauses.
        pause: seconds before the first of them.
        parse: from the decoded JSON to the list of numbers, for other endpoints.
        body: from the list of inputs to what is sent as JSON.
        batch_size: inputs of one request at most; further ones are sent at the same time.
        name: for `target()` and the trace.
    """

    beside = True

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        pause: float = 0.5,
        parse: Callable[[Any], Sequence[Any]] | None = None,
        body: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        name: str = "http",
    ) -> None:
        """Check the address."""
        if not (isinstance(url, str) and url.startswith(("http://", "https://"))):
            raise BadArgument(
                "a reward endpoint needs an http address",
                value=excerpt(url),
                fix='write Reward.http("https://...")',
            )
        check_integers("Reward.http", 0, retries=retries)
        check_numbers("Reward.http", above=0.0, timeout=timeout)
        check_numbers("Reward.http", 0.0, pause=pause)
        if batch_size is not None:
            check_integers("Reward.http", batch_size=batch_size)
        self.size = batch_size
        self.url, self.headers, self.name = url, dict(headers or {}), name
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.parse, self.body = parse, body

    def scores(self, inputs: list[Any]) -> Sequence[Any]:
        """One request, tried again where that can help."""
        sent = {"inputs": list(inputs)} if self.body is None else self.body(inputs)
        from urllib.request import Request  # a network stack is no part of `import lmppl`

        request = Request(
            self.url,
            data=json.dumps(sent).encode(),
            headers={"Content-Type": "application/json", **self.headers},
        )
        answer = self._ask(request)
        if self.parse is not None:
            return self.parse(answer)
        found = answer.get("scores") if isinstance(answer, Mapping) else answer
        if not isinstance(found, list):
            raise BadArgument(
                f"the reward endpoint {self.url} did not send a list of numbers",
                value=excerpt(answer),
                fix='give parse=lambda answer: [...], or send {"scores": [...]}',
            )
        return found

    def _ask(self, request: Any) -> Any:
        from urllib.error import HTTPError, URLError
        from urllib.request import urlopen

        for attempt in range(self.retries + 1):
            try:
                with urlopen(request, timeout=self.timeout) as reply:
                    return json.loads(reply.read())
            except HTTPError as error:
                what, again = f"status {error.code}", error.code in TRANSIENT
                error.close()
            except (OSError, URLError) as error:
                what, again = str(getattr(error, "reason", error)), True
            except ValueError:
                what, again = "no JSON", False
            if not again or attempt == self.retries:
                break
            time.sleep(self.pause * 2**attempt)
        raise LmpplError(
            f"the reward endpoint {self.url} failed: {what}",
            where=f"try {attempt + 1} of {self.retries + 1}",
            fix="check the address and the server, or raise timeout= and retries=",
        )
