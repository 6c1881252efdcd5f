"""A denoiser computed by PyTorch's own operations alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ...kernels import implementation
from ..model.bridges import Context
from ..model.denoiser import AudioInputs, JointInputs, Modulation, VideoInputs
from ..types import Conditioning, Velocities
from .delegate import Delegate


class PlainTorchDenoiser(Delegate):
    """``model`` without the C++ operations and without Triton: every call runs in ``implementation("torch")``.

    The choice of an implementation belongs to a thread, so each call makes it anew: engines with other runtimes may
    compute beside this one, in the same thread or in others.
    """

    def operations(self) -> AbstractContextManager[None]:
        """The context in which the sampling loop runs operations of its own."""
        return implementation("torch")

    @implementation("torch")
    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`, as for the methods below."""
        return self.model.condition(states, lengths)

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
        """Which switches are on."""
        return super().describe()
