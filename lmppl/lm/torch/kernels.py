"""GPU kernels, in Triton: what a step and a draw are made of besides matrix products.

A step of a small model is bound by the number of kernels, not by arithmetic: each of these does in one
what takes torch five to twenty. They read keys and values in the pages where they lie (`torch/pages`):
a table on the device says, for each row, where its columns begin, so that one captured graph serves
every batch.

    row of the table   token, length, columns, address to write, stride, room, 0, 0,
                       then of each column: address, tokens, stride, room

Addresses are bytes, of the first key of the row in the first layer; `stride` is the elements between
the keys of a layer and its values, and `room` the slots of a row of pages.

References: Dao et al., FlashAttention (2022); Dao et al., Flash-Decoding (2023), for `attend` and
`merge`; Kwon et al., PagedAttention (2023). What they compute is said again, in torch, by
`torch/llama`, `torch/draw` and `torch/noise`, which the tests hold them to.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEAD = 8
"""Numbers of a row of the table before those of its columns."""
CELL = 4
"""Numbers of a column."""

# -- a step ----------------------------------------------------------------------------------------


@triton.jit
def add_norm(x, more, weight, out, eps, n, ADD: tl.constexpr, SIZE: tl.constexpr):
    """Of one row: x ← x + more in place, where ADD, and out = x / rms(x) · weight."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < n
    v = tl.load(x + row * n + at, mask=inside, other=0.0)
    if ADD:
        v = v + tl.load(more + row * n + at, mask=inside, other=0.0)
        tl.store(x + row * n + at, v, mask=inside)
    wide = v.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / n + eps)
    w = tl.load(weight + at, mask=inside, other=0.0)
    tl.store(out + row * n + at, wide.to(v.dtype) * w, mask=inside)


