"""Cross-attention between two clocks: queries and keys carry rotary positions of their own.

    o = softmax(rotate(q, q_positions) rotate(k, k_positions)^T / sqrt(d)) v

where pair i of a token at position p is turned by p * frequencies[i] radians. With a ``window`` a query sees the keys
whose position differs from its own by at most that much. Row r reads context ``context_of_row[r]``, or none where that
is -1; without the tensor row r reads context r. The keys of its tail follow those of the context: they are a row's own,
stand at position 0 and are seen whatever the window. A query that sees no key reads 0.

q (R, N, n, d); k, v (C, M, n, d), C at least 1; q_positions (N,), k_positions (M,) on one clock; frequencies (d / 2,);
window in units of the positions, negative for none; context_of_row (R,) int64, from -1 to C - 1; tail_k, tail_v
(R, E, n, d). -> (R, N, n * d).

Positions make the direction: audio tokens that read video frames (SyncFlow's audio tower), video tokens that read
audio on the clock of the latent frames (Syncphony's Audio RoPE), either within a window (Harmony's local module). Rows
share a context where they differ in the audio alone; the tail changes every step where the context need not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, reference_ops
from .attention_ops import (
    LOG2_E,
    load_head,
    online_softmax_finish,
    online_softmax_update,
    rotate,
    rounded,
    scores,
    store_head,
)
from .fake_shapes import fake_cross_attention
from .launch import Launch, attention_tiles, head_tiles, operation, supported, tiles, tl, triton
from .rotate_keys import load_angles, rotate_keys
from .split_keys import combine_launch, part_buffers, store_part

SPLIT_KEYS = 1024  # from which several programs share the keys of a query
KEYS_FIRST = 2  # tiles of queries up to which each rotates the keys faster than a pass of its own does


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    frequencies: Tensor,
    window: float,
    context_of_row: Tensor | None = None,
    tail_k: Tensor | None = None,
    tail_v: Tensor | None = None,
) -> Tensor:
    """Attention with both sides rotated to their own positions."""
    q = reference_ops.rotate(q, reference_ops.rope_table(q_positions[:, None] * frequencies))
    k = reference_ops.rotate(k, reference_ops.rope_table(k_positions[:, None] * frequencies))
    allowed = None
    if window >= 0:
        allowed = (q_positions[None, :, None] - k_positions).abs() <= window  # (1, N, M)
    if context_of_row is not None:
        reads = (context_of_row >= 0)[:, None, None, None]
        k, v = (torch.where(reads, x[context_of_row.clamp(0)], 0) for x in (k, v))
        allowed = reads.expand(-1, -1, -1, k.shape[1]) if allowed is None else reads & allowed  # (R, 1, 1 or N, M)
    if tail_k is not None:
        assert tail_v is not None
        k, v = torch.cat((k, tail_k), 1), torch.cat((v, tail_v), 1)
        if allowed is not None:
            allowed = torch.cat((allowed, allowed.new_ones(*allowed.shape[:-1], tail_k.shape[1])), -1)
    if allowed is None or (tail_k is not None and tail_k.shape[1] > 0):  # no query is left without a key
        return reference_ops.attend(q, k, v, allowed).flatten(-2)
    blind = ~allowed.any(-1, keepdim=True)  # sees all for the softmax's sake: no derivative is NaN
    mixed = reference_ops.attend(q, k, v, allowed | blind)
    return mixed.masked_fill(blind.transpose(-3, -2), 0).flatten(-2)


def cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    frequencies: Tensor,
    window: float,
    context_of_row: Tensor | None = None,
    tail_k: Tensor | None = None,
    tail_v: Tensor | None = None,
) -> Tensor:
    """The same in one pass over the keys that a row may see."""
    clocks = q_positions, k_positions, frequencies
    found = native.cross_attention(
        q,
        k,
        v,
        context_of_row=context_of_row,
        rope=(
            reference_ops.rope_table(q_positions[:, None] * frequencies),
            reference_ops.rope_table(k_positions[:, None] * frequencies),
        ),
        positions=(q_positions, k_positions),
        window=window,
        tail=None if tail_k is None or tail_v is None else (tail_k, tail_v),
    )
    return reference(q, k, v, *clocks, window, context_of_row, tail_k, tail_v) if found is None else found


@triton.jit
def apply_rope(x, positions, frequencies, FIRST: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Channels FIRST .. FIRST + COLUMNS - 1 of rows at ``positions``, rotated, in float32."""
    cos, sin = load_angles(frequencies, positions, FIRST, COLUMNS, WIDTH)
    return rotate(x.to(tl.float32), cos, sin, x.shape[0], COLUMNS)


