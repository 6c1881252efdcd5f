"""What operations give, without computing it: a trace asks for this at every node, with symbolic lengths."""

from __future__ import annotations

from torch import Tensor


def of_tokens(x: Tensor, *_: object) -> Tensor:
    """As many tokens as x, dense."""
    return x.new_empty(x.shape)


def of_tokens_twice(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """The same for two outputs."""
    return x.new_empty(x.shape), x.new_empty(x.shape)


def of_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *_: object) -> Tensor:
    """As many tokens as the residual."""
    return residual.new_empty(residual.shape)


def of_layer(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    """x (..., K) and a weight (N, K) -> (..., N)."""
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def of_packed(qkv: Tensor, *_: object) -> Tensor:
    """qkv (R, T, S, 3, n, d) -> (R, T, S, n * d)."""
    rows, frames, tokens, _three, heads, width = qkv.shape
    return qkv.new_empty(rows, frames, tokens, heads * width)


def of_queries(q: Tensor, *_: object) -> Tensor:
    """q (R, N, n, d) -> (R, N, n * d)."""
    rows, queries, heads, width = q.shape
    return q.new_empty(rows, queries, heads * width)
