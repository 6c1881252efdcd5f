"""One launch of a Triton kernel as a value: it can be run, traced by PyTorch's compiler, or compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .language import interpreted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, and its arguments by name: ``arguments`` at run time, ``constants`` at compile time.

    ``tiles`` are more constants, with ``num_warps`` and ``num_stages`` among them. An empty grid does nothing.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Tensor | int]
    constants: Mapping[str, Any]
    tiles: Mapping[str, int]

    def run(self) -> None:
        """Put it on the current stream of the device of its tensors, or into the graph that is being traced."""
        if 0 in self.grid:
            return
        kernel = self.kernel if interpreted() else torch.library.wrap_triton(self.kernel)
        with self._device():
            kernel[self.grid](**self.arguments, **self.constants, **self.tiles)

    def _device(self) -> AbstractContextManager[object]:
        """Makes the device of the tensors the current one, on which Triton launches whatever its arguments are."""
        index = next((x.get_device() for x in self.arguments.values() if isinstance(x, Tensor)), -1)
        return torch.cuda.device(index) if index >= 0 and torch.cuda.is_initialized() else nullcontext()


def supported(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors: float32, float16 or bfloat16, one type where there are several."""
    types = {x.dtype for x in tensors if x is not None}
    return len(types) == 1 and types <= set(DTYPES)


def has_fp8(device: torch.device) -> bool:
    """Whether the device works on 8-bit floats: a GPU from capability 8.9 on, or one that is not here."""
    present = device.type == "cuda" and torch.cuda.is_available()
    return not present or torch.cuda.get_device_capability(device) >= (8, 9)


def head_tiles(width: int) -> dict[str, int] | None:
    """A head of ``width`` channels as a power-of-two tile and one for the rest: 72 = 64 + 16, of which 8 count.

    -> constants WIDTH, MAIN, TAIL (0: no second tile); None where no kernel takes the width. A matrix product needs 16
    channels at least; padding 72 to the next power of two would compute 128.
    """
    if width % 2 or not 2 <= width <= 128:
        return None
    main = max(16, 1 << (width.bit_length() - 1))
    rest = max(0, width - main)
    return {"WIDTH": width, "MAIN": main, "TAIL": max(16, 1 << (rest - 1).bit_length()) if rest else 0}


def attention_tiles(dtype: torch.dtype, head: Mapping[str, int]) -> dict[str, int]:
    """Tiles of an attention that walks over its keys, for a GPU that nobody has measured.

    64 queries a program leave room for three of them on a multiprocessor of 64 K registers; float32, whose products
    are three of tf32 each, and heads beyond 80 channels take tiles at which nothing spills.
    """
    wide = head["MAIN"] + head["TAIL"] > 80
    if dtype == torch.float32:
        if wide:
            return {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
        return {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    if wide:
        return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
