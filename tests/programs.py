"""The programs that every engine is checked on, each with its measure worked out by hand.

Small enough to enumerate the randomness of two or three particles. `by_hand` sums the table with
letters and plain numbers and uses nothing of the package; so a mistake in tokens, endings or
weights cannot hide in both. `tests/asyncify.py` makes the `async def` form of the whole file.

A test asks for the fixture `case` to run on each of `CASES`, or for `programs` to name some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    Mixture,
    Uniform,
    cached,
    call,
    deterministic,
    effect,
    factor,
    handlers,
    loop,
    markov,
    observe,
    param,
    plate,
    power,
    program,
    sample,
)
from lmppl.inference import Importance, infer
from lmppl.lm.table import TableLM
from lmppl.trace import Trace

# -- models: order 1 or 2, zero probabilities, equal surfaces, half characters, merges -----------

P: dict[str, tuple[float, float, float]] = {
    "": (0.5, 0.3, 0.2),
    "a": (0.25, 0.35, 0.4),
    "b": (0.6, 0.0, 0.4),
}
"""After nothing, after an a, after a b: the probabilities of a, b and the end. b never follows b."""

AB = TableLM(["a", "b", "<eos>"], {(): P[""], (0,): P["a"], (1,): P["b"], (2,): P[""]}, name="ab")
TWINS = TableLM(
    ["a", "a", "b", "<eos>"],
    {(): [0.4, 0.1, 0.3, 0.2], (0,): [0.5, 0.0, 0.25, 0.25], (1,): [0.0, 0.0, 0.3, 0.7]},
    name="twins",
)
"""Two tokens with the surface a; the second is rare and never follows an a."""
HALVES = TableLM(
    [b"\xc3", b"\xa9", "a", "<eos>"],
    {(): [0.6, 0.0, 0.3, 0.1], (0,): [0.0, 0.8, 0.2, 0.0], (1,): [0.0, 0.0, 0.5, 0.5]},
    name="halves",
)
"""C3 and A9 are the halves of é."""
MERGES = TableLM(
    ["a", "aa", "<eos>"],
    {(): [0.5, 0.2, 0.3], (0,): [0.3, 0.3, 0.4], (0, 0): [0.1, 0.2, 0.7], (1, 0): [0.5, 0.0, 0.5]},
    order=2,
    name="merges",
)
"""One token equals two others joined; the next token depends on the last two."""


def p(letter: str, last: str) -> float:
    """p(letter | last) in `AB`; `"."` is the end."""
    return P[last]["ab.".index(letter)]


def strings(last: str, most: int) -> Iterator[tuple[str, float]]:
    """Every text of `AB` after a letter, cut at `most` letters, with its probability."""
    if most == 0:
        yield "", 1.0
        return
    yield "", p(".", last)
    for letter in "ab":
        if p(letter, last) > 0:
            for rest, q in strings(letter, most - 1):
                yield letter + rest, p(letter, last) * q


Law = dict[Any, float]


def gather(pairs: Any) -> Law:
    """Add up what has the same value."""
    out: Law = {}
    for value, mass in pairs:
        out[value] = out.get(value, 0.0) + mass
    return {value: mass for value, mass in out.items() if mass > 0}


@dataclass(frozen=True)
class Case:
    """A program and what its measure is."""

    name: str
    program: Callable[..., Any]
    by_hand: Callable[[], Law]
    args: tuple[Any, ...] = ()
    lm: Any = AB
    repeats: bool = False
    """Whether its randomness is too much for two particles that resample in a fast test."""
    guide: Callable[[Trace], float] | None = field(default=None)

    def __repr__(self) -> str:
        return self.name


CASES: list[Case] = []


def case(by_hand: Callable[[], Law], *args: Any, **more: Any) -> Callable[[Any], Any]:
    """Enter a program into `CASES`."""

    def enter(fn: Any) -> Any:
        CASES.append(Case(fn.__name__, fn, by_hand, args, **more))
        return fn

    return enter


def rough(trace: Trace) -> float:
    """A guide without any insight: it likes some sites and letters better than others."""
    liked = sum(str(v).count("a") - 0.5 * str(v).count("b") for v in trace.values())
    return 0.4 * liked - 0.15 * len(trace)


# -- the twelve of the specification ------------------------------------------------------------


@case(lambda: gather(strings("", 2)))
@program
def one_site() -> Any:
    return sample("x", LM("", max_tokens=2))


@case(lambda: gather(((x, y), q * r) for x, q in strings("", 1) for y, r in strings(x, 1)))
@program
def cascade() -> Any:
    x = sample("x", LM("", max_tokens=1))
    return x, sample("y", LM(x, max_tokens=1))


def branching_by_hand() -> Law:
    after_a = [("a" + y, p("a", "") * q) for y, q in strings("a", 1)]
    return gather([*after_a, ("b", p("b", "") * p("a", "b")), ("", p(".", "") * p("a", ""))])


@case(branching_by_hand)
@program
def branching() -> Any:
    x = sample("x", LM("", max_tokens=1))
    if x == "a":
        return x + sample("y", LM(x, max_tokens=1))
    observe("y", LM(x, max_tokens=1), "a")
    return x


@case(lambda: gather(strings("", 3)))
@program
def random_loop() -> Any:
    text = ""
    while len(text) < 3:
        token = sample("t", LM(text, max_tokens=1))
        if token == "":
            break
        text = text + token
    return text


@program
def descend(depth: int) -> Any:
    factor("toll", -0.5 * depth)
    if sample("go", Categorical({True: 0.6, False: 0.4})) and depth < 2:
        return call(descend, depth + 1)
    return depth


@case(lambda: {0: 0.4, 1: 0.6 * 0.4 * math.exp(-0.5), 2: 0.6 * 0.6 * math.exp(-1.5)})
@program
def recursion() -> Any:
    return call(descend, 0)


@case(lambda: gather((x, q * p("a", x)) for x, q in strings("", 1)))
@program
def observed() -> Any:
    x = sample("x", LM("", max_tokens=1))
    observe("y", LM(x, max_tokens=1), "a")
    return x


@case(lambda: {(True, True, True): 0.1**3})
@program
def hard() -> Any:
    """A constraint of mass 1e-3."""
    a = sample("a", Bernoulli(0.1))
    b = sample("b", Bernoulli(0.1))
    c = sample("c", Bernoulli(0.1))
    factor("all", a and b and c)
    return a, b, c


def soft_by_hand() -> Law:
    return gather(
        ((x, y), q * r * math.exp(0.7 * len(x) + (1.0 if y == x else -0.3)))
        for x, q in strings("", 1)
        for y, r in strings(x, 1)
    )


@case(soft_by_hand)
@program
def soft() -> Any:
    x = sample("x", LM("", max_tokens=1))
    factor("long", 0.7 * len(x))
    y = sample("y", LM(x, max_tokens=1))
    factor("match", 1.0 if y == x else -0.3)
    return x, y


@case(dict)
@program
def impossible() -> Any:
    x = sample("x", LM("", max_tokens=1))
    factor("never", x == "c")
    return x


def shared_parent_by_hand() -> Law:
    return gather(
        ((left, right), q * r * s * (0.8 if left == right else 0.3))
        for root, q in strings("", 1)
        for left, r in strings(root, 1)
        for right, s in strings(root, 1)
    )


@case(shared_parent_by_hand, repeats=True)
@program
def shared_parent() -> Any:
    root = sample("root", LM("", max_tokens=1))
    left = sample("left", LM(root, max_tokens=1))
    right = sample("right", LM(root, max_tokens=1))
    observe("equal", Bernoulli(0.8 if left == right else 0.3), True)
    return left, right


def add(a: int, b: int) -> int:
    return a + b


@case(lambda: {2 * n: math.exp(-abs(2 * n - 4)) / 3 for n in (1, 2, 3)})
@program
def calculator() -> Any:
    n = sample("n", Uniform([1, 2, 3]))
    total = effect("calculator", add, n, n)
    factor("close", -abs(total - 4))
    return total


def early_return_by_hand() -> Law:
    later = [
        (x + y, p(x, "") * r * math.exp(0.4 + (-0.6 if y == "a" else 0.2)))
        for x in "ab"
        for y, r in strings(x, 1)
    ]
    return gather([("none", p(".", "")), *later])


@case(early_return_by_hand)
@program
def early_return() -> Any:
    """Some particles are finished long before the others."""
    x = sample("x", LM("", max_tokens=1))
    if x == "":
        return "none"
    factor("first", 0.4)
    y = sample("y", LM(x, max_tokens=1))
    factor("second", -0.6 if y == "a" else 0.2)
    return x + y


# -- the other parts of the language ------------------------------------------------------------


@program
def leaf(i: int) -> Any:
    x = sample("x", LM("", max_tokens=1))
    if i == 1:
        observe("seen", LM(x, max_tokens=1), "a")
    return x


def plated_by_hand() -> Law:
    return gather(((x, y), q * r * p("a", y)) for x, q in strings("", 1) for y, r in strings("", 1))


@case(plated_by_hand, repeats=True)
@program
def plated() -> Any:
    """Branches of different lengths, suspended together."""
    return plate("leaf", (0, 1), leaf)


@case(lambda: gather((n, 0.5**3 * math.exp(-0.5 * n)) for n in (0, 1, 1, 1, 2, 2, 2, 3)))
@program
def scoped() -> Any:
    """A plate that only names the scopes."""
    heads = 0
    for _ in plate("coin", (0, 1, 2)):
        heads = heads + sample("heads", Bernoulli(0.5))
    factor("few", -0.5 * heads)
    return heads


@program
def guess(x: str) -> Any:
    y = sample("y", LM(x, max_tokens=1))
    factor("liked", 0.8 if y == "a" else -0.2)
    return y


def nested_by_hand() -> Law:
    def inner(x: str) -> float:
        return sum(r * math.exp(0.8 if y == "a" else -0.2) for y, r in strings(x, 1))

    return gather((x, q * inner(x) * inner("b")) for x, q in strings("", 1))


@case(nested_by_hand, repeats=True)
@program
def nested() -> Any:
    """Two inner runs in one scope: they must not share their draws."""
    x = sample("x", LM("", max_tokens=1))
    first = infer(guess, x, engine=Importance(particles=1))
    second = infer(guess, "b", engine=Importance(particles=1))
    factor("evidence", first.log_evidence + second.log_evidence)
    return x


SEEN = (0, 1)
MOVE = ((0.8, 0.2), (0.3, 0.7))
SHOW = ((0.9, 0.1), (0.2, 0.8))


def hidden_by_hand() -> Law:
    return gather(
        ((s, t), 0.5 * SHOW[s][SEEN[0]] * MOVE[s][t] * SHOW[t][SEEN[1]])
        for s in (0, 1)
        for t in (0, 1)
    )


@program
def hidden_step(carry: tuple[int, ...], t: int) -> Any:
    law = MOVE[carry[-1]] if carry else (0.5, 0.5)
    s = sample("s", Categorical([0, 1], law))
    observe("o", Categorical([0, 1], SHOW[s]), SEEN[t])
    return (*carry, s)


@case(hidden_by_hand)
@program
def hidden_loop() -> Any:
    """A hidden Markov model as a `loop` with its carry."""
    return loop(hidden_step, (), n=2)


@program
def hidden_move(carry: tuple[int, ...], seen: int) -> Any:
    law = MOVE[carry[-1]] if carry else (0.5, 0.5)
    s = sample("s", Categorical([0, 1], law))
    observe("o", Categorical([0, 1], SHOW[s]), seen)
    return (*carry, s)


@case(hidden_by_hand)
@program
def hidden_markov() -> Any:
    return markov(hidden_move, (), SEEN)


@program
def toss(carry: int, t: int) -> Any:
    return carry + sample("heads", Bernoulli(0.25))


def tossed(carry: int) -> bool:
    return carry >= 1


@case(lambda: {1: 0.25 + 0.75 * 0.25 + 0.75**2 * 0.25, 0: 0.75**3})
@program
def loop_until() -> Any:
    """A loop that ends by what it has drawn."""
    return loop(toss, 0, n=3, until=tossed)


def mixture_by_hand() -> Law:
    drawn = {"a": 0.6 * p("a", "") + 0.2, "b": 0.6 * p("b", ""), "": 0.6 * p(".", ""), "c": 0.2}
    return gather((x, q * math.exp(0.5 if x == "a" else 0.0)) for x, q in drawn.items())


@case(mixture_by_hand)
@program
def mixture() -> Any:
    x = sample("x", Mixture([LM("", max_tokens=1), Uniform(["a", "c"])], [0.6, 0.4]))
    factor("a", 0.5 if x == "a" else 0.0)
    return x


def regexed_by_hand() -> Law:
    return {"a": p("a", "") * p(".", "a"), "ab": p("a", "") * p("b", "a")}


@case(regexed_by_hand)
@program
def regexed() -> Any:
    """The model's law inside the language: its mass is below 1, and aa finds no end in time."""
    return sample("x", LM("", regex="a(b|aa)?", max_tokens=2))


