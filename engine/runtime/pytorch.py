"""A d-DiT computed by PyTorch: the type of its weights, and compilation, CUDA graphs, fp8 and plain operations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ...kernels import implementation
from ..exports import Precision
from ..model import DDiT
from ..model.bridges import Context
from ..model.denoiser import AudioInputs, Denoiser, JointInputs, Modulation, VideoInputs
from ..types import Conditioning, Velocities
from .compiled import CompiledDenoiser
from .cuda_graphs.denoiser import CudaGraphDenoiser
from .delegate import Delegate
from .fp8 import with_fp8
from .selection.settings import TorchOptions

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def cast(model: DDiT, dtype: torch.dtype) -> DDiT:
    """A model whose parameters are those of ``model`` in ``dtype``; ``model`` itself if they already are.

    Buffers keep their type: rotary frequencies in half precision would rotate distant positions by wrong angles. The
    sampling loop keeps its latents in float32 whatever the type of the model is.
    """
    if all(parameter.dtype == dtype for parameter in model.parameters()):
        return model
    with torch.device("meta"):
        result = DDiT(model.config)
    state = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    result.load_state_dict(state | dict(model.named_buffers()), assign=True)
    return result.train(model.training).requires_grad_(False)


def torch_denoiser(
    model: DDiT, precision: Precision, options: TorchOptions | None = None, *, compiled: bool = False
) -> Denoiser:
    """``model`` in a precision with these options, which ``resolve_settings`` has checked, and optionally compiled."""
    options = options or TorchOptions()
    model = cast(model, DTYPES[precision])
    if options.fp8:
        model = with_fp8(model)
    denoiser: Denoiser = CompiledDenoiser(model, autotune=options.autotune) if compiled else model
    return CudaGraphDenoiser(denoiser, overlap=bool(options.overlap)) if options.cuda_graphs else denoiser


class PlainTorchDenoiser(Delegate):
    """``model`` without the C++ operations and without Triton: every call runs in ``implementation("torch")``.

    The implementation is a setting of a thread, so each call sets it again: engines with other runtimes may compute in
    the same thread or in others.
    """

    def operations(self) -> AbstractContextManager[None]:
        """The context in which the sampling loop runs operations of its own."""
        return implementation("torch")

    @implementation("torch")
    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`, as for the methods below."""
        return self.model.condition(states, lengths)

    @implementation("torch")
    def condition_prior(self, priors: Tensor) -> Conditioning:
        """See :meth:`condition`."""
        return self.model.condition_prior(priors)

    @implementation("torch")
    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """See :meth:`condition`."""
        return self.model.modulation(t, fps)

    @implementation("torch")
    def audio_time(self, t: Tensor) -> Tensor:
        """See :meth:`condition`."""
        return self.model.audio_time(t)

    @implementation("torch")
    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """See :meth:`condition`."""
        return self.model.video_pass(inputs)

    @implementation("torch")
    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """See :meth:`condition`."""
        return self.model.audio_pass(inputs)

    @implementation("torch")
    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """See :meth:`condition`."""
        return self.model.joint_pass(inputs)

    @implementation("torch")
    def describe(self) -> dict[str, Any]:
        """The options that are on."""
        return super().describe()
