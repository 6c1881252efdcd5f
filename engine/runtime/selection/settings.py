"""Settings of a runtime, and the values of those that the user leaves open: a pure function of the device and model.

On a CPU the default is float32. On a CUDA device it is bfloat16 (float16 where the device has no bfloat16); with the
runtime ``auto`` the passes are CUDA graphs, and in a one-way model the towers of successive steps overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self, get_args

import torch

from ...exports import Device, Precision

PRECISIONS = ("auto", *get_args(Precision))
# Runtimes that take the options below, and those whose precision "auto" depends on the device.
WITH_OPTIONS = ("auto", "torch", "compiled")
DEVICE_PRECISION = (*WITH_OPTIONS, "torch-plain")
BFLOAT16_CAPABILITY = (8, 0)  # of the first CUDA devices with bfloat16
FP8_CAPABILITY = (8, 9)  # of the first CUDA devices with 8-bit floats


@dataclass(frozen=True)
class ComputeDevice:
    """The properties of a device on which defaults depend; ``capability`` is the compute capability of a GPU."""

    type: Device
    capability: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """Those of a device of PyTorch."""
        return cls("cuda", torch.cuda.get_device_capability(device)) if device.type == "cuda" else cls("cpu")

    def __str__(self) -> str:
        major, minor = self.capability
        return "a CPU" if self.type == "cpu" else f"a CUDA device of compute capability {major}.{minor}"


@dataclass(frozen=True)
class TorchOptions:
    """How PyTorch runs the passes. None is resolved by :func:`resolve_settings`.

    ``cuda_graphs`` captures each pass as a CUDA graph. ``overlap`` runs the following tower of a one-way model beside
    the leading tower of the next step. ``fp8`` computes linear layers of the video blocks in 8-bit floats, which is
    approximate. ``autotune`` times the tile sizes of matrix products when the runtime ``compiled`` compiles.
    ``block_offload`` keeps the weights of the video blocks on the host and moves them to the device one block ahead.
    """

    cuda_graphs: bool | None = None
    overlap: bool | None = None
    fp8: bool = False
    autotune: bool = False
    block_offload: bool = False

    @property
    def requested(self) -> tuple[str, ...]:
        """The names of the options that are on."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))


def resolve_settings(
    runtime: str, precision: str, options: TorchOptions, device: ComputeDevice, *, one_way: bool
) -> tuple[Precision, TorchOptions]:
    """The precision and options with which ``runtime`` computes on ``device``; every value is decided.

    ``one_way``: one tower of the model reads nothing of the other. Raises ``ValueError`` for a precision that does not
    exist and for an option that does not apply.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    on_cuda = device.type == "cuda"
    if options.requested and runtime not in WITH_OPTIONS:
        option = options.requested[0]
        raise ValueError(f"{option} is an option of the runtimes {', '.join(WITH_OPTIONS)}; this one is {runtime}")
    if options.autotune and runtime != "compiled":
        raise ValueError(f"autotune is an option of the runtime compiled; this one is {runtime}")
    if options.cuda_graphs and not on_cuda:
        raise ValueError(f"cuda_graphs needs a CUDA device; this is {device}")
    if options.overlap and not on_cuda:
        raise ValueError(f"overlap needs a CUDA device; this is {device}")
    if options.overlap and not one_way:
        raise ValueError("overlap needs a model in which one tower reads nothing of the other; in this one both read")
    if options.fp8 and (not on_cuda or device.capability < FP8_CAPABILITY):
        major, minor = FP8_CAPABILITY
        raise ValueError(f"fp8 needs a CUDA device of compute capability {major}.{minor} or newer; this is {device}")
    if options.block_offload and not on_cuda:
        raise ValueError(f"block_offload needs a CUDA device; this is {device}")
    if options.block_offload and (options.cuda_graphs or options.fp8 or runtime == "compiled"):
        raise ValueError("block_offload goes without cuda_graphs, fp8 and the runtime compiled")
    automatic = on_cuda and runtime == "auto" and not options.block_offload
    resolved = TorchOptions(
        cuda_graphs=automatic if options.cuda_graphs is None else options.cuda_graphs,
        overlap=automatic and one_way if options.overlap is None else options.overlap,
        fp8=options.fp8,
        autotune=options.autotune,
        block_offload=options.block_offload,
    )
    return _precision(runtime, precision, device), resolved


def _precision(runtime: str, precision: str, device: ComputeDevice) -> Precision:
    for known in get_args(Precision):
        if precision == known:
            return known
    if device.type == "cpu" or runtime not in DEVICE_PRECISION:
        return "float32"
    return "bfloat16" if device.capability >= BFLOAT16_CAPABILITY else "float16"
