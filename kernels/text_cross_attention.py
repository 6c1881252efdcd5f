"""Cross-attention of all tokens of a row to the text of its prompt, whose keys and values are computed once a prompt.

    o[r] = softmax(q[r] k[p]^T / sqrt(d)) v[p],  p = text_of_row[r], over the first lengths[p] text tokens

q (R, N, n, d); k, v (P, L, n, d); lengths (P,) int, each at least 1; text_of_row (R,) int. -> (R, N, n * d).
Source: Open-Sora STDiT3's cross-attention, cached per prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .attention_ops import LOG2_E, load_head, online_softmax_finish, online_softmax_update, rounded, scores, store_head
from .fake_shapes import fake_cross_attention
from .launch import Launch, attention_tiles, head_tiles, operation, supported, tiles, tl, triton
from .reference_ops import attend


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, text_of_row: Tensor) -> Tensor:
    """Attention over the text of each row, masked by its length."""
    allowed = torch.arange(k.shape[1], device=k.device) < lengths[text_of_row, None]  # (R, L)
    return attend(q, k[text_of_row], v[text_of_row], allowed[:, None, None]).flatten(-2)


def cpu(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, text_of_row: Tensor) -> Tensor:
    """The same in one pass over the text of every row."""
    found = native.cross_attention(q, k, v, context_of_row=text_of_row, lengths=lengths)
    return reference(q, k, v, lengths, text_of_row) if found is None else found


@triton.jit
def text_cross_attention_kernel(
    q,
    k,
    v,
    lengths,
    text_of_row,
    out,
    queries,
    sq_row,
    sq_token,
    sk_text,
    sk_token,
    sv_text,
    sv_token,
    HEADS: tl.constexpr,
    SQ_HEAD: tl.constexpr,
    SK_HEAD: tl.constexpr,
    SV_HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_Q queries of one head of one row, over the tokens of its text that count; tiles beyond them are not read.

    The programs of a head and a row follow each other: its text comes from memory once and from the L2 cache after.
    """
    i_program = tl.program_id(0)
    q_tiles = tl.cdiv(queries, BLOCK_Q)
    i_tile = i_program % q_tiles
    i_head = ((i_program // q_tiles) % HEADS).to(tl.int64)
    i_row = (i_program // (q_tiles * HEADS)).to(tl.int64)
    i_text = tl.load(text_of_row + i_row).to(tl.int64)
    length = tl.load(lengths + i_text).to(tl.int32)

    o_query = i_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < queries
    p_query = q + i_row * sq_row + i_head * SQ_HEAD + o_query.to(tl.int64) * sq_token
    b_q, b_q_tail = load_head(p_query, m_query, WIDTH, MAIN, TAIL)
    scale: tl.constexpr = LOG2_E / WIDTH**0.5
    b_q = rounded(b_q.to(tl.float32) * scale, q.dtype.element_ty)
    if TAIL > 0:
        b_q_tail = rounded(b_q_tail.to(tl.float32) * scale, q.dtype.element_ty)

    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    main = tl.zeros((BLOCK_Q, MAIN), tl.float32)
    tail = main
    if TAIL > 0:
        tail = tl.zeros((BLOCK_Q, TAIL), tl.float32)
    p_key = k + i_text * sk_text + i_head * SK_HEAD
    p_value = v + i_text * sv_text + i_head * SV_HEAD
    tl.assume(length > 0)  # a loop that may not run at all would serialise the matrix products
    for first in range(0, length, BLOCK_K):
        o_key = first + tl.arange(0, BLOCK_K)
        m_key = o_key < length
        o_token = o_key.to(tl.int64)
        b_k, b_k_tail = load_head(p_key + o_token * sk_token, m_key, WIDTH, MAIN, TAIL)
        b_v, b_v_tail = load_head(p_value + o_token * sv_token, m_key, WIDTH, MAIN, TAIL)
        logits = tl.where(m_key[None, :], scores(b_q, b_q_tail, b_k, b_k_tail, TAIL), float("-inf"))
        top, total, main, tail = online_softmax_update(logits, b_v, b_v_tail, top, total, main, tail, TAIL)
    main, tail = online_softmax_finish(total, main, tail, TAIL)
    p_out = out + ((i_row * queries + o_query) * HEADS + i_head) * WIDTH
    store_head(p_out, m_query, main, tail, WIDTH, MAIN, TAIL)


def plan_launches(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, text_of_row: Tensor
) -> tuple[Tensor, list[Launch]] | None:
    """One launch over all heads and rows."""
    rows, queries, heads, width = q.shape
    head = head_tiles(int(width))
    if head is None or not supported(q, k, v):
        return None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(rows, queries, heads * width)
    key = {"dtype": q.dtype, "width": int(width), "length": queries, "keys": k.shape[1]}
    choice = tiles.choose("text_cross_attention", attention_tiles(q.dtype, head), **key)
    launch = Launch(
        text_cross_attention_kernel,
        (-(-queries // choice["BLOCK_Q"]) * heads * rows,),
        {
            "q": q,
            "k": k,
            "v": v,
            "lengths": lengths.contiguous(),
            "text_of_row": text_of_row.contiguous(),
            "out": out,
            "queries": queries,
            "sq_row": q.stride(0),
            "sq_token": q.stride(1),
            "sk_text": k.stride(0),
            "sk_token": k.stride(1),
            "sv_text": v.stride(0),
            "sv_token": v.stride(1),
        },
        {
            "HEADS": int(heads),
            "SQ_HEAD": int(q.stride(2)),
            "SK_HEAD": int(k.stride(2)),
            "SV_HEAD": int(v.stride(2)),
            **head,
        },
        choice,
    )
    return out, [launch]


text_cross_attention = operation(reference, plan_launches, cpu, fake_cross_attention)
