"""FLOPs and operator calls of a function, by counting: the same on every machine.

1 multiply-add = 2 FLOPs. Matrix products, convolutions and attentions count; elementwise operations do not. An
attention counts with all of its keys, also where a window masks them or a row reads no context. On the meta device,
where tensors have shapes and no values, counting takes little time and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ... import kernels  # noqa: F401  (registers the operations)

Shape = Sequence[int]


def _spatial(qkv: Shape, *_: object, **__: object) -> int:
    rows, frames, tokens, _packed, heads, width = qkv
    return 4 * rows * frames * tokens**2 * heads * width


def _temporal(qkv: Shape, *_: object, **__: object) -> int:
    rows, frames, tokens, _packed, heads, width = qkv
    return 4 * rows * tokens * frames**2 * heads * width


def _cross(q: Shape, k: Shape, *_: object, **__: object) -> int:
    return 4 * prod(q) * k[1]


def _rope_cross(q: Shape, k: Shape, *rest: Shape | None, **__: object) -> int:
    contexts = (k, *rest[6:7])  # the second one is the optional tail
    return 4 * prod(q) * sum(keys[1] for keys in contexts if keys is not None)


def _linear(x: Shape, weight: Shape, *_: object, **__: object) -> int:
    return 2 * prod(x) * weight[0]


OPERATIONS = {
    torch.ops.syncflow.spatial_attention: _spatial,
    torch.ops.syncflow.temporal_attention: _temporal,
    torch.ops.syncflow.text_cross_attention: _cross,
    torch.ops.syncflow.rope_cross_attention: _rope_cross,
    torch.ops.syncflow.gated_linear: _linear,
    torch.ops.syncflow.linear_gelu: _linear,
}


class _Calls(TorchDispatchMode):
    """Counts the operations that reach the device, which views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def flops(work: Callable[[], object]) -> int:
    """FLOPs of a call of ``work``."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        work()
    return counter.get_total_flops()


def calls(work: Callable[[], object]) -> int:
    """Operations that a call of ``work`` sends to the device."""
    with torch.no_grad(), _Calls() as counter:
        work()
    return counter.count
