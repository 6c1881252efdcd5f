"""Triton where it is installed. Without it the kernels are never launched and the references do the work."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Absent:
        """Takes the place of a module at import time; a kernel stays a plain Python function."""

        @staticmethod
        def jit(function: Any) -> Any:
            return function

        @staticmethod
        def constexpr(value: Any) -> Any:
            return value

    triton = tl = _Absent()

INSTALLED = hasattr(triton, "__version__")
VERSION = tuple(map(int, triton.__version__.split(".")[:2])) if INSTALLED else (0, 0)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of any device (``TRITON_INTERPRET=1`` at import)."""
    return INSTALLED and bool(triton.knobs.runtime.interpret)


__all__ = ["INSTALLED", "VERSION", "interpreted", "tl", "triton"]
