"""Tools that a program may call through `effect`: an exact calculator that cannot be abused.

    evaluate(expression)  -> Fraction     # the number
    calculate(expression) -> str          # the number as a reader writes it: "12", "0.25", "2/3"

Grammar, loosest first (Python's precedences; `^` is a power, `×`, `÷`, `−` are understood):

    shift   := sum   (("<<" | ">>") sum)*
    sum     := term  (("+" | "-") term)*
    term    := unary (("*" | "/" | "//" | "%") unary)*
    unary   := ("+" | "-") unary | power
    power   := atom ["**" unary]
    atom    := number | function "(" shift ("," shift)* ")" | "(" shift ")"

The text may come from a language model, so nothing of Python's own evaluator is used, and work is
bounded before it is done: the length and the depth of parentheses before parsing, the size of a
result before computing it (`9**9**9` is one operation that nothing could stop later). The bits of
a fraction are those of its larger part, and

    bits(a ± b), bits(a · b), bits(a / b) ≤ bits(a) + bits(b) + 1,   bits(a^n) ≤ |n| bits(a),
    bits(a << n) ≤ bits(a) + n,   bits(n!) ≤ n bits(n),   bits(lcm(a, …)) ≤ Σ bits(a).

Arithmetic is exact: `0.1 + 0.2` is 0.3 and `1/3*3` is 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, NoReturn

from lmppl.errors import LmpplError

MAX_LENGTH = 1000
"""Characters of an expression."""
MAX_DEPTH = 50
"""Parentheses, signs and powers inside one another."""
MAX_BITS = 4096
"""Bits of the larger part of any intermediate result: about 1,230 decimal digits."""
MAX_PLACES = 50
"""Decimal places that `show` writes before it falls back to a fraction."""

TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<text>'[^'\n]*'|"[^"\n]*")
    |(?P<name>[A-Za-z_]\w*)
    |(?P<op>\*\*|//|<<|>>|[-+*/%^(),×÷−·])""",
    re.VERBOSE | re.ASCII,
)
SPELLING = {"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-"}


class CalcError(LmpplError):
    """An expression that the calculator does not answer; the base of the three below."""


class CalcSyntaxError(CalcError):
    """Not arithmetic: shows the expression with a caret under the offending place."""


class CalcLimit(CalcError):
    """Too long, too deep or too large: refused before it is computed."""


class CalcDomainError(CalcError):
    """Arithmetic without an exact rational answer, such as a division by zero."""


class Token(NamedTuple):
    """A piece of the expression and the column it starts at."""

    kind: str
    text: str
    column: int


Value = Fraction | str
"""A quoted text is parsed, so that the message can say what is wrong; it is never a result."""


