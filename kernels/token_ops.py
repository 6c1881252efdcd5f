"""Pieces that the row-wise operations share: tokens of any width, the modulation of their row and frame, layer norm.

A token of WIDTH channels is a tile of MAIN columns and, where TAIL > 0, a second one of TAIL columns that holds the
rest, as in ``attention_ops``: 1152 in 1024 + 256 (128 in float32), where the next power of two would be 2048.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .attention_ops import load_channels
from .launch import Launch, tiles, tl, triton
from .launch.launching import DTYPES

WIDEST = 4096  # channels; a wider token does not fit in the registers of a program


@triton.jit
def token_offsets(
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The tokens of this program: axis 0 of the grid is the tile, axis 1 the frame, axis 2 the row.

    ``CONTIGUOUS``: x is contiguous, and WIDTH tells the compiler how its tokens are aligned; else s_* are its strides.
    -> offsets in x, offsets in a contiguous tensor, which tokens exist, each (TOKENS,).
    """
    o_token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    i_frame = tl.program_id(1).to(tl.int64)
    i_row = tl.program_id(2).to(tl.int64)
    o_contiguous = ((i_row * frames + i_frame) * tokens + o_token) * WIDTH
    o_x = o_contiguous
    if not CONTIGUOUS:
        o_x = i_row * s_row + i_frame * s_frame + o_token * s_token
    return o_x, o_contiguous, o_token < tokens


@triton.jit
def load_modulation(
    table,
    modulation,
    s_mod_row,
    s_mod_frame,
    S_PART: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
):
    """``table[PART] + modulation[row, frame, PART]`` of this program in float32. -> (MAIN,), (TAIL,)."""
    i_frame, i_row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    p_modulation = modulation + i_row * s_mod_row + i_frame * s_mod_frame
    own, own_tail = load_channels(table + PART * WIDTH, WIDTH, MAIN, TAIL)
    step, step_tail = load_channels(p_modulation + PART * S_PART, WIDTH, MAIN, TAIL)
    return own + step, own_tail + step_tail


