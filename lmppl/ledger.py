"""What a run has spent, in one unit for every engine.

Counts are *logical*: tokens a run asked for, whether they were computed or served from a cache, so
that engines are compared at equal cost and the numbers do not depend on who shared a batch.
`LanguageModel.usage` has the physical counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class ModelCost:
    """What one language model was asked for."""

    calls: int = 0
    """Strings sampled or scored."""
    passes: int = 0
    """Batched forward passes this run took part in."""
    tokens_in: int = 0
    """Tokens of prompts and of scored texts."""
    tokens_out: int = 0
    """Tokens drawn."""

    def add(self, other: ModelCost) -> None:
        """Add `other` in place."""
        self.calls += other.calls
        self.passes += other.passes
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out


@dataclass
class SiteCost:
    """What the strings of one site took."""

    calls: int = 0
    """Strings sampled or scored."""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    """Its share of the time of the batches that it was in."""

    def add(self, other: SiteCost) -> None:
        """Add `other` in place."""
        self.calls += other.calls
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.seconds += other.seconds


@dataclass
class Ledger:
    """Costs by model, effects run, and seconds.

    >>> book = Ledger()
    >>> book.model("toy").tokens_out += 5
    >>> book.tokens_out
    5
    """

    models: dict[str, ModelCost] = field(default_factory=dict)
    effects: int = 0
    effect_seconds: float = 0.0
    replayed: int = 0
    """Tape entries answered by replay: the price of forking."""
    reward_calls: int = 0
    """Inputs that reward models were asked about."""
    reward_passes: int = 0
    """Calls of reward functions, each with all inputs that waited (a language model's own passes
    are in `models`)."""
    seconds: float = 0.0
    sites: dict[str, SiteCost] = field(default_factory=dict)
    """Model costs by site, for reports."""

    def model(self, name: str) -> ModelCost:
        """The line of one model, made on first use."""
        return self.models.setdefault(name, ModelCost())

    def charge(self, name: str, spent: ModelCost, site: str | None, seconds: float) -> None:
        """Add what a model was asked for, and to a site its share of it."""
        self.model(name).add(spent)
        if site is not None:
            cost = SiteCost(spent.calls, spent.tokens_in, spent.tokens_out, seconds)
            self.sites.setdefault(site, SiteCost()).add(cost)

    @property
    def calls(self) -> int:
        """Strings sampled or scored, over all models."""
        return sum(m.calls for m in self.models.values())

    @property
    def passes(self) -> int:
        """Forward passes, over all models."""
        return sum(m.passes for m in self.models.values())

    @property
    def tokens_in(self) -> int:
        """Prompt and scored tokens, over all models."""
        return sum(m.tokens_in for m in self.models.values())

    @property
    def tokens_out(self) -> int:
        """Drawn tokens, over all models."""
        return sum(m.tokens_out for m in self.models.values())

    @property
    def tokens(self) -> int:
        """All tokens: the currency of comparisons at equal cost."""
        return self.tokens_in + self.tokens_out

    def add(self, other: Ledger) -> None:
        """Add `other` in place (nested inference, many questions)."""
        for name, cost in other.models.items():
            self.model(name).add(cost)
        self.effects += other.effects
        self.effect_seconds += other.effect_seconds
        self.replayed += other.replayed
        self.reward_calls += other.reward_calls
        self.reward_passes += other.reward_passes
        self.seconds += other.seconds
        for address, spent in other.sites.items():
            self.sites.setdefault(address, SiteCost()).add(spent)

    def to_dict(self) -> dict[str, object]:
        """Plain numbers, for JSON; without those of single sites."""
        book = asdict(self) | {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out}
        del book["sites"]
        return book
