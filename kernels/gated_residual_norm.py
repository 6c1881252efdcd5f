"""A gated residual and the modulated norm that follows it, in one pass over the tokens.

    y = x + gate * branch
    n = LN(y) * (1 + scale) + shift
    gate = gate_table[gate_part + 2] + modulation[..., gate_part + 2, :], or 1 without ``gate_table``
    shift, scale = norm_table[i] + modulation[..., i, :] for i = norm_part, norm_part + 1

x, branch (R, T, S, D); gate_table, norm_table (P, D), of one block or of two; modulation (R, T or 1, P, D); the parts
as in ``modulated_layer_norm``. -> y, n, each (R, T, S, D). The norm is computed from y as it is stored, so that the
pair equals ``gated_residual`` followed by ``modulated_layer_norm``; it reads or writes a token 4 times, the two 5.
Source: DiT's adaLN as in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor

from . import native
from .attention_ops import load_head, rounded, store_head
from .fake_shapes import fake_token_pair
from .gated_residual import reference as gated_residual
from .launch import Launch, operation, tl, triton
from .modulated_layer_norm import reference as modulated_layer_norm
from .token_ops import (
    add_branch,
    inner_contiguous,
    load_modulation,
    modulate,
    normalize,
    supported_tokens,
    token_launch,
    token_offsets,
)


def reference(
    x: Tensor,
    branch: Tensor,
    gate_table: Tensor | None,
    modulation: Tensor,
    gate_part: int,
    norm_table: Tensor,
    norm_part: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The gated residual and the modulated layer norm of it."""
    y = x + branch if gate_table is None else gated_residual(x, branch, gate_table, modulation, gate_part)
    return y, modulated_layer_norm(y, norm_table, modulation, norm_part, eps)


def cpu(
    x: Tensor,
    branch: Tensor,
    gate_table: Tensor | None,
    modulation: Tensor,
    gate_part: int,
    norm_table: Tensor,
    norm_part: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The same in one pass over the tokens."""
    arguments = x, branch, gate_table, modulation, gate_part, norm_table, norm_part, eps
    found = native.residual_norm(*arguments)
    return reference(*arguments) if found is None else found


@triton.jit
def gated_residual_norm_kernel(
    x,
    branch,
    gate_table,
    norm_table,
    modulation,
    out,
    normed,
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    s_mod_row,
    s_mod_frame,
    GATED: tl.constexpr,
    GATE_PART: tl.constexpr,
    NORM_PART: tl.constexpr,
    EPS: tl.constexpr,
    S_PART: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one row and frame; ``gate_table`` is a stand-in that nothing reads where not ``GATED``."""
    o_x, o_out, m_token = token_offsets(frames, tokens, s_row, s_frame, s_token, WIDTH, CONTIGUOUS, TOKENS)
    y, y_tail = load_head(x + o_x, m_token, WIDTH, MAIN, TAIL)
    b, b_tail = load_head(branch + o_out, m_token, WIDTH, MAIN, TAIL)
    if GATED:
        gate, gate_tail = load_modulation(
            gate_table, modulation, s_mod_row, s_mod_frame, S_PART, GATE_PART + 2, WIDTH, MAIN, TAIL
        )
        y, y_tail = add_branch(y, y_tail, b, b_tail, gate, gate_tail, TAIL)
    else:
        y = y.to(tl.float32) + b.to(tl.float32)
        if TAIL > 0:
            y_tail = y_tail.to(tl.float32) + b_tail.to(tl.float32)
    y = rounded(y, out.dtype.element_ty)
    y_tail = rounded(y_tail, out.dtype.element_ty)
    store_head(out + o_out, m_token, y, y_tail, WIDTH, MAIN, TAIL)
    shift, shift_tail = load_modulation(
        norm_table, modulation, s_mod_row, s_mod_frame, S_PART, NORM_PART, WIDTH, MAIN, TAIL
    )
    scale, scale_tail = load_modulation(
        norm_table, modulation, s_mod_row, s_mod_frame, S_PART, NORM_PART + 1, WIDTH, MAIN, TAIL
    )
    n, n_tail = normalize(y, y_tail, EPS, WIDTH, MAIN, TAIL)
    n, n_tail = modulate(n, n_tail, shift, shift_tail, scale, scale_tail, TAIL)
    store_head(normed + o_out, m_token, n, n_tail, WIDTH, MAIN, TAIL)


def plan_launches(
    x: Tensor,
    branch: Tensor,
    gate_table: Tensor | None,
    modulation: Tensor,
    gate_part: int,
    norm_table: Tensor,
    norm_part: int,
    eps: float,
) -> tuple[tuple[Tensor, Tensor], list[Launch]] | None:
    """One launch; what a program takes is chosen in :func:`~syncflow.kernels.token_ops.token_launch`."""
    if not supported_tokens(x, gate_table, norm_table, modulation) or branch.dtype != x.dtype:
        return None
    out, normed = x.new_empty(x.shape), x.new_empty(x.shape)
    norm_table = norm_table.contiguous()
    tensors = {
        "branch": branch.contiguous(),
        "gate_table": norm_table if gate_table is None else gate_table.contiguous(),
        "norm_table": norm_table,
        "out": out,
        "normed": normed,
    }
    constants = {"GATED": gate_table is not None, "GATE_PART": gate_part, "NORM_PART": norm_part, "EPS": eps}
    x, modulation = inner_contiguous(x), inner_contiguous(modulation)
    name, kernel = "gated_residual_norm", gated_residual_norm_kernel
    return (out, normed), [token_launch(name, kernel, x, modulation, tensors, constants)]


gated_residual_norm = operation(reference, plan_launches, cpu, fake_token_pair)