def proposals_by_hand() -> Law:
    return gather((x, q * math.exp(0.3 * len(x))) for x, q in strings("", 2))


@case(proposals_by_hand)
@program
def proposals() -> Any:
    """Temperature and top-p say how to draw, and change nothing."""
    law = LM("", max_tokens=2)
    x = sample("x", law, proposal={"temperature": 2.0, "top_p": 0.8, "mixture": 0.25})
    factor("long", 0.3 * len(x))
    return x


@case(lambda: gather((x, q) for x, q in strings("", 1)))
@program
def listed_proposal() -> Any:
    """A proposal of another kind than its target."""
    guess_x = Categorical({"a": 0.2, "b": 0.2, "": 0.6})
    return sample("x", LM("", max_tokens=1), proposal=guess_x)


def forced_end_by_hand() -> Law:
    return gather((x, q * (p(".", x[-1]) if len(x) == 2 else 1.0)) for x, q in strings("", 2))


@case(forced_end_by_hand)
@program
def forced_end() -> Any:
    """At two tokens the string must end, and the weight says how probable that was."""
    return sample("x", LM("", max_tokens=2, limit="eos"))


@case(lambda: gather((x, q) for x, q in strings("", 2) if len(x) < 2))
@program
def killed_long() -> Any:
    return sample("x", LM("", max_tokens=2, limit="kill"))


