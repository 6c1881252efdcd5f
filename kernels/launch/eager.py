"""Whether PyTorch computes plain numbers on a CPU: nothing traces, transforms or counts the call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


def eager_on_cpu(arguments: Iterable[object]) -> bool:
    """Whether a call with these arguments may bypass the dispatcher of ``torch.library``."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(type(x) in PLAIN_TYPES and x.is_cpu for x in arguments if isinstance(x, Tensor))
