"""The gated residual of a diffusion block.

    y = x + gate * branch,   gate = table[part + 2] + rows[..., part + 2, :]

x, branch (R, T, S, D); table (P, D); rows (R, T or 1, P, D); ``part`` as in ``modulated_layer_norm``. -> (R, T, S, D).
Source: DiT's adaLN-zero gate as in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor

from . import native
from .attention_ops import load_head, store_head
from .fake_shapes import of_tokens
from .launch import Launch, operation, tl, triton
from .token_ops import add_branch, inner_contiguous, load_modulation, place, takes, token_launch


def reference(x: Tensor, branch: Tensor, table: Tensor, rows: Tensor, part: int) -> Tensor:
    """``x`` plus ``branch`` times its gate."""
    gate = (table[part + 2] + rows[:, :, part + 2]).to(x.dtype)
    return x + gate[:, :, None] * branch


def cpu(x: Tensor, branch: Tensor, table: Tensor, rows: Tensor, part: int) -> Tensor:
    """The same in one pass over the tokens."""
    found = native.residual(x, branch, native.modulation(table, rows, part + 2))
    return reference(x, branch, table, rows, part) if found is None else found


@triton.jit
def add_tokens(
    x,
    branch,
    table,
    rows,
    out,
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    s_rows_row,
    s_rows_frame,
    PART: tl.constexpr,
    S_PART: tl.constexpr,
    DENSE: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one row and frame."""
    o_x, o_out, m_token = place(frames, tokens, s_row, s_frame, s_token, WIDTH, DENSE, TOKENS)
    y, y_tail = load_head(x + o_x, m_token, WIDTH, MAIN, TAIL)
    b, b_tail = load_head(branch + o_out, m_token, WIDTH, MAIN, TAIL)
    gate, gate_tail = load_modulation(table, rows, s_rows_row, s_rows_frame, S_PART, PART + 2, WIDTH, MAIN, TAIL)
    y, y_tail = add_branch(y, y_tail, b, b_tail, gate, gate_tail, TAIL)
    store_head(out + o_out, m_token, y, y_tail, WIDTH, MAIN, TAIL)


def prepare(x: Tensor, branch: Tensor, table: Tensor, rows: Tensor, part: int) -> tuple[Tensor, list[Launch]] | None:
    """One launch; what a program takes is chosen in :func:`~syncflow.kernels.token_ops.token_launch`."""
    if not takes(x, table, rows) or branch.dtype != x.dtype:
        return None
    out = x.new_empty(x.shape)
    tensors = {"branch": branch.contiguous(), "table": table.contiguous(), "out": out}
    x, rows = inner_contiguous(x), inner_contiguous(rows)
    return out, [token_launch("gated_residual", add_tokens, x, rows, tensors, {"PART": part})]


gated_residual = operation(reference, prepare, cpu, of_tokens)
