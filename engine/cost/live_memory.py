"""The bytes of live tensors while some work runs, on real tensors or on the meta device.

What an operation needs beside its outputs is not seen, except for convolutions on a CPU, where it can be more than
they are: PyTorch unfolds the input of a small one, and oneDNN copies inputs, weights and outputs into a layout of its
own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ONEDNN = aten.mkldnn_convolution.default
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
CONVOLUTIONS = (
    aten.convolution.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, ONEDNN, *TRANSPOSED,
)  # fmt: skip
LSTM = aten.lstm.input
# On a CPU PyTorch computes itself, without oneDNN, convolutions of one clip with at most SMALL of channels x frames x
# height and a kernel of at most LARGE_KERNEL, and with one thread those of fewer than MANY clips with one pixel.
SMALL, LARGE_KERNEL, MANY = 20480, 3, 16
BLOCK = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # channels, of oneDNN's layouts


class LiveMemoryMode(TorchDispatchMode):
    """Counts the bytes of live tensors that operations allocated: ``now``, and the ``peak``.

    ``on_cpu``: with what convolutions need beside their outputs on a CPU.
    """

    def __init__(self, *, on_cpu: bool = False) -> None:
        super().__init__()
        self.on_cpu = on_cpu
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(map(is_traceable_wrapper_subclass, given)):
            return NotImplemented  # quantized weights: what they do comes here again, as plain operations
        instead = ON_META.get(func, func) if args and getattr(args[0], "is_meta", False) else func
        found: Any = instead(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                if any(storage is tensor.untyped_storage() for tensor in given):
                    continue  # a view of a tensor that was there before, such as a weight
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        if self.on_cpu and func in CONVOLUTIONS:
            unfolds = func is not ONEDNN and func not in TRANSPOSED and _unfolds(args[0], args[1])
            beside = _unfolded_bytes if unfolds else _reordered_bytes
            self.peak = max(self.peak, self.now + beside(args[0], args[1], found))
        return found

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_bytes(work: Callable[[], object], *, on_cpu: bool = False) -> int:
    """The peak of the bytes that a call of ``work`` allocates; ``on_cpu`` as in :class:`LiveMemoryMode`."""
    with torch.inference_mode(), LiveMemoryMode(on_cpu=on_cpu) as memory:
        work()
    return memory.peak


def _unfolds(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch unfolds the input of a convolution (B, C, ...) and multiplies it, rather than ask oneDNN."""
    sides = weight.shape[2:][-2:]
    points = max(sides) == 1 and x.shape[0] < MANY and torch.get_num_threads() == 1
    large_kernel = len(sides) == 2 and min(sides) > LARGE_KERNEL
    return points or (x.shape[0] == 1 and prod(x.shape[:4]) <= SMALL and not large_kernel)


def _unfolded_bytes(x: Tensor, weight: Tensor, output: Tensor) -> int:
    """Bytes of the unfolded input, 0 where it is the input itself."""
    positions = x.shape[0] * prod(output.shape[2:])
    return 0 if max(weight.shape[2:]) == 1 else x.element_size() * weight[0].numel() * positions


def _reordered_bytes(x: Tensor, weight: Tensor, output: Tensor) -> int:
    """Bytes beside the output: input, weights and output in blocks of channels, or the output in both layouts.

    An input of less than a block is read as it is, but not by a kernel of one position.
    """
    made, as_it_is = _blocked_bytes(output), x.shape[1] < BLOCK and max(weight.shape[2:]) > 1
    return max(made, (0 if as_it_is else _blocked_bytes(x)) + weight.nbytes + made - output.nbytes)


def _blocked_bytes(x: Tensor) -> int:
    """Bytes of (B, C, ...) with C rounded up to whole blocks."""
    return x.element_size() * x.shape[0] * (-(-x.shape[1] // BLOCK) * BLOCK) * prod(x.shape[2:])


def _lstm_outputs(x: Tensor, states: Sequence[Tensor], *_: object) -> tuple[Tensor, ...]:
    """What an LSTM of one direction gives; on the meta device PyTorch would go through it token by token."""
    hidden, cell = states
    return x.new_empty(*x.shape[:-1], hidden.shape[-1]), torch.empty_like(hidden), torch.empty_like(cell)


def _convolution_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """What oneDNN's convolution gives, which has no form for the meta device."""
    return aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


ON_META: dict[Any, Callable[..., Any]] = {LSTM: _lstm_outputs, ONEDNN: _convolution_outputs}