def calculate(expression: str) -> str:
    """The exact value of an arithmetic expression, written as a number.

    >>> calculate("(12 - 4) * 3"), calculate("0.1 + 0.2"), calculate("2 / 3"), calculate("7 / 2")
    ('24', '0.3', '2/3', '3.5')
    """
    return show(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """The exact value of an arithmetic expression.

    Raises:
        CalcSyntaxError: not arithmetic.
        CalcLimit: longer, deeper or larger than the limits of this module.
        CalcDomainError: no exact rational value.

    >>> evaluate("2 ** -3"), evaluate("max(3, 10 // 3) + 5 % 3")
    (Fraction(1, 8), Fraction(5, 1))
    """
    if len(expression) > MAX_LENGTH:
        _too_much(
            f"the expression has {len(expression):,} characters, the limit is {MAX_LENGTH:,}",
            expression,
        )
    depth = 0
    for char in expression:
        depth += (char == "(") - (char == ")")
        if depth > MAX_DEPTH:
            _too_much(f"more than {MAX_DEPTH} parentheses inside one another", expression)
    parser = _Parser(expression)
    value = parser.binary(0, 0)
    if parser.token.kind != "end":
        parser.unexpected()
    return parser.number(value, Token("text", "", 0))


def show(value: Fraction) -> str:
    """A number in decimal when that is exact, as a fraction otherwise.

    >>> show(Fraction(5)), show(Fraction(-1, 8)), show(Fraction(1, 7))
    ('5', '-0.125', '1/7')
    """
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1 or places > MAX_PLACES:
        return f"{value.numerator}/{value.denominator}"
    if places == 0:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


# -- parsing ------------------------------------------------------------------------------------

LEVELS: tuple[tuple[str, ...], ...] = (("<<", ">>"), ("+", "-"), ("*", "/", "//", "%"))


class _Parser:
    """Recursive descent that computes as it reads; `depth` bounds the recursion."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.token = self.next()

    def next(self) -> Token:
        """Read one token and step over it."""
        while self.at < len(self.source):
            match = TOKEN.match(self.source, self.at)
            if match is None:
                self.wrong(f"unexpected {self.source[self.at]!r}", self.at)
            start, self.at = self.at, match.end()
            kind = str(match.lastgroup)
            if kind != "space":
                text = match.group()
                self.token = Token(kind, SPELLING.get(text, text), start)
                return self.token
        self.token = Token("end", "", len(self.source))
        return self.token

    def binary(self, level: int, depth: int) -> Value:
        """Left-associative operators of `LEVELS[level]` and everything that binds tighter."""
        if level == len(LEVELS):
            return self.unary(depth)
        left = self.binary(level + 1, depth)
        while self.token.kind == "op" and self.token.text in LEVELS[level]:
            token = self.token
            self.next()
            left = self.apply(token, left, self.binary(level + 1, depth))
        return left

    def unary(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            _too_much(f"more than {MAX_DEPTH} operations inside one another", self.source)
        token = self.token
        if token.kind == "op" and token.text in "+-":
            self.next()
            value = self.number(self.unary(depth + 1), token)
            return -value if token.text == "-" else value
        left = self.atom(depth)
        if self.token.kind == "op" and self.token.text == "**":
            token = self.token
            self.next()
            left = self.apply(token, left, self.unary(depth + 1))
        return left

    def atom(self, depth: int) -> Value:
        token = self.token
        if token.kind == "number":
            self.next()
            return self.literal(token)
        if token.kind == "text":
            self.next()
            return token.text[1:-1]
        if token.kind == "name":
            if token.text not in FUNCTIONS:
                self.wrong(f"unknown name {token.text!r}", token.column)
            function, most = FUNCTIONS[token.text]
            self.next()
            self.expect("(")
            arguments = [self.number(self.binary(0, depth + 1), token)]
            while self.token.text == ",":
                self.next()
                arguments.append(self.number(self.binary(0, depth + 1), token))
            if len(arguments) > most:
                self.wrong(
                    f"{token.text} takes at most {most} numbers, got {len(arguments)}", token.column
                )
            self.expect(")")
            return self.checked(token, function, *arguments)
        if token.text == "(":
            self.next()
            value = self.binary(0, depth + 1)
            self.expect(")")
            return value
        self.unexpected()

    def literal(self, token: Token) -> Fraction:
        mantissa, _, exponent = token.text.lower().partition("e")
        # An exponent of three digits keeps 10**exponent below MAX_BITS; its value is not needed.
        if len(exponent.lstrip("+-0")) > 3:
            _too_much(
                f"the number {token.text} at column {token.column + 1} is too large", self.source
            )
        value = Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
        if _bits(value) > MAX_BITS:
            _too_much(f"the number at column {token.column + 1} is too large", self.source)
        return value

    def apply(self, token: Token, left: Value, right: Value) -> Value:
        """One binary operation, its size estimated first."""
        size = _size(token.text, left, right)
        if size > MAX_BITS:
            what = (
                f"{token.text!r} at column {token.column + 1} would need about {_rough(size)} bits"
            )
            _too_much(f"{what}, the limit is {MAX_BITS:,}", self.source)
        return self.checked(
            token, OPERATIONS[token.text], self.number(left, token), self.number(right, token)
        )

    def checked(
        self, token: Token, function: Callable[..., Fraction], *arguments: Fraction
    ) -> Fraction:
        """Call, and turn the errors of arithmetic into those of the calculator."""
        try:
            return function(*arguments)
        except OverflowError as error:
            _too_much(f"{token.text!r} at column {token.column + 1}: {error}", self.source)
        except (ArithmeticError, ValueError) as error:
            raise CalcDomainError(
                f"calculator: {token.text!r} at column {token.column + 1}: {error}",
                value=_mark(self.source, token.column),
                fix="let the program rule this value out: effect(..., policy='kill')",
            ) from None

    def number(self, value: Value, token: Token) -> Fraction:
        if isinstance(value, str):
            self.wrong("a quoted text is not a number", token.column)
        return value

    def expect(self, text: str) -> None:
        if self.token.text != text:
            self.unexpected(f", expected {text!r}")
        self.next()

    def unexpected(self, more: str = "") -> NoReturn:
        what = (
            "the expression ends too early"
            if self.token.kind == "end"
            else f"unexpected {self.token.text!r}"
        )
        self.wrong(what + more, self.token.column)

    def wrong(self, what: str, column: int) -> NoReturn:
        raise CalcSyntaxError(
            f"calculator: {what} at column {column + 1}",
            value=_mark(self.source, column),
            fix=f"use numbers, + - * / // % ** << >> ( ) and {', '.join(sorted(FUNCTIONS))}",
        )


def _mark(source: str, column: int, margin: int = 30) -> str:
    """The neighbourhood of a column on one line, and a caret below it."""
    start = max(0, column - margin)
    head = "... " if start else ""
    tail = " ..." if column + margin < len(source) else ""
    # One character each, so that the caret stays under its column.
    shown = "".join(c if c.isprintable() else "?" for c in source[start : column + margin])
    # The label "  value: " of the message takes nine columns before `shown`.
    return f"{head}{shown}{tail}\n{' ' * (9 + len(head) + column - start)}^"


def _too_much(what: str, source: str) -> NoReturn:
    raise CalcLimit(
        f"calculator: {what}",
        value=repr(source[:60]) + (" ..." if len(source) > 60 else ""),
        why="the work is bounded before it is done",
        fix="write a shorter expression with smaller numbers",
    )


# -- arithmetic ---------------------------------------------------------------------------------


def _bits(value: Value) -> int:
    if isinstance(value, str):
        return 8 * len(value)
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _rough(size: int) -> str:
    """A size in a few characters: it may have a thousand digits itself."""
    return f"{size:,}" if size < 10**9 else f"2**{size.bit_length() - 1}"


def _size(operator: str, left: Value, right: Value) -> int:
    """An upper bound of the bits of a result, from the operands alone."""
    times = abs(math.trunc(right)) if isinstance(right, Fraction) else 0
    if operator == "**":
        return 1 if left in (0, 1, -1) else _bits(left) * times
    if operator in ("<<", ">>"):
        return _bits(left) + times
    if isinstance(left, str):
        return _bits(left) * times
    return _bits(left) + _bits(right) + 1


def _whole(value: Fraction, role: str) -> int:
    if value.denominator != 1:
        raise ValueError(f"{role} must be a whole number, got {show(value)}")
    return value.numerator


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0 and exponent < 0:
        raise ZeroDivisionError("division by zero")
    return Fraction(base ** _whole(exponent, "an exponent"))


def _shift(value: Fraction, places: Fraction, left: bool) -> Fraction:
    n, whole = _whole(places, "a shift"), _whole(value, "a shifted number")
    if n < 0:
        raise ValueError("a shift must not be negative")
    return Fraction(whole << n if left else whole >> n)


def _factorial(value: Fraction) -> Fraction:
    n = _whole(value, "the argument")
    if n * n.bit_length() > MAX_BITS:
        raise OverflowError(f"the result would need about {_rough(n * n.bit_length())} bits")
    return Fraction(math.factorial(n))


def _round(value: Fraction, places: Fraction = Fraction(0)) -> Fraction:
    n = _whole(places, "the number of places")
    if abs(n) > MAX_PLACES:
        raise OverflowError(f"at most {MAX_PLACES} places")
    return Fraction(round(value, n))


def _lcm(*values: Fraction) -> Fraction:
    if sum(map(_bits, values)) > MAX_BITS:
        raise OverflowError("the result would be too large")
    return Fraction(math.lcm(*(_whole(v, "an argument") for v in values)))


OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: Fraction(a // b),
    "%": lambda a, b: a % b,
    "**": _power,
    "<<": lambda a, b: _shift(a, b, True),
    ">>": lambda a, b: _shift(a, b, False),
}
FUNCTIONS: dict[str, tuple[Callable[..., Fraction], int]] = {
    "abs": (lambda a: abs(a), 1),
    "ceil": (lambda a: Fraction(math.ceil(a)), 1),
    "factorial": (_factorial, 1),
    "floor": (lambda a: Fraction(math.floor(a)), 1),
    "gcd": (lambda *a: Fraction(math.gcd(*(_whole(v, "an argument") for v in a))), MAX_LENGTH),
    "lcm": (_lcm, MAX_LENGTH),
    "max": (lambda *a: max(a), MAX_LENGTH),
    "min": (lambda *a: min(a), MAX_LENGTH),
    "round": (_round, 2),
}
"""Name -> the function and the most numbers it takes."""
