"""How an operation reaches the device: registration with PyTorch, launches of its kernels, choice of tiles."""

from . import tiles
from .language import interpreted, tl, triton
from .launching import Launch, attention_tiles, has_fp8, head_tiles, supported
from .registry import (
    current_implementation,
    implementation,
    launches_kernels,
    libraries_allowed,
    operation,
    uses_cpu_path,
)

__all__ = [
    "Launch",
    "attention_tiles",
    "current_implementation",
    "has_fp8",
    "head_tiles",
    "implementation",
    "interpreted",
    "launches_kernels",
    "libraries_allowed",
    "operation",
    "supported",
    "tiles",
    "tl",
    "triton",
    "uses_cpu_path",
]
