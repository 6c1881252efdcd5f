"""How an operation enters PyTorch: one ``torch.library`` op, its plain reference, and a door that picks between them.

``torch.ops.syncflow.<name>`` is what export and ahead-of-time compilation see: a single node with a fake (shape) rule
and a derivative. While gradients are recorded the door runs the reference inline instead, because there the compiler
can fuse it and autograd knows its derivative without a second forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "syncflow"


def operation(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register ``reference`` (its annotations are the schema) as ``torch.ops.syncflow.<module name>``; return its door.

    The op is functional: it never aliases or mutates its inputs, and its output is contiguous.
    """
    name = reference.__module__.rpartition(".")[2]

    @functools.wraps(reference)
    def contiguous(*args: Any, **kwargs: Any) -> Tensor:
        return reference(*args, **kwargs).contiguous()

    op = torch.library.custom_op(f"{NAMESPACE}::{name}", contiguous, mutates_args=())
    op.register_fake(contiguous)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in tensors))
        ctx.tensor_positions, ctx.inputs = tensors, [None if isinstance(v, Tensor) else v for v in inputs]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.inputs)
        for position, tensor in zip(ctx.tensor_positions, ctx.saved_tensors, strict=True):
            inputs[position] = tensor.detach().requires_grad_(ctx.needs_input_grad[position])
        wanted = [i for i in ctx.tensor_positions if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            output = reference(*inputs)
        grads = torch.autograd.grad(output, [inputs[i] for i in wanted], grad, allow_unused=True)
        by_position = dict(zip(wanted, grads, strict=True))
        return tuple(by_position.get(i) for i in range(len(inputs)))

    op.register_autograd(backward, setup_context=setup_context)

    @functools.wraps(reference)
    def door(*args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            return reference(*args, **kwargs)
        return op(*args, **kwargs)

    return door