@triton.jit
def rotate_store(
    qkv, q, cos, sin, table, layer, WIDTH: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Of one head of one row: rotate queries and keys; put keys and values into their slot."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, D // 2)
    at = qkv + (row * (HEADS + 2 * KV) + head) * D + half
    low, high = tl.load(at), tl.load(at + D // 2)
    if head < HEADS + KV:
        c = tl.load(cos + row * (D // 2) + half)
        s = tl.load(sin + row * (D // 2) + half)
        a, b = low.to(tl.float32), high.to(tl.float32)
        low, high = (a * c - b * s).to(low.dtype), (b * c + a * s).to(high.dtype)
    if head < HEADS:
        to = q + (row * HEADS + head) * D + half
        tl.store(to, low)
        tl.store(to + D // 2, high)
    else:
        mine = table + row * WIDTH
        address, stride, room = tl.load(mine + 3), tl.load(mine + 4), tl.load(mine + 5)
        kv = head - HEADS
        of_value = kv // KV
        page = address.to(tl.pointer_type(qkv.dtype.element_ty))
        page += (2 * layer + of_value) * stride + (kv - of_value * KV) * room * D
        if address != 0:  # rows that are padding have no slot
            tl.store(page + half, low)
            tl.store(page + half + D // 2, high)


@triton.jit
def attend(
    q, out, tops, sums, table, layer, scale, WIDTH: tl.constexpr, FIRST: tl.constexpr, EACH: tl.constexpr,
    KV: tl.constexpr, PER: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Of one row and one key-value head: softmax(q k) v over every SPLITS-th block of its slots.

    With one split the result is `out`; with more, `out` holds unnormalised parts for `merge`.
    """
    row = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    mine = table + row * WIDTH
    g, d = tl.arange(0, GROUP), tl.arange(0, D)
    asked = (g < PER)[:, None]
    place = ((row * KV + kv) * PER + g)[:, None] * D + d[None, :]
    query = tl.load(q + place, mask=asked, other=0.0)
    top = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, D], tl.float32)
    for c in range(tl.load(mine + 2)):
        cell = mine + FIRST + EACH * c
        count, stride, room = tl.load(cell + 1), tl.load(cell + 2), tl.load(cell + 3)
        page = tl.load(cell).to(tl.pointer_type(q.dtype.element_ty))
        keys = page + 2 * layer * stride + kv * room * D
        values = keys + stride
        for start in range(split * BLOCK, count, BLOCK * SPLITS):
            slot = start + tl.arange(0, BLOCK)
            here = slot < count
            at = slot[:, None] * D + d[None, :]
            k = tl.load(keys + at, mask=here[:, None], other=0.0)
            x = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
            x = tl.where(here[None, :], x, -float("inf"))
            highest = tl.maximum(top, tl.max(x, 1))
            shrink = tl.exp(top - highest)
            w = tl.exp(x - highest[:, None])
            total = total * shrink + tl.sum(w, 1)
            v = tl.load(values + at, mask=here[:, None], other=0.0)
            acc = acc * shrink[:, None] + tl.dot(w.to(v.dtype), v, input_precision="ieee")
            top = highest
    if SPLITS == 1:
        total = tl.where(total > 0.0, total, 1.0)  # a row that is padding reads nothing
        tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=asked)
    else:
        part = ((row * KV + kv) * SPLITS + split) * PER + g
        tl.store(out + part[:, None] * D + d[None, :], acc, mask=asked)
        tl.store(tops + part, top, mask=g < PER)
        tl.store(sums + part, total, mask=g < PER)


@triton.jit
def merge(parts, tops, sums, out, PER: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr):
    """Of one query: the parts of `attend`, each by its own maximum, as one."""
    query = tl.program_id(0).to(tl.int64)
    group, inside = query // PER, query % PER
    part = (group * SPLITS + tl.arange(0, SPLITS)) * PER + inside
    top = tl.load(tops + part)
    highest = tl.max(top, 0)
    highest = tl.where(highest == -float("inf"), 0.0, highest)
    w = tl.exp(top - highest)
    d = tl.arange(0, D)
    acc = tl.sum(tl.load(parts + part[:, None] * D + d[None, :]) * w[:, None], 0)
    total = tl.sum(tl.load(sums + part) * w, 0)
    total = tl.where(total > 0.0, total, 1.0)
    tl.store(out + query * D + d, (acc / total).to(out.dtype.element_ty))


@triton.jit
def gate(both, out, n, SIZE: tl.constexpr):
    """silu(g) · u of rows [g, u]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    g = tl.load(both + row * 2 * n + at, mask=inside, other=0.0)
    u = tl.load(both + row * 2 * n + n + at, mask=inside, other=0.0)
    wide = g.to(tl.float32)
    tl.store(out + row * n + at, (wide * tl.sigmoid(wide)).to(g.dtype) * u, mask=inside)


# -- a draw ----------------------------------------------------------------------------------------


@triton.jit
def block_masses(x, masses, width, blocks, BLOCK: tl.constexpr):
    """log Σ exp(x) over one block of ids of one row, float64."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + row * width + at, mask=at < width, other=-float("inf"))
    top = tl.max(v, 0)
    safe = tl.where(top == -float("inf"), 0.0, top)
    mass = safe.to(tl.float64) + tl.log(tl.sum(tl.exp(v - safe), 0).to(tl.float64))
    tl.store(masses + row * blocks + block, mass)


@triton.jit
def gumbel(key, counter):
    """Standard Gumbel noise of (key, counter), float64; the bits of `lmppl.random`."""
    x = key + (counter.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    u = ((x >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16
    return -tl.log(-tl.log(u))


@triton.jit
def choose(
    x, masses, keys, rows, tokens, width, blocks, SOME: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Of one row: a block by Gumbel-max over the masses, then an id inside it; ties to the smaller.

    Where SOME, `rows` says which row of `x` is meant; of masses and keys there is one for each.
    """
    row = tl.program_id(0).to(tl.int64)
    source = row
    if SOME:
        source = tl.load(rows + row)
    inner = tl.load(keys + 2 * row).to(tl.uint64, bitcast=True)
    outer = tl.load(keys + 2 * row + 1).to(tl.uint64, bitcast=True)
    n = tl.arange(0, COUNT)
    mass = tl.load(masses + row * blocks + n, mask=n < blocks, other=-float("inf"))
    block = tl.argmax(mass + gumbel(outer, n), 0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + source * width + at, mask=at < width, other=-float("inf")).to(tl.float64)
    tl.store(tokens + row, (block * BLOCK + tl.argmax(v + gumbel(inner, at), 0)).to(tl.int64))
