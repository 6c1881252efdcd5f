"""A model with its switches set: the runtime of its passes and the type of its weights."""

from __future__ import annotations

from ..model import DDiT
from ..model.denoiser import Denoiser
from .compiled import CompiledDenoiser
from .cuda_graphs.denoiser import CudaGraphDenoiser
from .fp8 import with_fp8
from .precision import DTYPES, cast

RUNTIMES = ("eager", "graphed", "compiled", "compiled, graphed")


def assemble(
    model: DDiT,
    runtime: str = "eager",
    *,
    dtype: str | None = None,
    fp8: bool = False,
    overlap: bool = False,
    autotune: bool = False,
) -> Denoiser:
    """The denoiser of ``model`` that a sampling loop is given.

    ``runtime`` of :data:`RUNTIMES`; ``dtype`` of the weights, by default as they are; ``fp8`` linears in the video
    blocks, which is approximate; ``overlap`` keeps contexts for a following tower on a stream of its own (and
    ``batch_of`` takes the same option); ``autotune`` as in
    :class:`~syncflow.engine.runtime.compiled.CompiledDenoiser`. Raises ``ValueError`` for a choice that there is not or
    that needs a CUDA device.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if autotune and "compiled" not in runtime:
        raise ValueError(f"autotune is for a compiled runtime; this one is {runtime}")
    if dtype is not None:
        model = cast(model, DTYPES[dtype])
    if fp8:
        model = with_fp8(model)
    made: Denoiser = model
    if "compiled" in runtime:
        made = CompiledDenoiser(made, autotune=autotune)
    return CudaGraphDenoiser(made, overlap=overlap) if "graphed" in runtime else made
