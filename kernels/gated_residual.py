"""The gated residual of a diffusion block.

    y = x + gate * branch,   gate = table[part + 2] + modulation[..., part + 2, :]

x, branch (R, T, S, D); table (P, D); modulation (R, T or 1, P, D); ``part`` as in ``modulated_layer_norm``.
-> (R, T, S, D). Source: DiT's adaLN-zero gate as in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor

from . import native
from .attention_ops import load_head, store_head
from .fake_shapes import fake_tokens
from .launch import Launch, operation, tl, triton
from .token_ops import add_branch, inner_contiguous, load_modulation, supported_tokens, token_launch, token_offsets


def reference(x: Tensor, branch: Tensor, table: Tensor, modulation: Tensor, part: int) -> Tensor:
    """``x`` plus ``branch`` times its gate."""
    gate = (table[part + 2] + modulation[:, :, part + 2]).to(x.dtype)
    return x + gate[:, :, None] * branch


def cpu(x: Tensor, branch: Tensor, table: Tensor, modulation: Tensor, part: int) -> Tensor:
    """The same in one pass over the tokens."""
    found = native.residual(x, branch, table, modulation, part)
    return reference(x, branch, table, modulation, part) if found is None else found


@triton.jit
def gated_residual_kernel(
    x,
    branch,
    table,
    modulation,
    out,
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    s_mod_row,
    s_mod_frame,
    PART: tl.constexpr,
    S_PART: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one row and frame."""
    o_x, o_out, m_token = token_offsets(frames, tokens, s_row, s_frame, s_token, WIDTH, CONTIGUOUS, TOKENS)
    y, y_tail = load_head(x + o_x, m_token, WIDTH, MAIN, TAIL)
    b, b_tail = load_head(branch + o_out, m_token, WIDTH, MAIN, TAIL)
    gate, gate_tail = load_modulation(table, modulation, s_mod_row, s_mod_frame, S_PART, PART + 2, WIDTH, MAIN, TAIL)
    y, y_tail = add_branch(y, y_tail, b, b_tail, gate, gate_tail, TAIL)
    store_head(out + o_out, m_token, y, y_tail, WIDTH, MAIN, TAIL)


def plan_launches(
    x: Tensor, branch: Tensor, table: Tensor, modulation: Tensor, part: int
) -> tuple[Tensor, list[Launch]] | None:
    """One launch; what a program takes is chosen in :func:`~syncflow.kernels.token_ops.token_launch`."""
    if not supported_tokens(x, table, modulation) or branch.dtype != x.dtype:
        return None
    out = x.new_empty(x.shape)
    tensors = {"branch": branch.contiguous(), "table": table.contiguous(), "out": out}
    x, modulation = inner_contiguous(x), inner_contiguous(modulation)
    return out, [token_launch("gated_residual", gated_residual_kernel, x, modulation, tensors, {"PART": part})]


gated_residual = operation(reference, plan_launches, cpu, fake_tokens)
