"""Pieces that the attention kernels share: heads of any even width, their norm, rotary positions, the running softmax.

A head of WIDTH channels is a tile of MAIN columns and, where TAIL > 0, a second one of TAIL columns that holds the rest
(``head_tiles``). Where TAIL is 0 the second tile of a pair is a stand-in that nothing reads.
"""

from __future__ import annotations

from .launch import interpreted, tl, triton

# Matrix products of float32 tiles: three tf32 products, which keep about 21 of 24 bits. Other types ignore it.
PRECISION = tl.constexpr("tf32x3")
LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b):
    """a b in float32."""
    if INTERPRETED:  # the interpreter multiplies the bits of bfloat16 as if they were integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def dot_add(a, b, c):
    """a b + c in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Float32 to DTYPE, to the nearest and ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # where the interpreter would cut the low bits off
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def load_head(p_rows, m_rows, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """Rows of a head, 0 where ``m_rows`` is false. p_rows (ROWS,) point to channel 0. -> (ROWS, MAIN), (ROWS, TAIL)."""
    o_main = tl.arange(0, MAIN)[None, :]
    if MAIN <= WIDTH:
        main = tl.load(p_rows[:, None] + o_main, mask=m_rows[:, None], other=0.0)
    else:
        main = tl.load(p_rows[:, None] + o_main, mask=m_rows[:, None] & (o_main < WIDTH), other=0.0)
    tail = main
    if TAIL > 0:
        o_tail = MAIN + tl.arange(0, TAIL)[None, :]
        tail = tl.load(p_rows[:, None] + o_tail, mask=m_rows[:, None] & (o_tail < WIDTH), other=0.0)
    return main, tail


@triton.jit
def store_head(p_rows, m_rows, main, tail, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """The inverse of :func:`load_head`, rounding to the type of the pointer."""
    o_main = tl.arange(0, MAIN)[None, :]
    main = rounded(main, p_rows.dtype.element_ty)
    if MAIN <= WIDTH:
        tl.store(p_rows[:, None] + o_main, main, mask=m_rows[:, None])
    else:
        tl.store(p_rows[:, None] + o_main, main, mask=m_rows[:, None] & (o_main < WIDTH))
    if TAIL > 0:
        o_tail = MAIN + tl.arange(0, TAIL)[None, :]
        tl.store(
            p_rows[:, None] + o_tail, rounded(tail, p_rows.dtype.element_ty), mask=m_rows[:, None] & (o_tail < WIDTH)
        )


@triton.jit
def load_channels(p_channels, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """A vector over the channels of a head in float32. -> (MAIN,), (TAIL,)."""
    o_main = tl.arange(0, MAIN)
    main = tl.load(p_channels + o_main, mask=o_main < WIDTH, other=0.0).to(tl.float32)
    tail = main
    if TAIL > 0:
        o_tail = MAIN + tl.arange(0, TAIL)
        tail = tl.load(p_channels + o_tail, mask=o_tail < WIDTH, other=0.0).to(tl.float32)
    return main, tail


@triton.jit
def inverse_rms(main, tail, EPS: tl.constexpr, WIDTH: tl.constexpr, TAIL: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of every row, in float32. -> (ROWS,)."""
    wide = main.to(tl.float32)
    total = tl.sum(wide * wide, 1)
    if TAIL > 0:
        wide_tail = tail.to(tl.float32)
        total += tl.sum(wide_tail * wide_tail, 1)
    return tl.rsqrt(total / WIDTH + EPS)


@triton.jit
def cosine_sine(x):
    """Cosine and sine of float32 radians, |x| <= 8192, to about 1e-7: Cody and Waite's reduction, Cephes' polynomials.

    The library's functions are as exact, but bring a path for huge arguments that needs local memory.
    """
    quadrant = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - quadrant * 1.5703125) - quadrant * 4.837512969970703125e-4) - quadrant * 7.549789954891882e-8
    z = r * r
    sine = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cosine = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    turn = quadrant.to(tl.int32) & 3
    swap = (turn & 1) == 1
    cos, sin = tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
    return tl.where((turn == 1) | (turn == 2), -cos, cos), tl.where(turn >= 2, -sin, sin)


@triton.jit
def rotate(x, cos, sin, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Interleaved pairs turned by an angle each. x (ROWS, COLUMNS), cos and sin (ROWS, COLUMNS / 2)."""
    even, odd = tl.split(tl.reshape(x, (ROWS, COLUMNS // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (ROWS, COLUMNS))


@triton.jit
def load_rope(p_rows, m_rows, FIRST: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Cosines and sines of the pairs of channels FIRST .. FIRST + COLUMNS - 1, stored as (…, WIDTH / 2, 2) in float32.

    p_rows (ROWS,) pointers to the rotation of each position. -> two of (ROWS, COLUMNS / 2).
    """
    o_value = FIRST + tl.arange(0, COLUMNS)[None, :]
    ROWS: tl.constexpr = p_rows.shape[0]
    pairs = tl.load(p_rows[:, None] + o_value, mask=m_rows[:, None] & (o_value < WIDTH), other=0.0).to(tl.float32)
    return tl.split(tl.reshape(pairs, (ROWS, COLUMNS // 2, 2)))


@triton.jit
def scores(q_main, q_tail, k_main, k_tail, TAIL: tl.constexpr):
    """q k^T over both tiles of the head, in float32. -> (ROWS_Q, ROWS_K)."""
    products = dot(q_main, tl.trans(k_main))
    if TAIL > 0:
        products = dot_add(q_tail, tl.trans(k_tail), products)
    return products


@triton.jit
def online_softmax_update(logits, v_main, v_tail, top, total, main, tail, TAIL: tl.constexpr):
    """One more tile of keys for the running softmax. logits (ROWS_Q, ROWS_K) in units of log 2, -inf where masked.

    ``top`` (ROWS_Q,) the largest logit so far, ``total`` (ROWS_Q,) the sum of weights, ``main`` and ``tail`` the
    weighted sum of values; returned in this order.
    """
    new_top = tl.maximum(top, tl.max(logits, 1))
    origin = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(logits - origin[:, None])
    keep = tl.exp2(top - origin)
    total = total * keep + tl.sum(weights, 1)
    weights = rounded(weights, v_main.dtype)
    main = dot_add(weights, v_main, main * keep[:, None])
    if TAIL > 0:
        tail = dot_add(weights, v_tail, tail * keep[:, None])
    return new_top, total, main, tail


@triton.jit
def online_softmax_finish(total, main, tail, TAIL: tl.constexpr):
    """The attended values; zero where a query saw no key. -> main, tail."""
    share = 1.0 / tl.where(total > 0, total, 1.0)
    main = main * share[:, None]
    if TAIL > 0:
        tail = tail * share[:, None]
    return main, tail
