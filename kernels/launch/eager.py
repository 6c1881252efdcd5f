"""Whether PyTorch computes plain numbers on a CPU: nothing traces, transforms or counts the call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


_estimating = ContextVar("estimating_for_cpu", default=False)


@contextmanager
def estimating_for_cpu() -> Iterator[None]:
    """Within the block, tensors of the meta device are computed as those of a CPU are, to estimate its memory."""
    token = _estimating.set(True)
    try:
        yield
    finally:
        _estimating.reset(token)


def computes_as_on_cpu(x: Tensor) -> bool:
    """Whether PyTorch computes this tensor at once on a CPU, or is to be counted as if it did."""
    return eager_on_cpu((x,)) or (x.is_meta and _estimating.get())


def eager_on_cpu(arguments: Iterable[object]) -> bool:
    """Whether a call with these arguments may bypass the dispatcher of ``torch.library``."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(type(x) in PLAIN_TYPES and x.is_cpu for x in arguments if isinstance(x, Tensor))
