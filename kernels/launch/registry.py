"""Registration of an operation with PyTorch: its ``torch.library`` op and the function that dispatches calls.

``torch.ops.syncflow.<name>`` is what export and ahead-of-time compilation see: a single node with a fake (shape) rule
and a derivative. On a GPU it launches the operation's kernels; ``torch.compile`` traces through to them, and on a CPU
to the reference. While gradients are recorded, ``dispatch`` runs the reference inline, so that the compiler can fuse it
and autograd needs no second forward pass. On a CPU, where nothing records or traces, ``dispatch`` computes directly: a
call through ``torch.library`` takes longer than many operations of a small model. Tensors of a subclass that holds
others, such as weights of torchao, know PyTorch's operations alone: with one of them the reference runs inline.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args, get_type_hints
from typing import cast as typed

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_unflatten

from .eager import eager_on_cpu
from .language import INSTALLED, interpreted
from .launching import Launch

if not INSTALLED:
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it would say so once for every operation
NAMESPACE = "syncflow"
CPU_PATHS = ("auto", "torch")  # implementations that use ``cpu`` functions
Implementation = Literal["auto", "triton", "torch", "reference"]
Output = Tensor | tuple[Tensor, ...] | list[Tensor]
PlanLaunches = Callable[..., tuple[Output, list[Launch]] | None]


def _parse(name: str) -> Implementation:
    for known in get_args(Implementation):
        if name == known:
            return typed("Implementation", known)
    raise ValueError(
        f"kernel implementation {name!r} is none of {', '.join(get_args(Implementation))} (SYNCFLOW_KERNELS)"
    )


_process_default: Implementation = _parse(os.environ.get("SYNCFLOW_KERNELS", "auto"))
_current: ContextVar[Implementation] = ContextVar("chosen", default=_process_default)


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Choose the implementation of the operations within a ``with`` block; ``SYNCFLOW_KERNELS`` sets it for a process.

    ``auto``: on a GPU Triton, or a library where an operation uses one; on a CPU the C++ operations and oneDNN, where
    an operation has them; else the reference. ``torch``: the same without Triton and without the C++ operations, so
    that only PyTorch's own operations run. ``reference``: the reference everywhere. ``triton``: Triton in place of
    libraries too, and also on a CPU, where it needs the interpreter (``TRITON_INTERPRET=1`` before the first import).
    The choice belongs to the thread (or asyncio task) that makes it.
    """
    if _parse(name) == "triton" and not INSTALLED:
        raise ValueError("the Triton kernels need triton; install it with `pip install syncflow[gpu]`")
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def current_implementation() -> Implementation:
    """The implementation that :func:`implementation` or ``SYNCFLOW_KERNELS`` has chosen for this thread."""
    return _current.get()


def libraries_allowed() -> bool:
    """Whether a library may take the place of a Triton kernel."""
    return _current.get() != "triton"


def uses_cpu_path(arguments: Iterable[object]) -> bool:
    """Whether a call with these arguments, without gradients, runs the fast implementation on a CPU."""
    return eager_on_cpu(arguments) and _current.get() in CPU_PATHS


def launches_kernels(device: torch.device) -> bool:
    """Whether operations on this device launch their Triton kernels."""
    chosen = _current.get()
    if chosen in ("reference", "torch") or not INSTALLED:
        return False
    return device.type == "cuda" or (chosen == "triton" and device.type == "cpu" and interpreted())


def operation(
    reference: Callable[..., Any],
    plan_launches: PlanLaunches | None = None,
    cpu: Callable[..., Any] | None = None,
    fake: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``reference`` as ``torch.ops.syncflow.<module name>``; return the function that dispatches calls.

    The annotations of ``reference`` are the schema. ``plan_launches(*arguments)`` allocates the output and returns it
    with the launches that fill it (none where a library has computed it), or returns None where no kernel supports the
    arguments. ``cpu(*arguments)`` is the fast implementation on a CPU, without gradients; compilers and export do not
    see it. ``fake(*arguments)`` allocates the output without computing it; without ``fake`` a trace runs the reference.
    The op is functional: it never aliases or mutates its inputs, and its outputs are contiguous.
    """
    name = reference.__module__.rpartition(".")[2]

    @functools.wraps(reference)
    def contiguous(*args: Any, **kwargs: Any) -> Any:
        return _contiguous(reference(*args, **kwargs))

    @functools.wraps(reference)
    def compute(*args: Any, **kwargs: Any) -> Any:
        if plan_launches is not None and launches_kernels(_device(args)):
            planned = plan_launches(*args, **kwargs)
            if planned is not None:
                output, launches = planned
                for launch in launches:
                    launch.run()
                return output
        return contiguous(*args, **kwargs)

    signature = _resolved_signature(reference)
    compute.__signature__ = signature  # type: ignore[attr-defined]
    # triton_op looks for kernels in the source of what a function wraps, for which it imports the compiler (2 s); a
    # reference has none, and a builtin has no source.
    compute.__wrapped__ = len
    op: Any = torch.library.triton_op(f"{NAMESPACE}::{name}", compute, mutates_args=())
    op.register_fake(fake or contiguous)

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
        return tuple(returned)

    op.register_autograd(backward, setup_context=setup_context)

    @functools.wraps(reference)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return reference(*args, **kwargs)
        if eager_on_cpu((*args, *kwargs.values())) and (chosen := _current.get()) != "triton":
            return _contiguous((cpu if cpu is not None and chosen in CPU_PATHS else reference)(*args, **kwargs))
        if any(isinstance(x, Tensor) and is_traceable_wrapper_subclass(x) for x in (*args, *kwargs.values())):
            return contiguous(*args, **kwargs)
        return op(*args, **kwargs)

    dispatch.plan_launches = plan_launches  # type: ignore[attr-defined]
    return dispatch


def _contiguous(output: Any) -> Any:
    return output.contiguous() if isinstance(output, Tensor) else type(output)(one.contiguous() for one in output)


def _resolved_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with types in place of the names that ``from __future__ import annotations`` leaves."""
    types = get_type_hints(function)
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=types[p.name]) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=types["return"])


def _device(args: tuple[Any, ...]) -> torch.device:
    leaves, _ = tree_flatten(args)
    return next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
