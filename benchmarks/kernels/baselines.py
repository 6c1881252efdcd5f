"""Attentions of other libraries in the operations' own layout: PyTorch's SDPA by backend, FlexAttention, xformers.

A baseline takes the operation's arguments, so that what it needs of norm, rotation and rearrangement is part of its
time; its ``arranged`` variant is given contiguous queries, keys and values (B, n, N, d) and times the attention alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .harness import Baseline

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
Split = Callable[..., tuple[Tensor, ...]]
Join = Callable[..., Tensor]


def attention_baselines(split: Split, join: Join) -> dict[str, Baseline]:
    """``split(*arguments)`` -> q, k, v (B, n, N, d) and perhaps a mask; ``join(o, *arguments)`` is the way back."""
    found: dict[str, Baseline] = {}
    for name, attend in _attentions().items():
        found[name] = Baseline(_whole(split, attend, join))
        found[f"{name}, arranged"] = Baseline(attend, _contiguous(split), join)
    found["flex attention"] = Baseline(_whole(split, flex, join), compiled=True)
    found["flex attention, arranged"] = Baseline(flex, _contiguous(split), join, compiled=True)
    return found


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """FlexAttention, with a mask (B, 1, 1, M) over the keys or none."""
    from torch.nn.attention.flex_attention import flex_attention

    if mask is None:
        return flex_attention(q, k, v)

    def score(value: Tensor, b: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return value.masked_fill(~mask[b, 0, 0, key], float("-inf"))

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
        raise ValueError("xformers is raced without a mask")
    return ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _whole(split: Split, attend: Callable[..., Tensor], join: Join) -> Callable[..., Tensor]:
    def run(*arguments: Any) -> Tensor:
        return join(attend(*split(*arguments)), *arguments)

    return run


def _contiguous(split: Split) -> Callable[..., tuple[Tensor, ...]]:
    def setup(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(x.contiguous() for x in split(*arguments))

    return setup
