"""Every pass of a d-DiT through ``torch.compile``, whole: one compilation for any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes

from ..model.bridges import Context
from ..model.denoiser import Denoiser, Modulation, Sight
from ..types import Conditioning, Velocities
from .delegate import Delegate

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

    def video_pass(
        self,
        z: Tensor,
        times: Modulation,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        heard: Context | None = None,
        heard_of_row: Tensor | None = None,
        prefix_of_row: Tensor | None = None,
        num_outputs: int | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        _vary(text, z, *times, text_of_row, *(heard or ()), heard_of_row, prefix_of_row, seen)
        return _with_sizes_apart(
            lambda: self._video(
                z,
                times,
                text,
                text_of_row,
                heard=heard,
                heard_of_row=heard_of_row,
                prefix_of_row=prefix_of_row,
                num_outputs=num_outputs,
                seen=seen,
            )
        )

    def audio_pass(
        self,
        z: Tensor,
        times: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        context: Context | None = None,
        sight: Sight | None = None,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        _vary(text, z, times, text_of_row, *(context or ()), None if sight is None else sight.context_of_row)
        return _with_sizes_apart(
            lambda: self._audio(z, times, text, text_of_row, context=context, sight=sight, num_outputs=num_outputs)
        )

    def joint_pass(
        self,
        z_v: Tensor,
        z_a: Tensor,
        times_v: Modulation,
        times_a: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        bridged: Tensor | None = None,
        reference: Tensor | None = None,
        drawn_video: Tensor | None = None,
        drawn_audio: Tensor | None = None,
    ) -> Velocities:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        _vary(text, z_v, z_a, *times_v, times_a, text_of_row, bridged, reference, drawn_video, drawn_audio)
        return _with_sizes_apart(
            lambda: self._joint(
                z_v,
                z_a,
                times_v,
                times_a,
                text,
                text_of_row,
                bridged=bridged,
                reference=reference,
                drawn_video=drawn_video,
                drawn_audio=drawn_audio,
            )
        )


def _vary(text: Conditioning, *rows: Tensor | None) -> None:
    """Say that the first axis of ``rows``, and the prompts of a text, may have any size the next time."""
    axes = [(tensor, 0) for tensor in (*rows, text.lengths, text.audio) if tensor is not None]
    for tensor, axis in (*axes, (text.keys, 1), (text.values, 1)):
        torch._dynamo.maybe_mark_dynamic(tensor, axis)


def _with_sizes_apart(call: Callable[[], T]) -> T:
    """Call, and compile where needed, without taking sizes that happen to be equal for the same."""
    with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        return call()