def stopped_by_hand() -> Law:
    a, aa = p("a", ""), p("a", "") * p("a", "a")
    return {"": p(".", "") + p("b", ""), "a": a * (p(".", "a") + p("b", "a")), "aa": aa}


@case(stopped_by_hand)
@program
def stopped() -> Any:
    """Two ways to end: the end-of-text token, and the stop string b."""
    return sample("x", LM("", stop="b", max_tokens=2))


def chosen_by_hand() -> Law:
    mass = {"A": p("a", "") * (p("a", "a") + p("b", "a")), "B": p("b", "")}
    z = sum(mass.values())
    seen = {"A": p("a", "a") / (p("a", "a") + p("b", "a")), "B": 1.0}
    return {v: mass[v] / z * seen[v] for v in mass}


@case(chosen_by_hand)
@program
def chosen() -> Any:
    """A choice with several surfaces, and an observed one."""
    c = sample("c", Choice("", {"A": ["aa", "ab"], "B": "b"}))
    observe("v", Choice("a" if c == "A" else "b", ["a", "b"]), "a")
    return c


@case(lambda: gather((x, q**0.5) for x, q in strings("", 2)))
@program
def powered() -> Any:
    return sample("x", power(LM("", max_tokens=2), 0.5))


def tempered_by_hand() -> Law:
    def warm(last: str) -> dict[str, float]:
        w = {letter: p(letter, last) ** 0.5 for letter in "ab."}
        return {letter: w[letter] / sum(w.values()) for letter in w}

    pairs = [("", warm("")["."])]
    for x in "ab":
        pairs += [(x + ("" if y == "." else y), warm("")[x] * warm(x)[y]) for y in "ab."]
    return gather(pairs)


