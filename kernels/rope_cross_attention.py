"""Cross-attention between two clocks: queries and keys carry rotary positions of their own.

    o = softmax(rotate(q, q_positions) rotate(k, k_positions)^T / sqrt(d)) v

where pair i of a token at position p is turned by p * frequencies[i] radians. With a ``window`` a query sees the keys
whose position differs from its own by at most that much; one that sees none reads 0.

q (R, N, n, d); k, v (R, M, n, d); q_positions (N,), k_positions (M,) on one clock; frequencies (d / 2,); window in
units of the positions, negative for none. -> (R, N, n * d).

Positions make the direction: audio tokens that read video frames (SyncFlow's audio tower), video tokens that read
audio on the clock of the latent frames (Syncphony's Audio RoPE), either within a window (Harmony's local module).
"""

from __future__ import annotations

from torch import Tensor

from . import formulas
from .blocks import LOG2_E, absorb, cosine_sine, load_head, rotate, rounded, scores, settle, store_head
from .launch import Launch, attention_tiles, head_tiles, operation, supported, tiles, tl, triton


def reference(
    q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, k_positions: Tensor, frequencies: Tensor, window: float
) -> Tensor:
    """Attention with both sides rotated to their own positions."""
    q = formulas.rotate(q, formulas.rotation(q_positions[:, None] * frequencies))
    k = formulas.rotate(k, formulas.rotation(k_positions[:, None] * frequencies))
    if window < 0:
        return formulas.attend(q, k, v).flatten(-2)
    allowed = (q_positions[:, None] - k_positions).abs() <= window
    return formulas.attend(q, k, v, allowed).masked_fill(~allowed.any(-1)[:, None, None], 0).flatten(-2)


