"""Keys normalised and rotated once, for the attentions whose programs each walk over all of them.

    k'[c, j] = rotate(RMSnorm(k[c, j]) * weight, rope[j])      with ``weight`` and ``rope``
    k'[c, j] = rotate(k[c, j], positions[j] * frequencies)     with ``positions`` and ``frequencies``

k (C, S, M, n, d) with any strides but the last, which is 1: keys of C rows and S sequences of M tokens; weight (d,);
rope (M, d / 2, 2); positions (M,) and frequencies (d / 2,) in float32. -> (C, S, M, n, d) contiguous, rounded as the
attention itself rounds. Every tile of queries walks over all keys: 32 times the same norms, cosines and products at
2048 queries, where this pass reads and writes 18.9 MB once (R = 2, D = 1152, bfloat16).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .attention_ops import cosine_sine, inverse_rms, load_channels, load_head, load_rope, rotate, store_head
from .launch import Launch, head_tiles, tiles, tl, triton


@triton.jit
def load_angles(p_frequencies, positions, FIRST: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Cosines and sines of channels FIRST .. FIRST + COLUMNS - 1 at ``positions`` (N,). -> two of (N, COLUMNS / 2)."""
    o_pair = FIRST // 2 + tl.arange(0, COLUMNS // 2)
    b_frequency = tl.load(p_frequencies + o_pair, mask=o_pair < WIDTH // 2, other=0.0).to(tl.float32)
    return cosine_sine(positions[:, None] * b_frequency[None, :])


@triton.jit
def rotate_keys_kernel(
    k,
    weight,
    rope,
    positions,
    frequencies,
    out,
    tokens,
    sequences,
    s_row,
    s_sequence,
    s_token,
    HEADS: tl.constexpr,
    S_HEAD: tl.constexpr,
    NORMED: tl.constexpr,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """All heads of TOKENS tokens of one sequence, which share their cosines and sines.

    ``weight`` and ``rope`` where ``NORMED``, else ``positions`` and ``frequencies``; nothing reads the other two.
    """
    i_sequence = tl.program_id(1).to(tl.int64)
    o_token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    m_token = o_token < tokens
    if NORMED:
        p_rope = rope + o_token * WIDTH
        cos, sin = load_rope(p_rope, m_token, 0, MAIN, WIDTH)
        cos_tail, sin_tail = cos, sin
        if TAIL > 0:
            cos_tail, sin_tail = load_rope(p_rope, m_token, MAIN, TAIL, WIDTH)
        w, w_tail = load_channels(weight, WIDTH, MAIN, TAIL)
    else:
        at = tl.load(positions + o_token, mask=m_token, other=0.0).to(tl.float32)
        cos, sin = load_angles(frequencies, at, 0, MAIN, WIDTH)
        cos_tail, sin_tail = cos, sin
        if TAIL > 0:
            cos_tail, sin_tail = load_angles(frequencies, at, MAIN, TAIL, WIDTH)
    p_in = k + (i_sequence // sequences) * s_row + (i_sequence % sequences) * s_sequence + o_token * s_token
    p_out = out + (i_sequence * tokens + o_token) * (HEADS * WIDTH)
    for _ in range(HEADS):
        x, x_tail = load_head(p_in, m_token, WIDTH, MAIN, TAIL)
        if NORMED:
            scale = inverse_rms(x, x_tail, EPS, WIDTH, TAIL)[:, None]
            x = x * scale * w[None, :]
            if TAIL > 0:
                x_tail = x_tail * scale * w_tail[None, :]
        x = rotate(x.to(tl.float32), cos, sin, TOKENS, MAIN)
        if TAIL > 0:
            x_tail = rotate(x_tail.to(tl.float32), cos_tail, sin_tail, TOKENS, TAIL)
        store_head(p_out, m_token, x, x_tail, WIDTH, MAIN, TAIL)
        p_in += S_HEAD
        p_out += WIDTH


def rotate_keys(
    k: Tensor, *, norm: tuple[Tensor, Tensor, float] | None = None, positions: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Launch]:
    """Memory for the rotated keys of k (C, S, M, n, d), and the launch that fills it.

    ``norm`` is weight, rope and eps, or ``positions`` is positions and frequencies, all contiguous. A program takes 16
    tokens, so that one row of 2048 fills 128 of 132 multiprocessors.
    """
    assert (norm is None) != (positions is None)
    rows, sequences, tokens, heads, width = k.shape
    head = head_tiles(int(width))
    assert head is not None
    out = k.new_empty(k.shape)
    weight, rope, eps = norm or (k, k, 0.0)
    at, frequencies = positions or (k, k)
    heuristic = {"TOKENS": 16, "num_warps": 4, "num_stages": 3}
    choice = tiles.choose("rotate_keys", heuristic, dtype=k.dtype, width=int(width), tokens=tokens)
    arguments: dict[str, Any] = {
        "k": k,
        "weight": weight,
        "rope": rope,
        "positions": at,
        "frequencies": frequencies,
        "out": out,
        "tokens": tokens,
        "sequences": sequences,
        "s_row": k.stride(0),
        "s_sequence": k.stride(1),
        "s_token": k.stride(2),
    }
    constants = {"HEADS": int(heads), "S_HEAD": int(k.stride(3)), "NORMED": norm is not None, "EPS": eps, **head}
    grid = (-(-tokens // choice["TOKENS"]), rows * sequences)
    return out, Launch(rotate_keys_kernel, grid, arguments, constants, choice)
