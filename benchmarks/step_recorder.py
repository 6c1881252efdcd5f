"""The operations that a denoising step sends to the device, with the part of the model that calls each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

PARTS = ("video tower", "adaptors", "contexts", "bridge", "audio tower", "loop")

Record = Callable[[str, str, tuple[Any, ...], object], object]


class StepRecorder(TorchDispatchMode):
    """Within the block, ``record(part, operation, arguments, output)`` is called for operations on the meta device.

    ``part`` is one of ``PARTS``; views are left out, as is what happens on the host. The name of an operation of
    this package begins with ``syncflow::``.
    """

    def __init__(self, model: nn.Module, record: Record) -> None:
        super().__init__()
        self.model, self.record = model, record
        self._stack: list[str] = []

    def __enter__(self) -> StepRecorder:
        self._hooks = [hook for name, one in self.model.named_modules() for hook in self._hook(name, one)]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str, module: nn.Module) -> Iterator[Any]:
        yield module.register_forward_pre_hook(lambda *_: self._stack.append(name))
        yield module.register_forward_hook(lambda *_: self._stack.pop() and None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view and _on_device(args, output):
            with _disable_current_modes():
                name = func.name().removeprefix("aten::").partition(".")[0]
                self.record(self._part(), name, args, output)
        return output

    def _part(self) -> str:
        video = any(name.startswith("video") for name in self._stack)
        if any(name.startswith("audio.adaptors") for name in self._stack):
            return "adaptors"
        if any(name.startswith("bridge") for name in self._stack):
            return "bridge"
        audio = any(name.startswith("audio") for name in self._stack)
        return "contexts" if video and audio else "video tower" if video else "audio tower" if audio else "loop"


def product_sizes(name: str, args: tuple[Any, ...], output: object) -> tuple[int, int, int] | None:
    """M, N and K of a matrix product of PyTorch, None of another operation."""
    if name in ("mm", "addmm", "linear"):
        x, weight = (args[0], args[1]) if name != "addmm" else (args[1], args[2])
        n = weight.shape[0] if name == "linear" else weight.shape[1]
        return x.numel() // x.shape[-1], n, x.shape[-1]
    if name == "convolution":
        weight = args[1]
        assert isinstance(output, Tensor)
        return output.numel() // weight.shape[0], weight.shape[0], weight[0].numel()
    return None


def _on_device(args: object, output: object) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_meta and leaf.numel() for leaf in tree_leaves((args, output)))
