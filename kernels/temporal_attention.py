"""Rotary self-attention over the T tokens of each spatial position, from the packed projection to token order.

    q, k = rotate(RMSnorm(q) * q_weight, rope), rotate(RMSnorm(k) * k_weight, rope)
    o[r, :, s] = softmax(q[r, :, s] k[r, :, s]^T / sqrt(d)) v[r, :, s]

qkv (R, T, S, 3, n, d), q_weight and k_weight (d,), rope (T, d / 2, 2) cosine and sine of every position and pair.
-> (R, T, S, n * d). The audio tower's self-attention is the case S = 1. Source: Open-Sora STDiT3's temporal block
(SyncFlow section 3.2).
"""

from __future__ import annotations

import math

from torch import Tensor

from . import native, reference_ops
from .attention_ops import (
    LOG2_E,
    dot,
    inverse_rms,
    load_channels,
    load_head,
    load_rope,
    rotate,
    rounded,
    scores,
    store_head,
)
from .fake_shapes import fake_self_attention
from .flash import flash_launches
from .launch import Launch, head_tiles, operation, supported, tiles, tl, triton


def reference(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float) -> Tensor:
    """Attention over axis T with head norm and rotary embedding on q and k."""
    q, k, v = qkv.transpose(1, 2).unbind(3)  # (R, S, T, n, d)
    q = reference_ops.rotate(reference_ops.head_norm(q, q_weight, eps), rope)
    k = reference_ops.rotate(reference_ops.head_norm(k, k_weight, eps), rope)
    return reference_ops.attend(q, k, v).flatten(-2).transpose(1, 2)


def cpu(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float) -> Tensor:
    """The same in one pass over every position."""
    found = native.self_attention(qkv, q_weight, k_weight, rope, eps, 1)
    return reference(qkv, q_weight, k_weight, rope, eps) if found is None else found


@triton.jit
def temporal_attention_kernel(
    qkv,
    q_weight,
    k_weight,
    rope,
    out,
    frames,
    tokens,
    positions,
    s_row,
    s_frame,
    s_token,
    HEADS: tl.constexpr,
    S_PART: tl.constexpr,
    S_HEAD: tl.constexpr,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS_EACH: tl.constexpr,
):
    """HEADS_EACH heads of ``positions`` neighbouring spatial positions, whose sequences share a tile of ROWS rows.

    Row i of a tile is frame i % frames of position i // frames; a query sees the keys of its own position.
    """
    i_heads = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1).to(tl.int64)
    i_row = tl.program_id(2).to(tl.int64)
    o_row = tl.arange(0, ROWS)
    o_position, o_frame = o_row // frames, (o_row % frames).to(tl.int64)
    o_token = i_tile * positions + o_position
    m_row = (o_position < positions) & (o_token < tokens)
    same = o_position[:, None] == o_position[None, :]

    p_rope = rope + o_frame * WIDTH
    cos, sin = load_rope(p_rope, m_row, 0, MAIN, WIDTH)
    cos_tail, sin_tail = cos, sin
    if TAIL > 0:
        cos_tail, sin_tail = load_rope(p_rope, m_row, MAIN, TAIL, WIDTH)
    wq, wq_tail = load_channels(q_weight, WIDTH, MAIN, TAIL)
    wk, wk_tail = load_channels(k_weight, WIDTH, MAIN, TAIL)

    p_in = qkv + i_row * s_row + o_frame * s_frame + o_token * s_token
    p_out = out + ((i_row * frames + o_frame) * tokens + o_token) * (HEADS * WIDTH)
    for i in tl.static_range(HEADS_EACH):
        i_head = i_heads * HEADS_EACH + i
        q, q_tail = load_head(p_in + i_head * S_HEAD, m_row, WIDTH, MAIN, TAIL)
        k, k_tail = load_head(p_in + i_head * S_HEAD + S_PART, m_row, WIDTH, MAIN, TAIL)
        v, v_tail = load_head(p_in + i_head * S_HEAD + 2 * S_PART, m_row, WIDTH, MAIN, TAIL)
        q_scale = inverse_rms(q, q_tail, EPS, WIDTH, TAIL)[:, None] * (LOG2_E / WIDTH**0.5)
        k_scale = inverse_rms(k, k_tail, EPS, WIDTH, TAIL)[:, None]
        q = rounded(rotate(q * q_scale * wq[None, :], cos, sin, ROWS, MAIN), v.dtype)
        k = rounded(rotate(k * k_scale * wk[None, :], cos, sin, ROWS, MAIN), v.dtype)
        if TAIL > 0:
            q_tail = rounded(rotate(q_tail * q_scale * wq_tail[None, :], cos_tail, sin_tail, ROWS, TAIL), v.dtype)
            k_tail = rounded(rotate(k_tail * k_scale * wk_tail[None, :], cos_tail, sin_tail, ROWS, TAIL), v.dtype)
        logits = tl.where(same, scores(q, q_tail, k, k_tail, TAIL), float("-inf"))
        top = tl.max(logits, 1)
        weights = tl.exp2(logits - top[:, None])
        share = (1.0 / tl.sum(weights, 1))[:, None]
        weights = rounded(weights, v.dtype)
        mixed = dot(weights, v) * share
        mixed_tail = mixed
        if TAIL > 0:
            mixed_tail = dot(weights, v_tail) * share
        store_head(p_out + i_head * WIDTH, m_row, mixed, mixed_tail, WIDTH, MAIN, TAIL)


