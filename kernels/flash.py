"""Self-attention along one axis of packed tokens, tile by tile: the kernel behind ``spatial_attention`` and behind
``temporal_attention`` where its sequences are long.

    o = softmax(q' k'^T / sqrt(d)) v,   q' = RMSnorm(q) * q_weight, k' = RMSnorm(k) * k_weight, rotated or not

Without rope the norm of the keys costs no pass over them: with r_j = 1 / rms(k_j),

    q'_i . k'_j = r_j * (RMSnorm(q_i) * q_weight * k_weight) . k_j

so the keys go to the matrix units as they lie in memory, and the logits of key j are scaled by r_j. With rope and more
than ``KEYS_FIRST`` tokens a pass of its own normalises and rotates the keys once (``rotate_keys.py``).
"""

from __future__ import annotations

from torch import Tensor

from .attention_ops import (
    LOG2_E,
    inverse_rms,
    load_channels,
    load_head,
    load_rope,
    online_softmax_finish,
    online_softmax_update,
    rotate,
    rounded,
    scores,
    store_head,
)
from .launch import Launch, attention_tiles, head_tiles, tiles, tl, triton
from .rotate_keys import rotate_keys

KEYS_FIRST = 256  # tokens up to which four tiles of queries rotate the keys faster than another launch does


