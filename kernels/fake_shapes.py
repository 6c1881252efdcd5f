"""Fake implementations: outputs of the right shape without values, which a trace asks for at every node."""

from __future__ import annotations

from torch import Tensor


def fake_tokens(x: Tensor, *_: object) -> Tensor:
    """A contiguous tensor of the shape of x."""
    return x.new_empty(x.shape)


def fake_token_pair(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """The same for two outputs."""
    return x.new_empty(x.shape), x.new_empty(x.shape)


def fake_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *_: object) -> Tensor:
    """A contiguous tensor of the shape of the residual."""
    return residual.new_empty(residual.shape)


def fake_linear(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    """x (..., K) and a weight (N, K) -> (..., N)."""
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def fake_self_attention(qkv: Tensor, *_: object) -> Tensor:
    """qkv (R, T, S, 3, n, d) -> (R, T, S, n * d)."""
    rows, frames, tokens, _three, heads, width = qkv.shape
    return qkv.new_empty(rows, frames, tokens, heads * width)


def fake_cross_attention(q: Tensor, *_: object) -> Tensor:
    """q (R, N, n, d) -> (R, N, n * d)."""
    rows, queries, heads, width = q.shape
    return q.new_empty(rows, queries, heads * width)
