"""Whether PyTorch computes plain numbers on a CPU, here and now: nothing traces, transforms or counts the call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

PLAIN = frozenset((Tensor, nn.Parameter))


def eager_on_cpu(arguments: Iterable[object]) -> bool:
    """Whether a call with these arguments may be made directly, past the dispatcher of ``torch.library``.

    Tensors may also stand in lists and tuples, one level deep.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for argument in arguments:
        if isinstance(argument, Tensor):
            if type(argument) not in PLAIN or not argument.is_cpu:
                return False
        elif isinstance(argument, (list, tuple)) and not all(
            type(leaf) in PLAIN and leaf.is_cpu for leaf in argument if isinstance(leaf, Tensor)
        ):
            return False
    return True