@triton.jit
def normalize(x, x_tail, EPS: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """(x - mean) / sqrt(variance + eps) of every token in float32: the mean first, then the squares about it.

    Channels beyond WIDTH hold zero, before and after. -> (TOKENS, MAIN), (TOKENS, TAIL).
    """
    x = x.to(tl.float32)
    total = tl.sum(x, 1)
    if TAIL > 0:
        x_tail = x_tail.to(tl.float32)
        total += tl.sum(x_tail, 1)
    mean = (total / WIDTH)[:, None]
    x = x - mean
    if MAIN > WIDTH:
        x = tl.where(tl.arange(0, MAIN)[None, :] < WIDTH, x, 0.0)
    squares = tl.sum(x * x, 1)
    if TAIL > 0:
        x_tail = tl.where(MAIN + tl.arange(0, TAIL)[None, :] < WIDTH, x_tail - mean, 0.0)
        squares += tl.sum(x_tail * x_tail, 1)
    scale = tl.rsqrt(squares / WIDTH + EPS)[:, None]
    x = x * scale
    if TAIL > 0:
        x_tail = x_tail * scale
    return x, x_tail


@triton.jit
def modulate(x, x_tail, shift, shift_tail, scale, scale_tail, TAIL: tl.constexpr):
    """x * (1 + scale) + shift. x (TOKENS, MAIN), shift and scale (MAIN,), and the same of the tail."""
    x = x * (1.0 + scale)[None, :] + shift[None, :]
    if TAIL > 0:
        x_tail = x_tail * (1.0 + scale_tail)[None, :] + shift_tail[None, :]
    return x, x_tail


@triton.jit
def add_branch(x, x_tail, branch, branch_tail, gate, gate_tail, TAIL: tl.constexpr):
    """x + gate * branch in float32. x and branch (TOKENS, MAIN), gate (MAIN,), and the same of the tail."""
    x = x.to(tl.float32) + gate[None, :] * branch.to(tl.float32)
    if TAIL > 0:
        x_tail = x_tail.to(tl.float32) + gate_tail[None, :] * branch_tail.to(tl.float32)
    return x, x_tail


def supported_tokens(x: Tensor, *modulation: Tensor | None) -> bool:
    """Whether the kernels take these tokens and tables: float32, float16 or bfloat16, at most ``WIDEST`` channels.

    Tables and modulation may be of another of these types than the tokens.
    """
    types = {tensor.dtype for tensor in (x, *modulation) if tensor is not None}
    return types <= set(DTYPES) and 1 <= x.shape[-1] <= WIDEST


def token_tiles(width: int, bytes_each: int) -> dict[str, int]:
    """Constants WIDTH, MAIN and TAIL for tokens of ``width`` channels of ``bytes_each`` bytes.

    Two tiles are each at least as wide as what a program loads at once: the compiler then gives both the same layout.
    With different ones it carries whole tiles from one to the other through shared memory.
    """
    main = 1 << (width.bit_length() - 1)
    rest = width - main
    if rest and main < span(width, bytes_each):
        main, rest = 2 * main, 0
    tail = max(span(width, bytes_each), 1 << (rest - 1).bit_length()) if rest else 0
    return {"WIDTH": width, "MAIN": max(16, main), "TAIL": tail}


def warps(width: int) -> int:
    """Warps of a program: one as far as its registers go, so that sums need neither shared memory nor a barrier."""
    return 1 if width <= 1536 else 2 if width <= 3072 else 4


def span(width: int, bytes_each: int) -> int:
    """Channels that the threads of a program load at once, 16 bytes each."""
    return 32 * warps(width) * 16 // bytes_each


def token_launch(
    name: str,
    kernel: Any,
    x: Tensor,
    modulation: Tensor,
    tensors: Mapping[str, Tensor],
    constants: Mapping[str, Any],
) -> Launch:
    """``kernel`` over the tokens of x (R, T, S, D), whose programs each see one row and frame of ``modulation``.

    ``tensors`` are its further arguments; those of the shape of x are contiguous.

    A program holds its tokens in registers, up to 80 float32 numbers a thread: two tokens of width 1152, eight narrow
    ones. They share one load of the modulation, which costs as much as 4 tokens where shift and scale are each a sum
    of table and modulation. At T x S = 2048, R = 2 that is 2048 programs of one warp; with 168 registers a thread, 12
    are resident on each of 132 multiprocessors, with 55 kB of bfloat16 tokens in flight where 25 kB hide the memory
    latency. Where a row and frame has few tokens, a program takes fewer, as long as every thread loads 16 bytes, and
    more programs run at once. The choice does not depend on R, so that the result of a request does not depend on its
    batch.
    """
    count, frames, tokens, width = x.shape
    width = int(width)
    shape = token_tiles(width, x.element_size())
    columns, least = shape["MAIN"] + shape["TAIL"], span(width, x.element_size())
    shared = modulation.shape[1] == 1 or modulation.stride(1) == 0
    contiguous = x.is_contiguous()
    if shared and contiguous:
        frames, tokens = 1, frames * tokens
    each = 8
    while each * columns > least and each > 1 and (each * columns > 80 * 32 * warps(width) or tokens < 128 * each):
        each //= 2
    heuristic = {"TOKENS": each, "num_warps": warps(width), "num_stages": 1}
    choice = tiles.choose(name, heuristic, dtype=x.dtype, width=width, tokens=tokens)
    return Launch(
        kernel,
        (-(-tokens // choice["TOKENS"]), frames, count),
        {
            "x": x,
            "modulation": modulation,
            **tensors,
            "frames": frames,
            "tokens": tokens,
            "s_row": x.stride(0),
            "s_frame": x.stride(1),
            "s_token": x.stride(2),
            "s_mod_row": modulation.stride(0),
            "s_mod_frame": 0 if shared else modulation.stride(1),
        },
        {
            **constants,
            "S_PART": int(modulation.stride(2)),
            "CONTIGUOUS": contiguous,
            **shape,
        },
        choice,
    )


def inner_contiguous(x: Tensor) -> Tensor:
    """x itself where its channels are neighbours in memory, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