@triton.jit
def turned(x, positions, frequencies, FIRST: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Channels FIRST .. FIRST + COLUMNS - 1 of rows at ``positions``, rotated, in float32."""
    o_pair = FIRST // 2 + tl.arange(0, COLUMNS // 2)
    b_frequency = tl.load(frequencies + o_pair, mask=o_pair < WIDTH // 2, other=0.0).to(tl.float32)
    cos, sin = cosine_sine(positions[:, None] * b_frequency[None, :])
    return rotate(x.to(tl.float32), cos, sin, x.shape[0], COLUMNS)


@triton.jit
def read_clock(
    q,
    k,
    v,
    q_positions,
    k_positions,
    frequencies,
    out,
    queries,
    keys,
    sq_row,
    sq_token,
    sk_row,
    sk_token,
    sv_row,
    sv_token,
    HEADS: tl.constexpr,
    SQ_HEAD: tl.constexpr,
    SK_HEAD: tl.constexpr,
    SV_HEAD: tl.constexpr,
    WINDOWED: tl.constexpr,
    WINDOW: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_Q queries of one head of one row; with a window, over the tiles between its first and its last key."""
    i_program = tl.program_id(0)
    q_tiles = tl.cdiv(queries, BLOCK_Q)
    i_tile = i_program % q_tiles
    i_head = (i_program // q_tiles) % HEADS
    i_row = (i_program // (q_tiles * HEADS)).to(tl.int64)

    o_query = i_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < queries
    at_query = tl.load(q_positions + tl.minimum(o_query, queries - 1)).to(tl.float32)
    p_query = q + i_row * sq_row + i_head * SQ_HEAD + o_query.to(tl.int64) * sq_token
    b_q, b_q_tail = load_head(p_query, m_query, WIDTH, MAIN, TAIL)
    scale: tl.constexpr = LOG2_E / WIDTH**0.5
    b_q = rounded(turned(b_q, at_query, frequencies, 0, MAIN, WIDTH) * scale, q.dtype.element_ty)
    if TAIL > 0:
        b_q_tail = rounded(turned(b_q_tail, at_query, frequencies, MAIN, TAIL, WIDTH) * scale, q.dtype.element_ty)

    begin = 0
    end = keys
    if WINDOWED:
        begin, end = band(k_positions, keys, tl.min(at_query, 0), tl.max(at_query, 0), WINDOW, BLOCK_K)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    main = tl.zeros((BLOCK_Q, MAIN), tl.float32)
    tail = main
    if TAIL > 0:
        tail = tl.zeros((BLOCK_Q, TAIL), tl.float32)
    for first in range(begin, end, BLOCK_K):
        o_key = first + tl.arange(0, BLOCK_K)
        m_key = o_key < keys
        at_key = tl.load(k_positions + o_key, mask=m_key, other=0.0).to(tl.float32)
        p_key = k + i_row * sk_row + i_head * SK_HEAD + o_key.to(tl.int64) * sk_token
        p_value = v + i_row * sv_row + i_head * SV_HEAD + o_key.to(tl.int64) * sv_token
        b_k, b_k_tail = load_head(p_key, m_key, WIDTH, MAIN, TAIL)
        b_v, b_v_tail = load_head(p_value, m_key, WIDTH, MAIN, TAIL)
        b_k = rounded(turned(b_k, at_key, frequencies, 0, MAIN, WIDTH), k.dtype.element_ty)
        if TAIL > 0:
            b_k_tail = rounded(turned(b_k_tail, at_key, frequencies, MAIN, TAIL, WIDTH), k.dtype.element_ty)
        m_pair = m_key[None, :]
        if WINDOWED:
            m_pair = m_pair & (tl.abs(at_query[:, None] - at_key[None, :]) <= WINDOW)
        logits = tl.where(m_pair, scores(b_q, b_q_tail, b_k, b_k_tail, TAIL), float("-inf"))
        top, total, main, tail = absorb(logits, b_v, b_v_tail, top, total, main, tail, TAIL)
    main, tail = settle(total, main, tail, TAIL)
    p_out = out + ((i_row * queries + o_query) * HEADS + i_head) * WIDTH
    store_head(p_out, m_query, main, tail, WIDTH, MAIN, TAIL)


@triton.jit
def band(k_positions, keys, earliest, latest, WINDOW: tl.constexpr, BLOCK_K: tl.constexpr):
    """The range of keys, from the start of a tile, that queries between ``earliest`` and ``latest`` can see.

    Reads the positions alone, 4 bytes a key. A little wider than the window, which the tiles apply exactly.
    """
    begin = keys
    end = 0
    for first in range(0, keys, 128):
        o_key = first + tl.arange(0, 128)
        at_key = tl.load(k_positions + o_key, mask=o_key < keys, other=float("inf")).to(tl.float32)
        margin: tl.constexpr = WINDOW * 1.001 + 0.001
        m_seen = (at_key >= earliest - margin) & (at_key <= latest + margin)
        begin = tl.minimum(begin, tl.min(tl.where(m_seen, o_key, keys), 0))
        end = tl.maximum(end, tl.max(tl.where(m_seen, o_key + 1, 0), 0))
    return begin // BLOCK_K * BLOCK_K, end


def prepare(
    q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, k_positions: Tensor, frequencies: Tensor, window: float
) -> tuple[Tensor, list[Launch]] | None:
    """One launch over all heads and rows."""
    rows, queries, heads, width = q.shape
    head = head_tiles(int(width))
    if head is None or not supported(q, k, v):
        return None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(rows, queries, heads * width)
    key = {"dtype": q.dtype, "width": int(width), "length": queries, "keys": k.shape[1]}
    choice = tiles.choose("rope_cross_attention", attention_tiles(q.dtype, head), **key)
    launch = Launch(
        read_clock,
        (-(-queries // choice["BLOCK_Q"]) * heads * rows,),
        {
            "q": q,
            "k": k,
            "v": v,
            "q_positions": q_positions.contiguous(),
            "k_positions": k_positions.contiguous(),
            "frequencies": frequencies.contiguous(),
            "out": out,
            "queries": queries,
            "keys": k.shape[1],
            "sq_row": q.stride(0),
            "sq_token": q.stride(1),
            "sk_row": k.stride(0),
            "sk_token": k.stride(1),
            "sv_row": v.stride(0),
            "sv_token": v.stride(1),
        },
        {
            "HEADS": int(heads),
            "SQ_HEAD": int(q.stride(2)),
            "SK_HEAD": int(k.stride(2)),
            "SV_HEAD": int(v.stride(2)),
            "WINDOWED": window >= 0,
            "WINDOW": float(window),
            **head,
        },
        choice,
    )
    return out, [launch]


rope_cross_attention = operation(reference, prepare)
