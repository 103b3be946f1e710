"""The project's own questions, with exact answers: a generator and the files it ships.

Three families, made so that a model of 135M parameters is often wrong but not hopeless:

* `word_problems`: one or two operations on small numbers; the answer is a whole number. One
  template in eight mentions a number that does not matter, and one uses a number twice;
* `records`: a note with a change of mind or a second order in it, from which one order must be
  read: "3 lamps, Friday";
* `two_hop`: facts in random order, half of them about other people, and a question that takes two
  of them.

A file is a function of (family, seed, count) alone: every choice is a keyed draw of
`lmppl.random`, so the files are the same under every version of Python. The shipped files have
seed `SHIPPED`. Prompts were tuned on seed 1 and measured on others.

    python examples/tasks.py --seed 7 --count 200 --out /tmp/questions
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lmppl.random import fold, uniform

SHIPPED = 2026
COUNT = 15
DATA = Path(__file__).parent / "data"

T = TypeVar("T")
Row = dict[str, Any]


class Dice:
    """Keyed draws in order."""

    def __init__(self, *key: int | str) -> None:
        self.key = fold(0, *key)
        self.drawn = 0

    def below(self, n: int) -> int:
        self.drawn += 1
        return int(uniform(self.key, self.drawn) * n)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], n: int) -> list[T]:
        """`n` different ones, in random order."""
        pool = list(values)
        return [pool.pop(self.below(len(pool))) for _ in range(n)]


# -- word problems ------------------------------------------------------------------------------

NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul".split()
THINGS = "apples books cards coins eggs flowers marbles pencils shells stamps stickers toys".split()


def word_problem(dice: Dice, index: int) -> Row:
    """One of sixteen templates, in turn so that every file of sixteen or more has each."""
    x, y = dice.some(NAMES, 2)
    t = dice.pick(THINGS)
    a, b, c = dice.between(5, 20), dice.between(3, 9), dice.between(2, 4)
    big = a + b + dice.between(4, 20)
    options: list[tuple[str, int]] = [
        (f"{x} has {a} {t}. {y} gives {x} {b} more. How many {t} does {x} have now?", a + b),
        (f"There are {big} {t} in a bag. {x} takes out {b}. How many {t} are still in the bag?", big - b),
        (f"{x} buys {b} boxes. Each box holds {a} {t}. How many {t} does {x} buy?", a * b),
        (f"{x} shares {b * c} {t} equally among {c} friends. How many {t} does each friend get?", b),
        (f"{x} is {a} years old. {y} is {b} years older than {x}. How old is {y}?", a + b),
        (f"{x} needs {big} {t} and already has {a}. How many more {t} does {x} need?", big - a),
        (f"A hat costs {big} dollars. A scarf costs {b} dollars less. How much does the scarf cost?", big - b),
        (f"{x} walks {b} miles every day. How many miles does {x} walk in {a} days?", a * b),
        (f"{x} finds {a} {t} on Monday and {big} on Tuesday, and then loses {b}. How many {t} are left?", a + big - b),
        (f"{x} buys {c} packs of {a} {t} and gives {b} {t} to {y}. How many {t} does {x} keep?", c * a - b),
        (f"{x} buys {c} {t} for {b} dollars each and pays with {big + 20} dollars. "
         f"How much change does {x} get?", big + 20 - c * b),
        (f"A bus carries {big} people. At the next stop {a} get off and {b} get on. "
         f"How many people are on the bus now?", big - a + b),
        (f"A book has {big + 40} pages. {x} reads {a} pages a day for {c} days. "
         f"How many pages are left to read?", big + 40 - a * c),
        (f"{x} has {a} {t} and {y} has {a + 2 * b}. They put them together and share them equally. "
         f"How many {t} does each of them get?", a + b),
        (f"{x} has {a} {t}. {y} has {c} times as many. How many {t} do they have together?", a + a * c),
        (f"{x} is {b + 6} years old and has {a} {t}. {x} buys {big} more {t}. "
         f"How many {t} does {x} have in all?", a + big),
    ]  # fmt: skip
    question, answer = options[index % len(options)]
    return {"question": question, "answer": str(answer)}


# -- records ------------------------------------------------------------------------------------

ITEMS = "chairs lamps desks plates mugs towels pillows mirrors clocks rugs shelves vases".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()


def record(dice: Dice, index: int) -> Row:
    """A note about one order, with a thing, a number or a day in it that is not the order's."""
    x, y = dice.some(NAMES, 2)
    item, other = dice.some(ITEMS, 2)
    day, wrong = dice.some(DAYS, 2)
    n, m = dice.some(range(2, 13), 2)
    street = dice.between(14, 90)
    options = [
        f"Hi, {x} here. I asked for {m} {item}, but we need {n}. Please bring them on {day}.",
        f"Hello, this is {x}. Could we get {n} {item} on {day}? On {wrong} nobody is at home.",
        f"{x} called: the {other} arrived, thanks. Now {n} {item} please, by {day}.",
        f"Please send {n} {item} to {street} Hill Road. {wrong} is too early, so come on {day}.",
        f"We wanted {other}, but changed our mind: {n} {item} for {x}, delivery on {day}.",
        f"Dear shop, on {wrong} I bought {m} {other}. I would now like {n} {item} for {day}. {x}",
        f"Not {wrong} but {day} please, that is when {y} can take the {n} {item}.",
        f"Order from {x}: {n} {item}. First I said {wrong}, but {day} is better.",
    ]
    return {"note": options[index % len(options)], "answer": f"{n} {item}, {day}"}


