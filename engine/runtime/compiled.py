"""Every pass of a d-DiT through ``torch.compile``, whole: one compilation for any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes

from ..model.bridges import Context
from ..model.denoiser import AudioInputs, Denoiser, JointInputs, VideoInputs
from ..types import Conditioning, Velocities
from .delegate import Delegate

Inputs = TypeVar("Inputs")
T = TypeVar("T")


class CompiledDenoiser(Delegate):
    """A denoiser whose passes are those of ``model``, each compiled at its first call.

    The numbers of rows, prompts and contexts are dynamic; a number of 1 and an optional argument that is None are
    compiled separately. ``autotune`` times tile sizes of the matrix products on the device, which takes minutes.
    A ``CudaGraphDenoiser`` can capture the compiled passes. ``backend`` as in ``torch.compile``.
    """

    def __init__(self, model: Denoiser, *, autotune: bool = False, backend: str = "inductor") -> None:
        super().__init__(model)
        self.autotune, self.backend = autotune, backend
        mode = "max-autotune-no-cudagraphs" if autotune else None
        passes: list[Callable[..., Any]] = [model.video_pass, model.audio_pass, model.joint_pass]
        compiled: list[Callable[..., Any]] = [
            torch.compile(work, fullgraph=True, backend=backend, mode=mode) for work in passes
        ]
        self._video, self._audio, self._joint = compiled

    def describe(self) -> dict[str, Any]:
        """Which switches are on."""
        return super().describe() | {"compile": "max-autotune" if self.autotune else self.backend}

    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        context_rows = None if isinstance(inputs.context_rows, slice) else inputs.context_rows
        indices = inputs.text_of_row, inputs.audio_context_of_row, inputs.prefix_of_row, context_rows
        _mark_dynamic(inputs.text, inputs.latents, *inputs.modulation, *(inputs.audio_context or ()), *indices)
        return _without_duck_shapes(self._video, inputs)

    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        ref = inputs.video_context_ref
        indices = inputs.text_of_row, None if ref is None else ref.context_of_row
        _mark_dynamic(inputs.text, inputs.latents, inputs.time_token, *(inputs.video_context or ()), *indices)
        return _without_duck_shapes(self._audio, inputs)

    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        rows = inputs.video_latents, inputs.audio_latents, *inputs.modulation, inputs.time_token, inputs.reference
        indices = inputs.text_of_row, inputs.bridged_rows, inputs.video_output_rows, inputs.audio_output_rows
        _mark_dynamic(inputs.text, *rows, *indices)
        return _without_duck_shapes(self._joint, inputs)


def _mark_dynamic(text: Conditioning, *rows: Tensor | None) -> None:
    """Say that the first axis of ``rows``, and the prompts of a text, may have any size the next time."""
    axes = [(tensor, 0) for tensor in (*rows, text.lengths, text.text_tokens) if tensor is not None]
    for tensor, axis in (*axes, (text.keys, 1), (text.values, 1)):
        torch._dynamo.maybe_mark_dynamic(tensor, axis)


def _without_duck_shapes(compiled: Callable[[Inputs], T], inputs: Inputs) -> T:
    """Call, and compile where needed, without taking sizes that happen to be equal for the same."""
    with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        return compiled(inputs)
