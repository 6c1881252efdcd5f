"""Attention over keys that several programs share: each takes a part of them, and a second kernel combines the parts.

    o = sum_s 2^(top_s - top) part_s / sum_s 2^(top_s - top) total_s,   top = max_s top_s

with part_s the weighted sum of values of part s, total_s the sum of its weights and top_s the largest of its logits, in
units of log 2. parts (R, n, P, N, d), totals and tops (R, n, P, N), all float32. -> (R, N, n * d); 0 where every total
is 0. Without it few queries and many keys leave most of a GPU idle: 100 queries of 2 rows and 16 heads are 64 programs.
The number of parts depends on the keys alone, so that a request's result does not depend on its batch.
Source: FlashDecoding (Dao et al., 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_ops import store_head
from .launch import Launch, tiles, tl, triton


@triton.jit
def store_part(
    parts, totals, tops, i_part, o_query, m_query, main, tail, total, top, WIDTH: tl.constexpr, MAIN: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """What a program has of its keys: ``i_part`` is the place of the first query of its row, head and part."""
    o_row = i_part + o_query
    store_head(parts + o_row * WIDTH, m_query, main, tail, WIDTH, MAIN, TAIL)
    tl.store(totals + o_row, total, mask=m_query)
    tl.store(tops + o_row, top, mask=m_query)


@triton.jit
def combine_parts_kernel(
    parts,
    totals,
    tops,
    out,
    queries,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """BLOCK_Q queries of one head of one row."""
    i_head = tl.program_id(1).to(tl.int64)
    i_row = tl.program_id(2).to(tl.int64)
    o_query = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < queries
    o_channel = tl.arange(0, BLOCK)[None, :]
    m_value = m_query[:, None] & (o_channel < WIDTH)
    i_first = (i_row * HEADS + i_head) * PARTS * queries
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    for i in tl.static_range(PARTS):
        top = tl.maximum(top, tl.load(tops + i_first + i * queries + o_query, mask=m_query, other=float("-inf")))
    origin = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mixed = tl.zeros((BLOCK_Q, BLOCK), tl.float32)
    for i in tl.static_range(PARTS):
        o_row = i_first + i * queries + o_query
        weight = tl.exp2(tl.load(tops + o_row, mask=m_query, other=float("-inf")) - origin)
        total += weight * tl.load(totals + o_row, mask=m_query, other=0.0)
        part = tl.load(parts + o_row[:, None] * WIDTH + o_channel, mask=m_value, other=0.0)
        mixed += weight[:, None] * part
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    p_out = out + ((i_row * queries + o_query) * HEADS + i_head) * WIDTH
    store_head(p_out, m_query, mixed, mixed, WIDTH, BLOCK, 0)


def part_buffers(q: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what ``parts`` programs have of each query of q (R, N, n, d): parts, totals and tops."""
    rows, queries, heads, width = q.shape
    sums = q.new_empty(rows, heads, parts, queries, width, dtype=torch.float32)
    totals, tops = (q.new_empty(rows, heads, parts, queries, dtype=torch.float32) for _ in range(2))
    return sums, totals, tops


def combine_launch(buffers: tuple[Tensor, Tensor, Tensor], out: Tensor) -> Launch:
    """The launch that combines the parts into ``out`` (R, N, n * d); 16 queries a program, so that 100 fill the GPU."""
    parts, totals, tops = buffers
    rows, heads, count, queries, width = parts.shape
    heuristic = {"BLOCK_Q": 16, "num_warps": 4, "num_stages": 1}
    choice = tiles.choose("combine_parts", heuristic, dtype=out.dtype, width=int(width), length=queries)
    tensors = {"parts": parts, "totals": totals, "tops": tops, "out": out}
    block = 1 << max(0, int(width) - 1).bit_length()
    constants = {"HEADS": int(heads), "PARTS": int(count), "WIDTH": int(width), "BLOCK": block}
    grid = (-(-queries // choice["BLOCK_Q"]), heads, rows)
    return Launch(combine_parts_kernel, grid, {**tensors, "queries": queries}, constants, choice)
