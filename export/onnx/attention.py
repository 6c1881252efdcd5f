"""The attention operations in standard operators: two matrix products around a softmax.

OpenVINO and TensorRT fuse the three. The Attention operator of opset 23 would be one node, but OpenVINO takes it apart
again, with tests for NaN in it where there is a mask; ONNX Runtime gains from it only where heads lie side by side,
wants its masks in full, and TensorRT takes it only where heads have an axis of their own.

RotaryEmbedding wants cosines and sines for every row of its batch. The heads of all rows therefore stand on its head
axis, in a batch of 1.
"""

from __future__ import annotations

import onnx_ir as ir

from .tensors import (
    Argument,
    Size,
    Value,
    cast,
    integers,
    lowest,
    number,
    op,
    repeated,
    reshape,
    size,
    steps,
    width,
)

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def spatial_attention(qkv: Argument, q_weight: Argument, k_weight: Argument, eps: float) -> Value:
    """Over S: qkv (R, T, S, 3, n, d) -> (R, T, S, n * d)."""
    rows, frames, tokens, _, heads, channels = (size(qkv, axis) for axis in range(6))
    q, k, v = _packed_heads(qkv, q_weight, k_weight, eps, [3, 0, 1, 4, 2, 5], tokens)
    mixed = reshape(_attend(q, _transposed(k), v), rows, frames, heads, tokens, channels)
    return _joined(op.Transpose(mixed, perm=[0, 1, 3, 2, 4]), qkv)


def temporal_attention(qkv: Argument, q_weight: Argument, k_weight: Argument, rotation: Argument, eps: float) -> Value:
    """Over T: qkv (R, T, S, 3, n, d), rotation (T, d / 2, 2) -> (R, T, S, n * d)."""
    rows, frames, tokens, _, heads, channels = (size(qkv, axis) for axis in range(6))
    q, k, v = _packed_heads(qkv, q_weight, k_weight, eps, [3, 0, 2, 4, 1, 5], frames)
    rope = cast(rotation, rotation.dtype, FLOAT)
    cos, sin = op.Gather(rope, 0, axis=-1), op.Gather(rope, 1, axis=-1)
    q, k = (_rotate(x, cos, sin, qkv.dtype) for x in (q, k))
    mixed = reshape(_attend(q, _transposed(k), v), rows, tokens, heads, frames, channels)
    return _joined(op.Transpose(mixed, perm=[0, 3, 1, 2, 4]), qkv)


def text_cross_attention(q: Argument, k: Argument, v: Argument, lengths: Argument, text_of_row: Argument) -> Value:
    """q (R, N, n, d); k, v (P, L, n, d); lengths (P,); text_of_row (R,) -> (R, N, n * d)."""
    of_row = cast(op.Gather(lengths, text_of_row, axis=0), lengths.dtype, INT64)
    visible = op.Less(steps(size(k, 1)), op.Unsqueeze(of_row, integers(1, 2, 3)))  # (R, 1, 1, L)
    keys = op.Gather(op.Transpose(k, perm=[0, 2, 3, 1]), text_of_row, axis=0)
    values = op.Gather(_heads_first(v), text_of_row, axis=0)
    return _tokens_first(_attend(_heads_first(_scaled(q)), keys, values, _penalty(visible, q)), q)


def rope_cross_attention(
    q: Argument,
    k: Argument,
    v: Argument,
    q_positions: Argument,
    k_positions: Argument,
    frequencies: Argument,
    window: float,
    context_of_row: Argument | None = None,
    tail_k: Argument | None = None,
    tail_v: Argument | None = None,
) -> Value:
    """q (R, N, n, d); k, v (C, M, n, d); context_of_row (R,); tails (R, E, n, d) -> (R, N, n * d)."""
    if tail_k is not None and tail_k.shape[1] == 0:
        tail_k = None
    queries = _turned(_scaled(q), q, q_positions, frequencies)
    keys, values = _transposed(_turned(k, k, k_positions, frequencies)), _heads_first(v)
    visible = None
    if window >= 0:
        positions = k_positions
        if tail_k is not None:
            positions = op.Concat(k_positions, repeated(number(0, k_positions), size(tail_k, 1)), axis=0)
        distance = op.Abs(op.Sub(op.Unsqueeze(q_positions, integers(1)), positions))
        visible = op.LessOrEqual(distance, number(window, q_positions))  # (N, M + E)
    if context_of_row is not None:
        reads = op.Unsqueeze(op.GreaterOrEqual(context_of_row, 0), integers(1, 2, 3))  # (R, 1, 1, 1)
        context = op.Max(context_of_row, 0)
        keys, values = (op.Where(reads, op.Gather(x, context, axis=0), number(0, q)) for x in (keys, values))
        visible = reads if visible is None else op.And(reads, visible)
    if tail_k is None:
        penalty = None if visible is None else _penalty(visible, q)
        return _tokens_first(_attend(queries, keys, values, penalty, visible), q)
    keys = op.Concat(keys, op.Transpose(tail_k, perm=[0, 2, 3, 1]), axis=3)
    values = op.Concat(values, _heads_first(tail_v), axis=2)
    if visible is None:
        return _tokens_first(_attend(queries, keys, values), q)
    own = op.Concat(repeated(False, size(k, 1)), repeated(True, size(tail_k, 1)), axis=0)  # (M + E,)
    return _tokens_first(_attend(queries, keys, values, _penalty(op.Or(visible, own), q)), q)


