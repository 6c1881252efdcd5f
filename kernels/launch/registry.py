"""How an operation enters PyTorch: one ``torch.library`` op, its plain reference, its Triton launches, and a door.

``torch.ops.syncflow.<name>`` is what export and ahead-of-time compilation see: a single node with a fake (shape) rule
and a derivative. On a GPU it launches the operation's kernels; ``torch.compile`` traces through to them, and on a CPU
to the reference. While gradients are recorded the door runs the reference inline instead, because there the compiler
can fuse it and autograd knows its derivative without a second forward pass. Where nothing records or traces, a door on
a CPU computes directly: the way through ``torch.library`` takes longer than many an operation of a small model.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args, get_type_hints
from typing import cast as typed

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .eager import eager_on_cpu
from .language import INSTALLED, interpreted
from .launching import Launch

NAMESPACE = "syncflow"
SUITED = ("auto", "torch")  # implementations in which a CPU computes an operation in the way that suits it best
Implementation = Literal["auto", "triton", "torch", "reference"]
Output = Tensor | tuple[Tensor, ...] | list[Tensor]
Prepare = Callable[..., tuple[Output, list[Launch]] | None]


def _checked(name: str) -> Implementation:
    for known in get_args(Implementation):
        if name == known:
            return typed("Implementation", known)
    raise ValueError(
        f"kernel implementation {name!r} is none of {', '.join(get_args(Implementation))} (SYNCFLOW_KERNELS)"
    )


_of_process: Implementation = _checked(os.environ.get("SYNCFLOW_KERNELS", "auto"))
_chosen: ContextVar[Implementation] = ContextVar("chosen", default=_of_process)


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Choose who computes the operations within a ``with`` block; ``SYNCFLOW_KERNELS`` chooses for a process.

    ``auto``: Triton on a GPU, or a library where an operation has one; on a CPU the C++ operations and oneDNN, where an
    operation has that; the reference elsewhere. ``torch``: the same without Triton and without the C++ operations, so
    that PyTorch's own operations compute everything. ``reference``: the reference everywhere. ``triton``: Triton in
    place of libraries too, and also on a CPU, which needs its interpreter (``TRITON_INTERPRET=1`` before the first
    import). The choice belongs to the thread (or asyncio task) that makes it; other threads keep theirs.
    """
    if _checked(name) == "triton" and not INSTALLED:
        raise ValueError("the Triton kernels need triton; install it with `pip install syncflow[gpu]`")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def current_implementation() -> Implementation:
    """Who computes the operations here and now, as :func:`implementation` or ``SYNCFLOW_KERNELS`` chose."""
    return _chosen.get()


def libraries() -> bool:
    """Whether a library may compute what there is a Triton kernel for."""
    return _chosen.get() != "triton"


def suits_cpu(arguments: Iterable[object]) -> bool:
    """Whether a call with these arguments, without gradients, may be computed in the way that suits a CPU best."""
    return eager_on_cpu(arguments) and _chosen.get() in SUITED


def launches_kernels(device: torch.device) -> bool:
    """Whether operations on this device launch Triton kernels, where they have them."""
    chosen = _chosen.get()
    if chosen in ("reference", "torch") or not INSTALLED:
        return False
    return device.type == "cuda" or (chosen == "triton" and device.type == "cpu" and interpreted())


def operation(
    reference: Callable[..., Any],
    prepare: Prepare | None = None,
    cpu: Callable[..., Any] | None = None,
    shape: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``reference`` (its annotations are the schema) as ``torch.ops.syncflow.<module name>``; return its door.

    ``prepare(*arguments)`` allocates the output and says which launches fill it, or is None where no kernel takes the
    arguments; an output that a library has made needs no launches. ``cpu(*arguments)`` computes the reference in the
    way that suits a CPU, without gradients; neither compilers nor export see it. ``shape(*arguments)`` allocates what
    the reference gives, which a trace learns from the reference where it is not told. The op is functional: it never
    aliases or mutates its inputs, and its outputs are contiguous.
    """
    name = reference.__module__.rpartition(".")[2]

    @functools.wraps(reference)
    def contiguous(*args: Any, **kwargs: Any) -> Any:
        return _contiguous(reference(*args, **kwargs))

    @functools.wraps(reference)
    def compute(*args: Any, **kwargs: Any) -> Any:
        if prepare is not None and launches_kernels(_device(args)):
            prepared = prepare(*args, **kwargs)
            if prepared is not None:
                output, launches = prepared
                for launch in launches:
                    launch.run()
                return output
        return contiguous(*args, **kwargs)

    signature = _resolved(reference)
    compute.__signature__ = signature  # type: ignore[attr-defined]
    # triton_op looks for kernels in the source of what a function wraps, for which it imports the compiler (2 s); a
    # reference has none, and a builtin has no source.
    compute.__wrapped__ = len
    op: Any = torch.library.triton_op(f"{NAMESPACE}::{name}", compute, mutates_args=())
    op.register_fake(shape or contiguous)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        leaves, ctx.spec = tree_flatten(inputs)
        tensors = [i for i, value in enumerate(leaves) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(leaves[i] for i in tensors))
        ctx.positions = tensors
        ctx.leaves = [None if isinstance(value, Tensor) else value for value in leaves]

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        leaves, wanted = list(ctx.leaves), []
        for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            leaves[position] = tensor.detach().requires_grad_(tensor.requires_grad and tensor.is_floating_point())
            if leaves[position].requires_grad:
                wanted.append(position)
        arguments = tree_unflatten(leaves, ctx.spec)
        with torch.enable_grad():
            outputs, _ = tree_flatten(reference(*arguments))
        given, _ = tree_flatten(list(grads))
        pairs = [(o, g) for o, g in zip(outputs, given, strict=True) if g is not None and o.requires_grad]
        sources = [leaves[i] for i in wanted]
        found: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if pairs:
            found = torch.autograd.grad([o for o, _ in pairs], sources, [g for _, g in pairs], allow_unused=True)
        by_position = dict(zip(wanted, found, strict=True))
        returned = tree_unflatten([by_position.get(i) for i in range(len(leaves))], ctx.spec)
        return tuple(None if _partial(a) else value for a, value in zip(arguments, returned, strict=True))

    op.register_autograd(backward, setup_context=setup_context)

    @functools.wraps(reference)
    def door(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return reference(*args, **kwargs)
        if eager_on_cpu((*args, *kwargs.values())) and (chosen := _chosen.get()) != "triton":
            return _contiguous((cpu if cpu is not None and chosen in SUITED else reference)(*args, **kwargs))
        return op(*args, **kwargs)

    door.prepare = prepare  # type: ignore[attr-defined]
    return door


def _contiguous(output: Any) -> Any:
    return output.contiguous() if isinstance(output, Tensor) else type(output)(one.contiguous() for one in output)


def _resolved(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with types in place of the names that ``from __future__ import annotations`` leaves."""
    types = get_type_hints(function)
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=types[p.name]) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=types["return"])


def _partial(argument: Any) -> bool:
    """A list in which tensors are missing: ``torch.library`` knows no derivative with respect to it."""
    return isinstance(argument, list) and not all(isinstance(x, Tensor) for x in argument)


def _device(args: tuple[Any, ...]) -> torch.device:
    leaves, _ = tree_flatten(args)
    return next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
