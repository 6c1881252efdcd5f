"""A stand-in for CUDA graphs on a CPU: a tape of operations, replayed on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class Tape(TorchDispatchMode):
    """Every operation with its arguments and results. :meth:`play` computes them again, from and into the same memory.

    All values besides the contents of tensors are frozen, as in a CUDA graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], dict[int, Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        before = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
        leaves = enumerate(_tensors(result))
        made = {i: leaf for i, leaf in leaves if leaf.untyped_storage().data_ptr() not in before}
        self.operations.append((func, args, kwargs, made))
        return result

    @property
    def made(self) -> list[Tensor]:
        """The memory that the operations fill."""
        return [tensor for *_, made in self.operations for tensor in made.values()]

    def play(self) -> None:
        for func, args, kwargs, made in self.operations:
            if made or func._schema.is_mutable:
                found = _tensors(func(*args, **kwargs))
                for i, place in made.items():
                    place.copy_(found[i])


class TapeCapture:
    """A :class:`~syncflow.engine.runtime.cuda_graphs.capture.Capture` that keeps no more than it must.

    After the capture, and before each replay, all memory that the graph fills is NaN; a replay also writes NaN over the
    outputs of all graphs of its pool, whose memory it may use.
    """

    def __init__(self) -> None:
        self.results: dict[Hashable, list[Tensor]] = {}

    def __call__(self, work: Callable[[], T], pool: Hashable) -> Callable[[], T]:
        work()
        with Tape() as tape:
            result = work()
        results = self.results.setdefault(pool, [])
        results += _tensors(result)
        _spoil(tape.made)

        def replay() -> T:
            _spoil(results)
            _spoil(tape.made)
            tape.play()
            return result

        return replay


def _spoil(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