# -- two hops -----------------------------------------------------------------------------------

CITIES = "Oslo Lima Cairo Paris Tokyo Rome Delhi Quito Accra Dublin".split()
COLORS = "red blue green yellow white black brown purple".split()
FIRMS = "Nordex Balcom Tamira Velano Zenith Corvus Halden Mirado".split()
TEACHERS = "Smith Jones Brown Taylor Wilson Moore Clark Lewis".split()
ROOMS = "kitchen garden library cellar attic garage hall office".split()


def two_hop(dice: Dice, index: int) -> Row:
    """Three chains of two facts in random order; the question asks for the end of one."""
    people = dice.some(NAMES, 3)
    firms, cities, colors = dice.some(FIRMS, 3), dice.some(CITIES, 3), dice.some(COLORS, 3)
    teachers, rooms = dice.some(TEACHERS, 3), dice.some(ROOMS, 3)
    pets = dice.some("cat dog horse parrot rabbit turtle".split(), 3)
    asked = people[0]
    forms: list[tuple[list[tuple[str, str]], str, str]] = [
        ([(f"{p} works for {f}.", f"{f} is based in {c}.") for p, f, c in zip(people, firms, cities, strict=True)],
         f"In which city is the firm that {asked} works for?", cities[0]),
        ([(f"{p} owns the {t}.", f"The {t} is {c}.") for p, t, c in zip(people, pets, colors, strict=True)],
         f"What color is the animal that {asked} owns?", colors[0]),
        ([(f"{p} is taught by {t}.", f"{t} lives in {c}.") for p, t, c in zip(people, teachers, cities, strict=True)],
         f"In which city does the teacher of {asked} live?", cities[0]),
        ([(f"{p} sits in the {r}.", f"The {r} is painted {c}.") for p, r, c in zip(people, rooms, colors, strict=True)],
         f"What color is the room that {asked} sits in?", colors[0]),
    ]  # fmt: skip
    chains, question, answer = forms[index % len(forms)]
    facts = [fact for chain in chains for fact in chain]
    return {"facts": dice.some(facts, len(facts)), "question": question, "answer": answer}


# -- files --------------------------------------------------------------------------------------

FAMILIES: dict[str, Callable[[Dice, int], Row]] = {
    "word_problems": word_problem,
    "records": record,
    "two_hop": two_hop,
}


def rows(family: str, seed: int = SHIPPED, count: int = COUNT) -> list[Row]:
    """The questions of a family: dictionaries with "id", the fields and "answer"."""
    make = FAMILIES[family]
    start = Dice(family, seed).below(1000)
    return [
        {"id": f"{family}-{seed}-{i:03d}", **make(Dice(family, seed, i), start + i)}
        for i in range(count)
    ]


def write(folder: Path, seed: int = SHIPPED, count: int = COUNT) -> list[Path]:
    """One JSON-lines file for each family."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for family in FAMILIES:
        path = folder / f"{family}.jsonl"
        lines = [json.dumps(row) + "\n" for row in rows(family, seed, count)]
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def main() -> None:
    """Make the shipped files again and compare them byte by byte."""
    with tempfile.TemporaryDirectory() as folder:
        for path in write(Path(folder)):
            made, shipped = path.read_bytes(), (DATA / path.name).read_bytes()
            assert made == shipped, f"{path.name} is not what seed {SHIPPED} gives"
            print(f"{path.name}: {made.count(b'{')} questions, {len(made):,} bytes, as shipped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write questions with exact answers.")
    parser.add_argument("--seed", type=int, default=SHIPPED)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--out", type=Path, help="the folder; without it, check the shipped files")
    arguments = parser.parse_args()
    if arguments.out is None:
        main()
    else:
        for written in write(arguments.out, arguments.seed, arguments.count):
            print(written)
