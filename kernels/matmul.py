"""y = epilogue(x W^T + b): the tiled matrix product behind ``linear_gelu``, ``gated_linear`` and ``fp8_linear``.

x (M, K) tokens, W (N, K) as ``nn.Linear`` holds it, b (N,); sums in float32, rounded once, after the epilogue.

A program makes one tile. Three stages of 128 x 128 x 64 in bfloat16 take 96 KiB, so that two programs share a
multiprocessor and one multiplies while the other fills its pipeline or runs its epilogue: K = 1152 is only 18 steps. A
persistent loop would hide them no better. What decides is the last wave: tiles on 132 multiprocessors, and the share of
the waves that is used,

    M        N = 1152            N = 3456            N = 4608
    4096      288,  2.2:  73 %    864,  6.5:  94 %    1152,   8.7:  97 %
    16384    1152,  8.7:  97 %   3456, 26.2:  97 %    4608,  34.9: 100 %
    65536    4608, 34.9: 100 %  13824, 104.7: 100 %  18432, 139.6: 100 %

so only M = 4096, N = 1152 loses much. Halving K there would make 3 waves 2.5 (3 us of 18 at K = 1152) and move 38 MB of
partial sums (7 us from the L2 cache); and a request's sums would depend on the size of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .attention_ops import INTERPRETED, dot_add
from .launch import Launch, libraries_allowed, tiles, tl, triton

GELU_RATE = tl.constexpr(-2 * math.sqrt(2 / math.pi) * math.log2(math.e))  # tanh as a power of 2


@triton.jit
def gelu_tanh(x):
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    return x / (1.0 + tl.exp2((x + 0.044715 * x * x * x) * GELU_RATE))


@triton.jit
def epilogue(
    y,
    o_m,
    o_n,
    i_token,
    bias,
    x_scales,
    weight_scales,
    residual,
    table,
    modulation,
    out,
    tokens,
    tokens_of_row,
    tokens_of_frame,
    s_row,
    s_frame,
    N: tl.constexpr,
    SCALED: tl.constexpr,
    GELU: tl.constexpr,
    GATED: tl.constexpr,
    PART: tl.constexpr,
    S_PART: tl.constexpr,
    UNIFORM: tl.constexpr,
):
    """Epilogue and store of products y (ROWS, COLUMNS): tokens o_m, the first of them i_token, and channels o_n."""
    m_m, m_n = o_m < tokens, o_n < N
    if SCALED:
        y *= tl.load(x_scales + o_m, mask=m_m, other=0.0)[:, None]
        y *= tl.load(weight_scales + o_n, mask=m_n, other=0.0)[None, :]
    y += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    m_out = m_m[:, None] & m_n[None, :]
    o_tile = i_token.to(tl.int64) * N
    o_out = tl.arange(0, y.shape[0])[:, None] * N + o_n[None, :]
    if GELU:
        y = gelu_tanh(y)
    if GATED:
        o_token = o_m
        if UNIFORM:
            o_token = i_token
        o_gate = (o_token // tokens_of_row).to(tl.int64) * s_row
        o_gate += (o_token % tokens_of_row // tokens_of_frame).to(tl.int64) * s_frame
        p_gate = modulation + PART * S_PART + o_n
        if UNIFORM:
            gate = tl.load(p_gate + o_gate, mask=m_n, other=0.0).to(tl.float32)[None, :]
        else:
            gate = tl.load(p_gate[None, :] + o_gate[:, None], mask=m_out, other=0.0).to(tl.float32)
        gate += tl.load(table + PART * N + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        y = tl.load(residual + o_tile + o_out, mask=m_out, other=0.0).to(tl.float32) + gate * y
    tl.store(out + o_tile + o_out, y.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def matmul_kernel(
    x,
    weight,
    bias,
    x_scales,
    weight_scales,
    residual,
    table,
    modulation,
    out,
    tokens,
    tokens_of_row,
    tokens_of_frame,
    s_row,
    s_frame,
    N: tl.constexpr,
    K: tl.constexpr,
    S_X: tl.constexpr,
    S_WEIGHT: tl.constexpr,
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
    GELU: tl.constexpr,
    GATED: tl.constexpr,
    PART: tl.constexpr,
    S_PART: tl.constexpr,
    UNIFORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A tile of BLOCK_M tokens and BLOCK_N channels.

    SCALED: 8-bit codes, with a scale for every token of x and every channel of W; the running sum stays in the matrix
    units where FAST, else they give the sum of BLOCK_K products to float32. GELU: its tanh form. GATED: times
    ``table[PART] + modulation[row, frame, PART]``, plus ``residual``; s_row, s_frame and S_PART stride ``modulation``,
    and UNIFORM says that a tile lies within one of its rows and frames.
    Programs go through GROUP tiles of tokens for each tile of channels, so that both are found in the L2 cache.
    """
    i_program = tl.program_id(0)
    m_tiles = tl.cdiv(tokens, BLOCK_M)
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_first = i_program // (GROUP * n_tiles) * GROUP
    height = tl.minimum(m_tiles - i_first, GROUP)
    i_m = i_first + i_program % (GROUP * n_tiles) % height
    i_n = i_program % (GROUP * n_tiles) // height
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)

    # Rows beyond the end repeat the last one; only the last step along K can need a mask.
    p_x = x + tl.minimum(o_m, tokens - 1).to(tl.int64)[:, None] * S_X + o_k[None, :]
    p_weight = weight + tl.minimum(o_n, N - 1).to(tl.int64)[:, None] * S_WEIGHT + o_k[None, :]
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            a = tl.load(p_x + first)
            b = tl.load(p_weight + first)
        else:
            m_k = (first + o_k < K)[None, :]
            a = tl.load(p_x + first, mask=m_k, other=0.0)
            b = tl.load(p_weight + first, mask=m_k, other=0.0)
        if SCALED and not FAST and not INTERPRETED:
            y = tl.dot(a, tl.trans(b), y, max_num_imprecise_acc=BLOCK_K)
        else:
            y = dot_add(a, tl.trans(b), y)

    i_token = i_m * BLOCK_M
    if BLOCK_N < 128:
        epilogue(
            y, o_m, o_n, i_token, bias, x_scales, weight_scales, residual, table, modulation, out, tokens,
            tokens_of_row, tokens_of_frame, s_row, s_frame, N, SCALED, GELU, GATED, PART, S_PART, UNIFORM,
        )  # fmt: skip
    else:  # one half after the other, in half the registers
        left, right = tl.split(tl.permute(tl.reshape(y, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        o_left = i_n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        epilogue(
            left, o_m, o_left, i_token, bias, x_scales, weight_scales, residual, table, modulation, out, tokens,
            tokens_of_row, tokens_of_frame, s_row, s_frame, N, SCALED, GELU, GATED, PART, S_PART, UNIFORM,
        )  # fmt: skip
        epilogue(
            right, o_m, o_left + BLOCK_N // 2, i_token, bias, x_scales, weight_scales, residual, table, modulation, out,
            tokens, tokens_of_row, tokens_of_frame, s_row, s_frame, N, SCALED, GELU, GATED, PART, S_PART, UNIFORM,
        )  # fmt: skip


def choose_tiles(name: str, x: Tensor, weight: Tensor, *, library: bool) -> tuple[dict[str, int], bool]:
    """Tiles for x (M, K) times W (N, K), and whether the Triton kernel is to be launched at all.

    ``TRITON`` in the rules of a GPU says so; without a rule a product that a library makes is left to it. Where there
    is no GPU, the interpreter and the ahead-of-time compiler, there is no library.

    BLOCK_K depends on the type alone: the order of the sums is the same at every M, and so is a request's result in
    every batch.
    """
    m, n, k = x.shape[0], int(weight.shape[0]), int(x.shape[1])
    bytes_each = x.element_size()
    large = bytes_each < 4 and -(-m // 128) * -(-n // 128) >= 132
    heuristic = {
        "TRITON": 0 if library and libraries_allowed() else 1,
        "BLOCK_M": 128 if large else 64,
        "BLOCK_N": 128 if large else 64,
        "BLOCK_K": {1: 128, 2: 64, 4: 32}[bytes_each],
        "GROUP": 8,
        "num_warps": 8 if large else 4,
        "num_stages": 3,
    }
    choice = tiles.choose(name, heuristic, dtype=x.dtype, tokens=m, n=n, k=k)
    return choice, bool(choice.pop("TRITON")) or x.device.type != "cuda"


def matmul_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    choice: Mapping[str, int],
    *,
    gelu: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
    fast_accum: bool = True,
    gate: tuple[Tensor, Tensor, Tensor, int] | None = None,
) -> Launch:
    """out (M, N) from x (M, K) and W (N, K), whose last axes are contiguous.

    ``scales`` (M,) and (N,) of 8-bit codes, whose sums ``fast_accum`` leaves to the matrix units; ``gate`` is residual
    (R, T, S, N), table (P, N), modulation (R, T or 1, P, N) and the part that is the gate.
    """
    x_scales, weight_scales = scales or (bias, bias)
    arguments: dict[str, Tensor | int] = {"residual": bias, "table": bias, "modulation": bias}
    arguments |= dict.fromkeys(("tokens_of_row", "tokens_of_frame", "s_row", "s_frame"), 1)
    constants: dict[str, Any] = {"PART": 0, "S_PART": 0, "UNIFORM": True}
    if gate is not None:
        residual, table, modulation, part = gate
        _, frames, tokens, _ = residual.shape
        of_row = frames * tokens
        of_frame = of_row if modulation.shape[1] == 1 else tokens
        arguments = {
            "residual": residual,
            "table": table,
            "modulation": modulation,
            "tokens_of_row": of_row,
            "tokens_of_frame": of_frame,
            "s_row": modulation.stride(0),
            "s_frame": modulation.stride(1),
        }
        uniform = of_frame % choice["BLOCK_M"] == 0
        constants = {"PART": part, "S_PART": int(modulation.stride(2)), "UNIFORM": uniform}
    m, n = x.shape[0], int(weight.shape[0])
    return Launch(
        matmul_kernel,
        (-(-m // choice["BLOCK_M"]) * -(-n // choice["BLOCK_N"]),),
        {
            "x": x,
            "weight": weight,
            "bias": bias,
            "x_scales": x_scales,
            "weight_scales": weight_scales,
            "out": out,
            "tokens": m,
            **arguments,
        },
        {
            "N": n,
            "K": int(x.shape[1]),
            "S_X": int(x.stride(0)),
            "S_WEIGHT": int(weight.stride(0)),
            "SCALED": scales is not None,
            "FAST": fast_accum,
            "GELU": gelu,
            "GATED": gate is not None,
            **constants,
        },
        choice,
    )


def flat(x: Tensor) -> Tensor:
    """(..., K) as (M, K) with contiguous rows, without a copy where its strides allow."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()