@triton.jit
def flash_attention_kernel(
    qkv,
    keys,
    q_weight,
    k_weight,
    rope,
    out,
    length,
    sequences,
    s_row,
    s_sequence,
    s_token,
    o_row,
    o_sequence,
    o_token,
    HEADS: tl.constexpr,
    S_PART: tl.constexpr,
    S_HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    ROTATED: tl.constexpr,
    WHOLE: tl.constexpr,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_Q queries of one head of one sequence of ``length`` tokens; a row holds ``sequences`` of them.

    The programs of one head and sequence follow each other, so that its keys and values stay in the L2 cache.
    s_* are the strides of ``qkv`` between rows, sequences and tokens, o_* those of ``out``. Where ``ROTATED`` the keys
    are those of ``keys`` (rows, sequences, length, HEADS, WIDTH), normalised and rotated; else nothing reads it.
    ``WHOLE``: BLOCK_K divides the length, and no key needs a mask.
    """
    i_program = tl.program_id(0)
    q_tiles = tl.cdiv(length, BLOCK_Q)
    i_tile = i_program % q_tiles
    i_head = ((i_program // q_tiles) % HEADS).to(tl.int64)
    i_sequence = (i_program // (q_tiles * HEADS)).to(tl.int64)
    i_row = i_sequence // sequences
    i_sequence = i_sequence % sequences

    o_query = i_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < length
    p_in = qkv + i_row * s_row + i_sequence * s_sequence + i_head * S_HEAD
    q, q_tail = load_head(p_in + o_query.to(tl.int64) * s_token, m_query, WIDTH, MAIN, TAIL)
    q_scale = inverse_rms(q, q_tail, EPS, WIDTH, TAIL)[:, None] * (LOG2_E / WIDTH**0.5)
    wq, wq_tail = load_channels(q_weight, WIDTH, MAIN, TAIL)
    wk, wk_tail = load_channels(k_weight, WIDTH, MAIN, TAIL)
    if ROTARY:
        p_rope = rope + o_query.to(tl.int64) * WIDTH
        cos, sin = load_rope(p_rope, m_query, 0, MAIN, WIDTH)
        q = rounded(rotate(q * q_scale * wq[None, :], cos, sin, BLOCK_Q, MAIN), qkv.dtype.element_ty)
        if TAIL > 0:
            cos, sin = load_rope(p_rope, m_query, MAIN, TAIL, WIDTH)
            q_tail = rounded(rotate(q_tail * q_scale * wq_tail[None, :], cos, sin, BLOCK_Q, TAIL), qkv.dtype.element_ty)
    else:
        q = rounded(q * q_scale * (wq * wk)[None, :], qkv.dtype.element_ty)
        if TAIL > 0:
            q_tail = rounded(q_tail * q_scale * (wq_tail * wk_tail)[None, :], qkv.dtype.element_ty)

    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    main = tl.zeros((BLOCK_Q, MAIN), tl.float32)
    tail = main
    if TAIL > 0:
        tail = tl.zeros((BLOCK_Q, TAIL), tl.float32)
    p_keys = keys + (i_row * sequences + i_sequence) * length * (HEADS * WIDTH) + i_head * WIDTH
    tl.assume(length > 0)  # a loop that may not run at all would serialise the matrix products
    for first in range(0, length, BLOCK_K):
        o_key = first + tl.arange(0, BLOCK_K)
        m_key = o_key < length
        if WHOLE:
            m_key = tl.full((BLOCK_K,), True, tl.int1)
        p_key = p_in + S_PART + o_key.to(tl.int64) * s_token
        if ROTATED:
            k, k_tail = load_head(p_keys + o_key.to(tl.int64) * (HEADS * WIDTH), m_key, WIDTH, MAIN, TAIL)
        else:
            k, k_tail = load_head(p_key, m_key, WIDTH, MAIN, TAIL)
            k_scale = inverse_rms(k, k_tail, EPS, WIDTH, TAIL)
        if ROTARY and not ROTATED:
            p_key_rope = rope + o_key.to(tl.int64) * WIDTH
            k_cos, k_sin = load_rope(p_key_rope, m_key, 0, MAIN, WIDTH)
            k = rounded(rotate(k * k_scale[:, None] * wk[None, :], k_cos, k_sin, BLOCK_K, MAIN), qkv.dtype.element_ty)
            if TAIL > 0:
                k_cos_tail, k_sin_tail = load_rope(p_key_rope, m_key, MAIN, TAIL, WIDTH)
                k_tail = k_tail * k_scale[:, None] * wk_tail[None, :]
                k_tail = rounded(rotate(k_tail, k_cos_tail, k_sin_tail, BLOCK_K, TAIL), qkv.dtype.element_ty)
        logits = scores(q, q_tail, k, k_tail, TAIL)
        if not ROTARY:
            logits = logits * k_scale[None, :]
        if not WHOLE:
            logits = tl.where(m_key[None, :], logits, float("-inf"))
        v, v_tail = load_head(p_key + S_PART, m_key, WIDTH, MAIN, TAIL)
        top, total, main, tail = online_softmax_update(logits, v, v_tail, top, total, main, tail, TAIL)
    main, tail = online_softmax_finish(total, main, tail, TAIL)
    p_out = out + i_row * o_row + i_sequence * o_sequence + i_head * WIDTH + o_query.to(tl.int64) * o_token
    store_head(p_out, m_query, main, tail, WIDTH, MAIN, TAIL)


def flash_launches(
    name: str,
    qkv: Tensor,
    out: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    rope: Tensor | None,
    eps: float,
    *,
    axis: int,
) -> list[Launch]:
    """Attention over axis 1 (frames) or 2 (tokens) of qkv (R, T, S, 3, n, d) into out (R, T, S, n * d).

    The caller has checked the head width and that heads are contiguous; ``name`` is the operation whose tiles to take.
    """
    rows, heads, width = qkv.shape[0], qkv.shape[4], qkv.shape[5]
    other = 3 - axis
    length, sequences = qkv.shape[axis], qkv.shape[other]
    head = head_tiles(int(width))
    assert head is not None
    key = {"dtype": qkv.dtype, "width": int(width), "length": length, "keys": length}
    # tiles that leave no register free are for lengths without a mask
    choice = tiles.choose(name, attention_tiles(qkv.dtype, head), **key, whole=int(length % 64 == 0))
    keys, before = qkv, []
    if rotated := rope is not None and length > KEYS_FIRST:
        k = qkv.select(3, 1).transpose(1, 2) if axis == 1 else qkv.select(3, 1)
        keys, first = rotate_keys(k, norm=(k_weight, rope, eps))
        before = [first]
    blocks = -(-length // choice["BLOCK_Q"])
    launch = Launch(
        flash_attention_kernel,
        (blocks * heads * rows * sequences,),
        {
            "qkv": qkv,
            "keys": keys,
            "q_weight": q_weight,
            "k_weight": k_weight,
            "rope": q_weight if rope is None else rope,
            "out": out,
            "length": length,
            "sequences": sequences,
            "s_row": qkv.stride(0),
            "s_sequence": qkv.stride(other),
            "s_token": qkv.stride(axis),
            "o_row": out.stride(0),
            "o_sequence": out.stride(other),
            "o_token": out.stride(axis),
        },
        {
            "HEADS": int(heads),
            "S_PART": int(qkv.stride(3)),
            "S_HEAD": int(qkv.stride(4)),
            "ROTARY": rope is not None,
            "ROTATED": rotated,
            "WHOLE": bool(length % choice["BLOCK_K"] == 0),
            "EPS": eps,
            **head,
        },
        choice,
    )
    return [*before, launch]
