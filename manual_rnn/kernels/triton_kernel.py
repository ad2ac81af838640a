r"""The two recurrences as one persistent Triton kernel: what `triton_launch.py` imports once it is needed.

    elman                h_t = phi(z_t + h_{t-1} m)                m = w^T, h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} m)       m = a, y before the first step = 0

A program takes `BB` sequences of one member of the ensemble through all steps. `m`, filled up with zeros to
`HH` columns, a power of two, stays on chip, and the state in registers; what the next step reads is on its
way while this one multiplies. Sums are of float32; a state is rounded to its type at every step. Sequences
that a packed batch doesn't hold at a step keep their state.
"""

from typing import Any

import triton
import triton.language as tl

# What differs from call to call, but from which no call wants code of its own.
RUN_TIME: Any = ("T", "B", "rows", "m_g", "m_k", "m_n", "relu", "reverse")


@triton.jit
def tanh(x):
    """By its series near 0, where `1 - e` would have few digits left."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    q = a * a
    series = -0.053968254 + q * (0.021869488 + q * -0.008863236)
    near = a + a * q * (-0.33333334 + q * (0.13333334 + q * series))
    found = tl.where(a < 0.25, near, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0, -found, found)


@triton.jit
def place(STARTS, SIZES, t, b, top, B, PACKED: tl.constexpr):
    """The first row of step `t`, and which of the sequences `top + b` it holds."""
    row = tl.load(STARTS + t) if PACKED else t.to(tl.int64) * B
    held = tl.load(SIZES + t) if PACKED else B
    return row, b < held - top


@triton.jit(do_not_specialize=RUN_TIME)
def recurrence(
    X, OTHER, M, OUT, STARTS, SIZES, T, B, H, rows, m_g, m_k, m_n, relu, reverse,
    LINEAR: tl.constexpr, PACKED: tl.constexpr, BB: tl.constexpr, HH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`X` z or v, `OTHER` h0 or h, of each member `rows` rows of `H` columns; `M` by its strides."""
    tiles = tl.cdiv(B, BB)
    top = tl.program_id(0) % tiles * BB
    g = (tl.program_id(0) // tiles).to(tl.int64)
    b = tl.arange(0, BB)
    n = tl.arange(0, HH)
    k = tl.arange(0, HH)
    columns = (n < H)[None, :]
    part = k[:, None].to(tl.int64) * m_k + n[None, :].to(tl.int64) * m_n
    m = tl.load(M + g * m_g + part, mask=(k < H)[:, None] & columns, other=0.0)
    within = b[:, None] * H + n[None, :]
    member = (g * rows + top) * H
    X, OUT = X + member, OUT + member
    if LINEAR:
        OTHER += member
        state = tl.zeros((BB, HH), dtype=m.dtype)
    else:
        state = tl.load(OTHER + (g * B + top) * H + within, mask=(b < B - top)[:, None] & columns, other=0.0)
    step = 1 - 2 * reverse
    t = (T - 1) * reverse
    row, alive = place(STARTS, SIZES, t, b, top, B, PACKED)
    begun = b < 0
    x = tl.load(X + row * H + within, mask=alive[:, None] & columns, other=0.0)
    if LINEAR:
        h = tl.load(OTHER + row * H + within, mask=alive[:, None] & columns, other=0.0)
    for _ in range(T):
        here, here_row, here_x = alive, row, x.to(tl.float32)
        if LINEAR:
            here_h = h.to(tl.float32)
        t = tl.minimum(tl.maximum(t + step, 0), T - 1)
        row, alive = place(STARTS, SIZES, t, b, top, B, PACKED)
        x = tl.load(X + row * H + within, mask=alive[:, None] & columns, other=0.0)
        if LINEAR:
            h = tl.load(OTHER + row * H + within, mask=alive[:, None] & columns, other=0.0)
            s = tl.dot(state, m, input_precision=PRECISION)
            s = tl.where(begun[:, None], s, 0.0) + here_x  # nothing before the first step, not even 0 times m
            begun = here
            s = tl.where(here_h <= 0, 0.0, s) if relu else s * (1.0 - here_h * here_h)
        else:
            s = tl.dot(state, m, here_x, input_precision=PRECISION)
            s = tl.where(s < 0, 0.0, s) if relu else tanh(s)
        new = tl.where(columns, s, 0.0).to(m.dtype)  # else an infinity times the zeros beside m
        state = tl.where(here[:, None], new, state) if PACKED else new
        tl.store(OUT + here_row * H + within, new, mask=here[:, None] & columns)
