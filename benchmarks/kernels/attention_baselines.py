"""Baselines of the attentions: PyTorch's SDPA by backend, FlexAttention, xformers.

A baseline takes the operation's arguments: its time includes norms, rotations and rearrangement in plain PyTorch. Its
``arranged`` variant gets contiguous queries, keys and values (B, n, N, d) and times the attention alone.
``whole texts`` is for prompts of full length, which need no mask.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from ...kernels.reference_ops import head_norm, rope_table, rotate
from .harness import Variant

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
Split = Callable[..., tuple[Tensor, ...]]
Join = Callable[..., Tensor]


def _attention_baselines(split: Split, join: Join) -> dict[str, Variant]:
    """``split(*arguments)`` -> q, k, v (B, n, N, d) and perhaps a mask; ``join(o, *arguments)`` is the way back."""
    found: dict[str, Variant] = {}
    for name, attend in _attentions().items():
        found[name] = Variant(_with_layout(split, attend, join))
        found[f"{name}, arranged"] = Variant(attend, _contiguous(split), join)
    found["flex attention"] = Variant(_with_layout(split, flex, join), compiled=True)
    found["flex attention, arranged"] = Variant(flex, _contiguous(split), join, compiled=True)
    return found


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """FlexAttention, with a mask (B or 1, 1, N or 1, M) of what each query may attend to, or none."""
    from torch.nn.attention.flex_attention import flex_attention

    if mask is None:
        return flex_attention(q, k, v)

    allowed = mask.expand(q.shape[0], 1, q.shape[2], k.shape[2])

    def score(value: Tensor, b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return value.masked_fill(~allowed[b, 0, query, key], float("-inf"))

    return flex_attention(q, k, v, score_mod=score)


def _attentions() -> dict[str, Callable[..., Tensor]]:
    return {**{f"sdpa {name}": _sdpa(backend) for name, backend in BACKENDS.items()}, "xformers": _xformers}


def _sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    ops: Any = importlib.import_module("xformers.ops")
    if mask is not None:
        raise ValueError("xformers is compared without a mask")
    return ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _with_layout(split: Split, attend: Callable[..., Tensor], join: Join) -> Callable[..., Tensor]:
    def run(*arguments: Any) -> Tensor:
        return join(attend(*split(*arguments)), *arguments)

    return run


def _contiguous(split: Split) -> Callable[..., tuple[Tensor, ...]]:
    def setup(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(x.contiguous() for x in split(*arguments))

    return setup


def _spatial_split(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Head norms in plain PyTorch; a batch element for every frame."""
    q, k, v = qkv.unbind(3)
    q, k = head_norm(q, q_weight, eps), head_norm(k, k_weight, eps)
    return tuple(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))


def _spatial_join(o: Tensor, qkv: Tensor, *_: object) -> Tensor:
    return o.transpose(1, 2).flatten(2).unflatten(0, qkv.shape[:2]).contiguous()


def _temporal_split(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Head norms and RoPE in plain PyTorch; a batch element for every position (R * S, n, T, d)."""
    q, k, v = qkv.transpose(1, 2).unbind(3)
    q, k = rotate(head_norm(q, q_weight, eps), rope), rotate(head_norm(k, k_weight, eps), rope)
    return tuple(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))


def _temporal_join(o: Tensor, qkv: Tensor, *_: object) -> Tensor:
    rows, _frames, tokens = qkv.shape[:3]
    return o.transpose(1, 2).flatten(2).unflatten(0, (rows, tokens)).transpose(1, 2).contiguous()


def _unmasked_text_split(q: Tensor, k: Tensor, v: Tensor, _lengths: Tensor, text_of_row: Tensor) -> tuple[Tensor, ...]:
    """The text of every row gathered, without a mask: right where all prompts have the full length."""
    return tuple(x.transpose(1, 2) for x in (q, k[text_of_row], v[text_of_row]))


def _masked_text_split(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, text_of_row: Tensor) -> tuple[Tensor, ...]:
    """The text of every row gathered, and a mask of its tokens."""
    allowed = torch.arange(k.shape[1], device=k.device) < lengths[text_of_row, None]
    return (*_unmasked_text_split(q, k, v, lengths, text_of_row), allowed[:, None, None])


def _rope_split(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    frequencies: Tensor,
    window: float,
    context_of_row: Tensor | None = None,
    tail_k: Tensor | None = None,
    tail_v: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """RoPE of both sides in plain PyTorch; the context of every row gathered, its tail appended; a mask of a window."""
    q, k = (
        rotate(x, rope_table(positions[:, None] * frequencies)) for x, positions in ((q, q_positions), (k, k_positions))
    )
    if context_of_row is not None:
        k, v = k[context_of_row], v[context_of_row]
    if tail_k is not None and tail_v is not None:
        k, v = torch.cat((k, tail_k), 1), torch.cat((v, tail_v), 1)
    arranged = tuple(x.transpose(1, 2) for x in (q, k, v))
    if window < 0:
        return arranged
    near = (q_positions[:, None] - k_positions).abs() <= window
    return (*arranged, pad(near, (0, k.shape[1] - near.shape[1]), value=True)[None, None])


def _token_order_join(o: Tensor, *_: object) -> Tensor:
    return o.transpose(1, 2).flatten(2)


_UNMASKED_TEXT = _attention_baselines(_unmasked_text_split, _token_order_join)

ATTENTION_BASELINES = {
    "spatial_attention": _attention_baselines(_spatial_split, _spatial_join),
    "temporal_attention": _attention_baselines(_temporal_split, _temporal_join),
    "text_cross_attention": {
        **_attention_baselines(_masked_text_split, _token_order_join),
        **{f"{name}, whole texts": baseline for name, baseline in _UNMASKED_TEXT.items()},
    },
    "rope_cross_attention": _attention_baselines(_rope_split, _token_order_join),
}