@case(tempered_by_hand)
@program
def tempered() -> Any:
    """Temperature 2 as another target, drawn at temperature 0.8."""
    return sample("x", LM("", max_tokens=2).tempered(2.0), proposal={"temperature": 0.8})


def handled_by_hand() -> Law:
    return gather((x, q * p("a", x) ** 0.5) for x, q in strings("", 1))


@case(handled_by_hand)
@program
def handled() -> Any:
    with handlers.scale(scale=0.5):
        x = call(drawn_alone)
        observe("y", LM(x, max_tokens=1), "a")
    with handlers.mask(mask=False):
        factor("never", False)
        sample("masked", Bernoulli(0.5))
    return x


@program
def drawn_alone() -> Any:
    with handlers.block(expose=()):
        return sample("x", LM("", max_tokens=1))


def longer(text: str) -> int:
    return len(text) + 1


@case(
    lambda: gather(((x, len(x) + 1), q * math.exp(0.25 * (len(x) + 1))) for x, q in strings("", 1))
)
@program
def derived() -> Any:
    """Values that are computed, cached or given: none of them has a weight."""
    x = sample("x", LM("", max_tokens=1))
    n = deterministic("n", cached("longer", longer, x))
    factor("w", param("rate", 0.25) * n)
    return x, n


@case(
    lambda: gather(
        [("", 0.2), ("a", 0.4 * 0.25 + 0.1 * 0.7), ("b", 0.3 * 0.2)]
        + [("aa", 0.4 * 0.5), ("ab", 0.4 * 0.25 + 0.1 * 0.3)]
        + [("ba", 0.3 * 0.5), ("bb", 0.3 * 0.3)]
    ),
    lm=TWINS,
)
@program
def twin_tokens() -> Any:
    """Two tokens with one surface: the text sums over both. After b the row is the first one."""
    return sample("x", LM("", max_tokens=2))


