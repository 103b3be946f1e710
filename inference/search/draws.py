"""Keyed draws of the laws that Thompson sampling needs: Student's t, beta and normal.

Each number is a function of its key alone (`lmppl.random`): no generator has a state, so a decision
does not depend on what was decided before it.

References: Bailey, Polar generation of random variates with the t-distribution (1994); Marsaglia
and Tsang, A simple method for generating gamma variables (2000).
"""

from __future__ import annotations

import math

import numpy as np

from lmppl.random import GOLDEN, mix, mix_array, uniforms
from lmppl.types import Bools, Floats, Key, Keys

LOW = (1 << 32) - 1
HIGH = np.uint64(32)
HALF = 2.0**-32
"""One 64-bit number is two uniform ones of 32 bits: a t has its radius and its angle."""
TURN = 2.0 * math.pi
ZERO = np.zeros(1, dtype=np.uint64)


def student(key: Key, counter: int, df: float) -> float:
    """The `counter`-th draw of a key from Student's t with `df` degrees of freedom."""
    bits = mix(key + (counter + 1) * GOLDEN)
    u, v = ((bits >> 32) + 0.5) * HALF, ((bits & LOW) + 0.5) * HALF
    return math.sqrt(df * math.expm1(-2.0 / df * math.log(u))) * math.cos(TURN * v)


def polar(keys: Keys, start: int, count: int) -> tuple[Floats, Floats]:
    """log u and cos 2πv at the counters start, …, start + count - 1 of each key [T, count].

    `sqrt(df expm1(-2/df log u)) cos 2πv` is the draw of `student` there, for any df.
    """
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    bits = mix_array(keys[:, None] + counters)
    logs = np.log(((bits >> HIGH) + 0.5) * HALF)
    return logs, np.cos(TURN * (((bits & np.uint64(LOW)) + 0.5) * HALF))


def normals(keys: Keys, counter: int = 0) -> Floats:
    """A standard normal for each key (Box and Muller, 1958), from the counters 2c and 2c + 1."""
    u = uniforms(keys, np.array([2 * counter], dtype=np.uint64))
    v = uniforms(keys, np.array([2 * counter + 1], dtype=np.uint64))
    return np.asarray(np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v), dtype=np.float64)


def log_gammas(keys: Keys, shape: Floats) -> Floats:
    """The log of a gamma variable for each key and its shape: rejection with a counter per round.

    Shapes below 1 are raised by one and come back by log u / shape, which cannot underflow.
    """
    small = shape < 1.0
    d = np.where(small, shape + 1.0, shape) - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    out = np.zeros(len(keys))
    open_ones: Bools = np.ones(len(keys), dtype=np.bool_)
    counter = 1
    while open_ones.any():
        x = normals(keys, counter)
        u = uniforms(keys, np.array([2 * counter + 100_000_001], dtype=np.uint64))
        t = 1.0 + c * x
        v = np.where(t > 0.0, t, 1.0) ** 3
        taken = (t > 0.0) & (np.log(u) < 0.5 * x * x + d * (1.0 - v + np.log(v))) & open_ones
        out[taken] = (np.log(d) + np.log(v))[taken]
        open_ones &= ~taken
        counter += 1
    boost = np.log(uniforms(keys, ZERO)) / shape
    return np.where(small, out + boost, out)


def betas(keys: Keys, a: Floats, b: Floats) -> Floats:
    """A beta variable for each key [K] with its parameters [K]."""
    both = log_gammas(
        np.concatenate([keys, keys ^ np.uint64(0x9E3779B97F4A7C15)]), np.concatenate([a, b])
    )
    x, y = both[: len(keys)], both[len(keys) :]
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(y - x, -700.0, 700.0))), dtype=np.float64)
