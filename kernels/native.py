"""Layers on a CPU in C++ (``csrc/include/syncflow/layers.h``), where the native part was built.

In float32 and without gradients. ``SYNCFLOW_NATIVE=0`` switches it off for a process, ``implementation("torch")`` for a
block of code. What PyTorch does in ten to twenty operations over short rows is one pass here, by the threads of
PyTorch. With many keys, or a large weight, libraries are as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    EXTENSION.linear(
        flat.data_ptr(),
        cached(_packed_weight, weight).data_ptr(),
        _contiguous(bias).data_ptr(),
        out.data_ptr(),
        (flat.shape[0], inputs, count, flat.stride(0)),
        gelu,
        torch.get_num_threads(),
    )
    return out


def _packed_weight(weight: Tensor) -> Tensor:
    """A weight (N, K) as panels of some outputs, in each the inputs one after the other."""
    weight = weight.flatten(1).contiguous()
    panels = weight.new_empty(EXTENSION.packed_size(*weight.shape))
    EXTENSION.pack(weight.data_ptr(), *weight.shape, panels.data_ptr())
    return panels


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
    one = 3 * heads * width
    if axis == 1:
        outer, inner, length, strides = rows, tokens, frames, (frames * tokens * one, one, tokens * one)
    else:
        outer, inner, length, strides = rows * frames, 1, tokens, (tokens * one, 0, one)
    EXTENSION.self_attention(
        *(_address(x) for x in (qkv, _contiguous(q_weight), _contiguous(k_weight), _contiguous(rope), out)),
        (outer, inner, length, heads, width),
        strides,
        eps,
        torch.get_num_threads(),
    )
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
    strides = [x.stride()[:3] for x in tokens] + [(0, 0, 0)] * (5 - len(tokens))
    indices = (None if x is None else x.to(torch.int64) for x in (context_of_row, lengths))
    held = [_contiguous(x) for x in (*indices, *(rope or (None, None)), *(positions or (None, None)))]
    EXTENSION.cross_attention(
        _addresses(tokens, 5),
        strides,
        out.data_ptr(),
        (rows, queries, heads, width, *k.shape[:2], tails[0].shape[1] if tails else 0),
        [_address(x) for x in held],
        window,
        torch.get_num_threads(),
    )
    return out


def guided_step(z: Tensor, v: Tensor, rows: Tensor, weights: Tensor, dt: Tensor) -> Tensor | None:
    """``guided_euler_step`` of one modality without known latents; None for what it does not take."""
    if not supports(z, v, weights, dt) or rows.dtype != torch.int64:
        return None
    given = [x.contiguous() for x in (z, v, rows, weights, dt)]
    out = torch.empty_like(given[0])
    size = z.numel() // max(z.shape[0], 1)
    EXTENSION.guided_step(
        [x.data_ptr() for x in (*given, out)], (*rows.shape, size, size), v.shape[0], torch.get_num_threads()
    )
    return out


def modulation_parts(table: Tensor, rows: Tensor, *parts: int) -> list[Tensor]:
    """What the norms and residuals read of a table (P, D) and rows (R, T or 1, P, D): of every part, both."""
    return [each for part in parts for each in (table[part], rows[:, :, part])]


def residual(x: Tensor, branch: Tensor, gate: Sequence[Tensor]) -> Tensor | None:
    """``gated_residual`` of x and branch (R, T, S, D), ``gate`` from :func:`modulation_parts`; None if unsupported."""
    y = x.new_empty(x.shape)
    return y if _add_and_norm(x, branch, gate, (), 0.0, y, None) else None


def norm(x: Tensor, shift_and_scale: Sequence[Tensor], eps: float) -> Tensor | None:
    """``modulated_layer_norm`` of x (R, T, S, D); None for what it does not take."""
    normed = x.new_empty(x.shape)
    return normed if _add_and_norm(x, None, (), shift_and_scale, eps, None, normed) else None


def residual_norm(
    x: Tensor, branch: Tensor, gate: Sequence[Tensor], shift_and_scale: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor] | None:
    """``gated_residual_norm``, with an empty ``gate`` for a plain residual; None for what it does not take."""
    y, normed = x.new_empty(x.shape), x.new_empty(x.shape)
    return (y, normed) if _add_and_norm(x, branch, gate, shift_and_scale, eps, y, normed) else None


def _add_and_norm(
    x: Tensor,
    branch: Tensor | None,
    gate: Sequence[Tensor],
    shift_and_scale: Sequence[Tensor],
    eps: float,
    y: Tensor | None,
    normed: Tensor | None,
) -> bool:
    tables, rows = [*gate[::2], *shift_and_scale[::2]], [*gate[1::2], *shift_and_scale[1::2]]
    if not supports(x, branch, *tables, *rows):
        return False
    strides = rows[0].stride()
    if strides[2] != 1 or any(one.stride() != strides for one in rows):
        return False
    x, branch, tables = _contiguous(x), _contiguous(branch), [_contiguous(table) for table in tables]
    pairs = [each.data_ptr() for pair in zip(tables, rows, strict=True) for each in pair]
    EXTENSION.residual_norm(
        [_address(x), _address(branch), *([] if gate else [0, 0]), *pairs, *([] if shift_and_scale else [0] * 4)],
        (_address(y), _address(normed)),
        x.shape,
        (strides[0], strides[1] if rows[0].shape[1] > 1 else 0),
        eps,
        torch.get_num_threads(),
    )
    return True


def _contiguous(x: Tensor | None) -> Any:
    return None if x is None else x.contiguous()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _addresses(tensors: Sequence[Tensor], count: int) -> list[int]:
    return [x.data_ptr() for x in tensors] + [0] * (count - len(tensors))