@case(
    lambda: gather(
        [("", 0.1), ("é", 0.6 * 0.8), ("\ufffda", 0.6 * 0.2)]
        + [("a\ufffd", 0.3 * 0.6), ("aa", 0.3 * 0.3), ("a", 0.3 * 0.1)]
    ),
    lm=HALVES,
)
@program
def half_characters() -> Any:
    """Tokens that are half a character; half a character alone shows as U+FFFD."""
    return sample("x", LM("", max_tokens=2))


@case(
    lambda: gather(
        [("", 0.3), ("a", 0.5 * 0.4), ("aa", 0.5 * 0.3), ("aaa", 0.5 * 0.3)]
        + [("aa", 0.2 * 0.3), ("aaa", 0.2 * 0.5), ("aaaa", 0.2 * 0.2)]
    ),
    lm=MERGES,
)
@program
def merged_tokens() -> Any:
    """aa is one token or two. After aa the row is the first one: no row of one token is given."""
    return sample("x", LM("", max_tokens=2))


# -- one cascade under three proposals, with its exact twist --------------------------------------

LIKED: dict[str, float] = {"a": 0.9, "b": -0.4, "": 0.1}


def aimed_by_hand() -> Law:
    return gather(
        ((x, y), q * r * math.exp(LIKED[x] + 0.6 * LIKED[y]))
        for x, q in strings("", 1)
        for y, r in strings(x, 1)
    )


def ahead(x: str) -> float:
    """Σ_y p(y | x) exp(0.6 liked(y)): what is still to come after x."""
    return sum(r * math.exp(0.6 * LIKED[y]) for y, r in strings(x, 1))


def perfect_first() -> Law:
    """π(x)."""
    w = {x: q * math.exp(LIKED[x]) * ahead(x) for x, q in strings("", 1)}
    return {x: w[x] / sum(w.values()) for x in w}


def perfect_second(x: str) -> Law:
    """π(y | x)."""
    return {y: r * math.exp(0.6 * LIKED[y]) / ahead(x) for y, r in strings(x, 1)}


@program
def aimed(kind: str) -> Any:
    """`kind` is the proposal: prior, tempered or perfect; the target is the same."""
    first: Any = {"tempered": {"temperature": 1.5}, "perfect": Categorical(perfect_first())}
    x = sample("x", LM("", max_tokens=1), proposal=first.get(kind))
    factor("likes_x", LIKED[x])
    second: Any = {"tempered": {"temperature": 1.5}, "perfect": Categorical(perfect_second(x))}
    y = sample("y", LM(x, max_tokens=1), proposal=second.get(kind))
    factor("likes_y", 0.6 * LIKED[y])
    return x, y


def exact_twist(trace: Trace) -> float:
    """log of what is still to come: with it every particle has the same weight."""
    if "likes_y" in trace:
        return 0.0
    if "y" in trace:
        return 0.6 * LIKED[trace["y"]]
    if "likes_x" in trace:
        return math.log(ahead(trace["x"]))
    if "x" in trace:
        return LIKED[trace["x"]] + math.log(ahead(trace["x"]))
    return 0.0


# -- where mutants have nowhere to hide -----------------------------------------------------------


def duel_by_hand() -> Law:
    pairs: list[Any] = [("", math.exp(LIKED[""]) * p(".", ""))]
    for x in "ab":
        for y, r in strings(x, 2):
            if y != "" and (x, y) != ("b", "a"):
                w = LIKED[x] + 0.6 * LIKED[y[0]]
                pairs.append((x + y, p(x, "") * r * math.exp(w)))
    return gather(pairs)


@program
def duel() -> Any:
    """Two strings drawn at another temperature, soft and hard factors, one way out early."""
    x = sample("x", LM("", max_tokens=1, temperature=1.5))
    factor("soft", LIKED[x])
    if x == "":
        return x
    y = sample("y", LM(x, max_tokens=2, temperature=1.5))
    factor("hard", y != "" and (x, y) != ("b", "a"))
    factor("last", 0.6 * LIKED[y[0]])
    return x + y
