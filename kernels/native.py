"""Layers on a CPU in C++ (``csrc/include/syncflow/layers.h``), where the native part was built.

In float32 and without gradients. ``SYNCFLOW_NATIVE=0`` switches it off for a process, ``implementation("torch")`` for a
block of code. What PyTorch does in ten to twenty operations over short rows is one pass here, by the threads of
PyTorch. With many keys, or a large weight, libraries are as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import extension
from .launch import current_implementation
from .weight_cache import cacheable, cached

MAX_KEYS = 1024
MAX_WEIGHT = 2**18  # elements (1 MiB): a second, packed copy of a larger weight costs too much memory


def _with_layers(module: Any) -> Any:
    """The extension module, or None where it is missing or was built without the layers."""
    return module if hasattr(module, "self_attention") else None


EXTENSION = _with_layers(extension.load()[0])


def instructions() -> str | None:
    """Which instructions the native part uses ("x86-64-v4", …), or None where it is not there."""
    return None if EXTENSION is None else EXTENSION.instructions()


def supports(*tensors: Tensor | None) -> bool:
    """Whether all of these are float32, and the native part is there and may compute (``implementation("auto")``)."""
    allowed = EXTENSION is not None and current_implementation() == "auto"
    return allowed and all(x is None or x.dtype == torch.float32 for x in tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor | None:
    """``x W^T + b`` or its GELU in the tanh form; None for what it does not take.

    x (..., K), weight W (N, K) or with more axes in place of K, bias b (N,). -> (..., N). The panels of a weight are
    made once and kept beside it.
    """
    if not supports(x, weight, bias) or weight.numel() > MAX_WEIGHT or not cacheable(weight):
        return None
    count, inputs = weight.shape[0], weight[0].numel()
    flat = x.reshape(-1, inputs)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    out = x.new_empty(*x.shape[:-1], count)
    packed, threads = cached(_packed_weight, weight), torch.get_num_threads()
    EXTENSION.linear(flat, packed, _contiguous(bias), out, gelu, threads)
    return out


def _packed_weight(weight: Tensor) -> Tensor:
    """A weight (N, K) as panels of some outputs, in each the inputs one after the other."""
    weight = weight.flatten(1).contiguous()
    packed = weight.new_empty(EXTENSION.packed_size(*weight.shape))
    EXTENSION.pack(weight, packed)
    return packed


def self_attention(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor | None, eps: float, axis: int
) -> Tensor | None:
    """``spatial_attention`` (``axis`` 2, without rope) or ``temporal_attention`` (1); None for what it does not take.

    qkv (R, T, S, 3, n, d), weights (d,), rope (T, d / 2, 2) or None. -> (R, T, S, n * d).
    """
    rows, frames, tokens, _, heads, width = qkv.shape
    if qkv.shape[axis] > MAX_KEYS or not supports(qkv, q_weight, k_weight, rope):
        return None
    qkv = qkv.contiguous()
    out = qkv.new_empty(rows, frames, tokens, heads * width)
    weights = _contiguous(q_weight), _contiguous(k_weight)
    EXTENSION.self_attention(qkv, *weights, _contiguous(rope), out, axis, eps, torch.get_num_threads())
    return out


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    context_of_row: Tensor | None = None,
    lengths: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
    window: float = -1.0,
    tail: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """``text_cross_attention`` or, with rope, ``rope_cross_attention``; None for what it does not take.

    q (R, N, n, d); k, v (C, M, n, d) and ``tail`` of the same (R, E, n, d); ``context_of_row`` (R,) and ``lengths``
    (C,) int; ``rope`` (N, d / 2, 2) and (M, d / 2, 2); ``positions`` (N,) and (M,), read with a ``window``.
    -> (R, N, n * d).
    """
    tails = tail or ()
    if k.shape[1] > MAX_KEYS or not supports(q, k, v, *tails, *(rope or ()), *(positions or ())):
        return None
    rows, queries, heads, width = q.shape
    tokens = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, *tails)]
    out = q.new_empty(rows, queries, heads * width)
    indices = (None if x is None else x.to(torch.int64) for x in (context_of_row, lengths))
    dense = [_contiguous(x) for x in (*indices, *(rope or (None, None)), *(positions or (None, None)))]
    EXTENSION.cross_attention(*tokens, *([] if tails else [None, None]), out, *dense, window, torch.get_num_threads())
    return out


def guided_step(z: Tensor, v: Tensor, rows: Tensor, weights: Tensor, dt: Tensor) -> Tensor | None:
    """``guided_euler_step`` of one modality without known latents; None for what it does not take."""
    if not supports(z, v, weights, dt) or rows.dtype != torch.int64:
        return None
    arguments = [x.contiguous() for x in (z, v, rows, weights, dt)]
    out = torch.empty_like(arguments[0])
    EXTENSION.guided_step(*arguments, out, torch.get_num_threads())
    return out


def residual(x: Tensor, branch: Tensor, table: Tensor, modulation: Tensor, part: int) -> Tensor | None:
    """``gated_residual``; None if unsupported."""
    y = x.new_empty(x.shape)
    return y if _residual_norm(x, branch, table, part + 2, None, 0, modulation, y, None, 0.0) else None


def norm(x: Tensor, table: Tensor, modulation: Tensor, part: int, eps: float) -> Tensor | None:
    """``modulated_layer_norm``; None if unsupported."""
    normed = x.new_empty(x.shape)
    return normed if _residual_norm(x, None, None, 0, table, part, modulation, None, normed, eps) else None


def residual_norm(
    x: Tensor,
    branch: Tensor,
    gate_table: Tensor | None,
    modulation: Tensor,
    gate_part: int,
    norm_table: Tensor,
    norm_part: int,
    eps: float,
) -> tuple[Tensor, Tensor] | None:
    """``gated_residual_norm``; None if unsupported."""
    y, normed = x.new_empty(x.shape), x.new_empty(x.shape)
    done = _residual_norm(x, branch, gate_table, gate_part + 2, norm_table, norm_part, modulation, y, normed, eps)
    return (y, normed) if done else None


def _residual_norm(
    x: Tensor,
    branch: Tensor | None,
    gate_table: Tensor | None,
    gate_part: int,
    norm_table: Tensor | None,
    norm_part: int,
    modulation: Tensor,
    y: Tensor | None,
    normed: Tensor | None,
    eps: float,
) -> bool:
    """Fill ``y`` and ``normed``, where they are given; False if unsupported."""
    if not supports(x, branch, gate_table, norm_table, modulation) or modulation.stride(3) != 1:
        return False
    inputs = _contiguous(x), _contiguous(branch)
    gate = _contiguous(gate_table), gate_part if gate_table is not None else 0
    norm = _contiguous(norm_table), norm_part
    EXTENSION.residual_norm(*inputs, *gate, *norm, modulation, y, normed, eps, torch.get_num_threads())
    return True


def _contiguous(x: Tensor | None) -> Any:
    return None if x is None else x.contiguous()