def plan_launches(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float
) -> tuple[Tensor, list[Launch]] | None:
    """Short sequences share tiles, long ones are walked tile by tile.

    64 rows a tile: at T = 8 the masked part of the products costs 1.3 GFLOP a layer of the full-size model, less time
    than its 38 MB take, and 128 rows would double that. One head a program of 8 warps keeps a thread below 128
    registers; the heads of a token follow each other, so that the sectors they share come from memory once.
    """
    rows, frames, tokens, _, heads, width = qkv.shape
    head = head_tiles(int(width))
    if head is None or not supported(qkv) or qkv.stride(-1) != 1:
        return None
    out = qkv.new_empty(rows, frames, tokens, heads * width)
    q_weight, k_weight, rope = q_weight.contiguous(), k_weight.contiguous(), rope.contiguous()
    wide = head["MAIN"] + head["TAIL"] > 80
    heuristic = {"ROWS": 32 if wide else 64, "HEADS_EACH": 1, "num_warps": 8, "num_stages": 1}
    choice = tiles.choose("temporal_attention", heuristic, dtype=qkv.dtype, width=int(width), length=frames)
    if frames > choice["ROWS"]:
        return out, flash_launches("flash", qkv, out, q_weight, k_weight, rope, eps, axis=1)
    positions = choice["ROWS"] // max(frames, 1)
    choice["HEADS_EACH"] = math.gcd(int(heads), choice["HEADS_EACH"])  # a rule of another model's heads leaves none out
    launch = Launch(
        temporal_attention_kernel,
        (heads // choice["HEADS_EACH"], -(-tokens // positions), rows) if frames else (0,),
        {
            "qkv": qkv,
            "q_weight": q_weight,
            "k_weight": k_weight,
            "rope": rope,
            "out": out,
            "frames": frames,
            "tokens": tokens,
            "positions": positions,
            "s_row": qkv.stride(0),
            "s_frame": qkv.stride(1),
            "s_token": qkv.stride(2),
        },
        {
            "HEADS": int(heads),
            "S_PART": int(qkv.stride(3)),
            "S_HEAD": int(qkv.stride(4)),
            "EPS": eps,
            **head,
        },
        choice,
    )
    return out, [launch]


temporal_attention = operation(reference, plan_launches, cpu, fake_self_attention)