@triton.jit
def rope_cross_attention_kernel(
    q,
    k,
    v,
    q_positions,
    k_positions,
    frequencies,
    context_of_row,
    own_k,
    own_v,
    out,
    parts,
    totals,
    tops,
    queries,
    keys,
    own_keys,
    sq_row,
    sq_token,
    sk_context,
    sk_token,
    sv_context,
    sv_token,
    so_k_row,
    so_k_token,
    so_v_row,
    so_v_token,
    HEADS: tl.constexpr,
    SQ_HEAD: tl.constexpr,
    SK_HEAD: tl.constexpr,
    SV_HEAD: tl.constexpr,
    SO_K_HEAD: tl.constexpr,
    SO_V_HEAD: tl.constexpr,
    SHARED: tl.constexpr,
    OWN: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROTATED: tl.constexpr,
    WINDOWED: tl.constexpr,
    WINDOW: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """BLOCK_Q queries of one head of one row; with a window, over the tiles between its first and its last key.

    The row's own keys, its tail, follow the last one of the context in the same tile: a rotation to position 0 changes
    nothing. They, where not ``OWN``, and ``context_of_row``, where not ``SHARED``, are stand-ins that nothing reads.
    ``ALIGNED``: every head of every key begins at a multiple of 16 bytes. ``ROTATED``: ``k`` is rotated already. Axis 1
    of the grid shares the keys among SPLITS programs, whose results go to ``parts``, ``totals`` and ``tops``
    (``split_keys.py``), or with one of them to ``out``; nothing uses the others.
    """
    i_program = tl.program_id(0)
    q_tiles = tl.cdiv(queries, BLOCK_Q)
    i_tile = i_program % q_tiles
    i_head = ((i_program // q_tiles) % HEADS).to(tl.int64)
    i_row = (i_program // (q_tiles * HEADS)).to(tl.int64)
    i_context = i_row
    if SHARED:
        i_context = tl.load(context_of_row + i_row).to(tl.int64)
        keys = tl.where(i_context < 0, 0, keys)

    o_query = i_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < queries
    at_query = tl.load(q_positions + tl.minimum(o_query, queries - 1)).to(tl.float32)
    p_query = q + i_row * sq_row + i_head * SQ_HEAD + o_query.to(tl.int64) * sq_token
    b_q, b_q_tail = load_head(p_query, m_query, WIDTH, MAIN, TAIL)
    scale: tl.constexpr = LOG2_E / WIDTH**0.5
    b_q = rounded(apply_rope(b_q, at_query, frequencies, 0, MAIN, WIDTH) * scale, q.dtype.element_ty)
    if TAIL > 0:
        b_q_tail = rounded(apply_rope(b_q_tail, at_query, frequencies, MAIN, TAIL, WIDTH) * scale, q.dtype.element_ty)

    begin = 0
    end = keys
    if WINDOWED:
        begin, end = window_bounds(k_positions, keys, tl.min(at_query, 0), tl.max(at_query, 0), WINDOW, BLOCK_K)
        if OWN:
            begin = tl.minimum(begin, end)
    last = end
    if OWN:
        last = end + own_keys
    if SPLITS > 1:
        each = tl.cdiv(tl.cdiv(last - begin, SPLITS), BLOCK_K) * BLOCK_K
        begin += tl.program_id(1) * each
        last = tl.minimum(last, begin + each)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    main = tl.zeros((BLOCK_Q, MAIN), tl.float32)
    tail = main
    if TAIL > 0:
        tail = tl.zeros((BLOCK_Q, TAIL), tl.float32)
    least = tl.maximum(last, begin + 1)
    tl.assume(least > begin)  # a loop that may not run at all would serialise the matrix products
    for first in range(begin, least, BLOCK_K):
        o_key = first + tl.arange(0, BLOCK_K)
        m_key = o_key < last
        p_key = k + i_context * sk_context + i_head * SK_HEAD + o_key.to(tl.int64) * sk_token
        p_value = v + i_context * sv_context + i_head * SV_HEAD + o_key.to(tl.int64) * sv_token
        if OWN:
            o_own = (o_key - end).to(tl.int64)
            p_own_key = own_k + i_row * so_k_row + i_head * SO_K_HEAD + o_own * so_k_token
            p_own_value = own_v + i_row * so_v_row + i_head * SO_V_HEAD + o_own * so_v_token
            p_key = tl.where(o_key < end, p_key, p_own_key)
            p_value = tl.where(o_key < end, p_value, p_own_value)
            if ALIGNED:  # a choice between pointers loses what is known of both, and narrow loads are not pipelined
                p_key = tl.multiple_of(p_key, 16)
                p_value = tl.multiple_of(p_value, 16)
        b_k, b_k_tail = load_head(p_key, m_key, WIDTH, MAIN, TAIL)
        b_v, b_v_tail = load_head(p_value, m_key, WIDTH, MAIN, TAIL)
        if WINDOWED or not ROTATED:
            at_key = tl.load(k_positions + o_key, mask=o_key < end, other=0.0).to(tl.float32)
        if not ROTATED:
            b_k = rounded(apply_rope(b_k, at_key, frequencies, 0, MAIN, WIDTH), k.dtype.element_ty)
            if TAIL > 0:
                b_k_tail = rounded(apply_rope(b_k_tail, at_key, frequencies, MAIN, TAIL, WIDTH), k.dtype.element_ty)
        m_pair = m_key[None, :]
        if WINDOWED:
            m_near = tl.abs(at_query[:, None] - at_key[None, :]) <= WINDOW
            if OWN:
                m_near = m_near | (o_key >= end)[None, :]
            m_pair = m_pair & m_near
        logits = tl.where(m_pair, scores(b_q, b_q_tail, b_k, b_k_tail, TAIL), float("-inf"))
        top, total, main, tail = online_softmax_update(logits, b_v, b_v_tail, top, total, main, tail, TAIL)
    if SPLITS > 1:
        i_part = ((i_row * HEADS + i_head) * SPLITS + tl.program_id(1)) * queries
        store_part(parts, totals, tops, i_part, o_query, m_query, main, tail, total, top, WIDTH, MAIN, TAIL)
    else:
        main, tail = online_softmax_finish(total, main, tail, TAIL)
        p_out = out + ((i_row * queries + o_query) * HEADS + i_head) * WIDTH
        store_head(p_out, m_query, main, tail, WIDTH, MAIN, TAIL)


@triton.jit
def window_bounds(k_positions, keys, earliest, latest, WINDOW: tl.constexpr, BLOCK_K: tl.constexpr):
    """The range of keys, from the start of a tile, that queries between ``earliest`` and ``latest`` can see.

    Reads the positions alone, 4 bytes a key. A little wider than the window, which the tiles apply exactly.
    Where none is seen the range ends at 0, before it begins.
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


def plan_launches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    frequencies: Tensor,
    window: float,
    context_of_row: Tensor | None = None,
    tail_k: Tensor | None = None,
    tail_v: Tensor | None = None,
) -> tuple[Tensor, list[Launch]] | None:
    """The keys rotated once where several tiles of queries read them, the attention, and the combination of its parts.

    Long contexts are read by four programs, each a part: without a window, whose keys are few. Both choices depend on
    lengths alone, so that the result of a request does not depend on its batch.
    """
    rows, queries, heads, width = q.shape
    head = head_tiles(int(width))
    if head is None or not supported(q, k, v, tail_k, tail_v):
        return None
    assert (tail_k is None) == (tail_v is None)
    own = (k, v) if tail_k is None or tail_v is None else (tail_k, tail_v)
    q, k, v, own_k, own_v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, *own))
    out = q.new_empty(rows, queries, heads * width)
    key = {"dtype": q.dtype, "width": int(width), "length": queries, "keys": k.shape[1]}
    heuristic = {**attention_tiles(q.dtype, head), "SPLITS": 4 if window < 0 and k.shape[1] >= SPLIT_KEYS else 1}
    choice = tiles.choose("rope_cross_attention", heuristic, **key)
    k_positions, frequencies, launches = k_positions.contiguous(), frequencies.contiguous(), []
    if rotated := queries > KEYS_FIRST * choice["BLOCK_Q"] and k.shape[1] > 0:
        turned, before = rotate_keys(k[:, None], positions=(k_positions, frequencies))
        k, launches = turned[:, 0], [before]
    split = choice["SPLITS"] > 1
    buffers = part_buffers(q, choice["SPLITS"]) if split else (out, out, out)
    launch = Launch(
        rope_cross_attention_kernel,
        (-(-queries // choice["BLOCK_Q"]) * heads * rows, choice["SPLITS"]),
        {
            "q": q,
            "k": k,
            "v": v,
            "q_positions": q_positions.contiguous(),
            "k_positions": k_positions,
            "frequencies": frequencies,
            "context_of_row": k_positions if context_of_row is None else context_of_row.contiguous(),
            "own_k": own_k,
            "own_v": own_v,
            "out": out,
            **dict(zip(("parts", "totals", "tops"), buffers, strict=True)),
            "queries": queries,
            "keys": k.shape[1],
            "own_keys": 0 if tail_k is None else own_k.shape[1],
            "sq_row": q.stride(0),
            "sq_token": q.stride(1),
            "sk_context": k.stride(0),
            "sk_token": k.stride(1),
            "sv_context": v.stride(0),
            "sv_token": v.stride(1),
            "so_k_row": own_k.stride(0),
            "so_k_token": own_k.stride(1),
            "so_v_row": own_v.stride(0),
            "so_v_token": own_v.stride(1),
        },
        {
            "HEADS": int(heads),
            "SQ_HEAD": int(q.stride(2)),
            "SK_HEAD": int(k.stride(2)),
            "SV_HEAD": int(v.stride(2)),
            "SO_K_HEAD": int(own_k.stride(2)),
            "SO_V_HEAD": int(own_v.stride(2)),
            "SHARED": context_of_row is not None,
            "OWN": tail_k is not None,
            "ALIGNED": tail_k is not None and all(map(_aligned, (k, v, own_k, own_v))),
            "ROTATED": rotated,
            "WINDOWED": window >= 0,
            "WINDOW": float(window),
            **head,
        },
        choice,
    )
    return out, [*launches, launch, *([combine_launch(buffers, out)] if split else [])]


def _aligned(x: Tensor) -> bool:
    """Whether each of its rows begins at a multiple of 16 bytes, as allocations do."""
    steps = (x.storage_offset(), *x.stride()[:-1])
    return all(step * x.element_size() % 16 == 0 for step in steps)


rope_cross_attention = operation(reference, plan_launches, cpu, fake_cross_attention)