def _packed_heads(
    qkv: Argument, q_weight: Argument, k_weight: Argument, eps: float, order: list[int], length: Size
) -> tuple[Value, Value, Value]:
    """Normalised queries, scaled, normalised keys, and values: each (1, B, N, d), N tokens of B sequences and heads."""
    packed = reshape(op.Transpose(qkv, perm=order), 3, -1, length, width(qkv, 5))
    q, k, v = op.Split(packed, num_outputs=3, axis=0)
    q = op.RMSNormalization(q, _scaled(q_weight), axis=-1, epsilon=eps)
    k = op.RMSNormalization(k, k_weight, axis=-1, epsilon=eps)
    return q, k, v


def _attend(q: Value, k: Value, v: Value, penalty: Value | None = None, visible: Value | None = None) -> Value:
    """q (..., N, d), already scaled, k (..., d, M), v (..., M, d) -> (..., N, d).

    ``penalty`` is added to the scores; a query that ``visible`` shows no key reads 0.
    """
    scores = op.MatMul(q, k)
    weights = op.Softmax(scores if penalty is None else op.Add(scores, penalty), axis=-1)
    if visible is not None:
        weights = op.Where(visible, weights, op.CastLike(0, weights))
    return op.MatMul(weights, v)


def _penalty(visible: Value, like: Argument) -> Value:
    """0 where a key is visible; elsewhere what leaves it no weight beside any other, finite where there is no other."""
    return op.Where(visible, number(0, like), lowest(like))


def _scaled(x: Argument) -> Value:
    """An argument (..., d) over the root of d."""
    return op.Mul(x, number(width(x, -1) ** -0.5, x))


def _turned(x: Value, argument: Argument, positions: Value, frequencies: Value) -> Value:
    """x (R, N, n, d), shaped as ``argument``, rotated to its positions -> (R, n, N, d)."""
    rows, tokens, heads, channels = (size(argument, axis) for axis in range(4))
    angles = op.Mul(op.Unsqueeze(positions, integers(1)), frequencies)
    merged = reshape(_heads_first(x), 1, -1, tokens, channels)
    return reshape(_rotate(merged, op.Cos(angles), op.Sin(angles), argument.dtype), rows, heads, tokens, channels)


def _rotate(x: Value, cos: Value, sin: Value, kind: ir.DataType) -> Value:
    """x (1, B, N, d) of type ``kind``, its pairs turned in float32 by cos and sin (N, d / 2)."""
    cos, sin = (op.Unsqueeze(table, integers(0)) for table in (cos, sin))
    return cast(op.RotaryEmbedding(cast(x, kind, FLOAT), cos, sin, interleaved=1), FLOAT, kind)


def _heads_first(x: Value) -> Value:
    return op.Transpose(x, perm=[0, 2, 1, 3])


def _transposed(x: Value) -> Value:
    return op.Transpose(x, perm=[0, 1, 3, 2])


def _tokens_first(mixed: Value, q: Argument) -> Value:
    """(R, n, N, d) -> (R, N, n * d), q being (R, N, n, d)."""
    return reshape(_heads_first(mixed), size(q, 0), size(q, 1), width(q, 2, 3))


def _joined(mixed: Value, qkv: Argument) -> Value:
    """(R, T, S, n, d) -> (R, T, S, n * d), qkv being (R, T, S, 3, n, d)."""
    return reshape(mixed, size(qkv, 0), size(qkv, 1), size(qkv, 2), width(qkv, 4, 5))
