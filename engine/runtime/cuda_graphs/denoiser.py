"""Every pass of a d-DiT as CUDA graphs: recorded once for a shape, replayed in one call of the driver.

A step of a small batch is a thousand short launches; the host is slower at them than the device. Latents, times and new
index tensors are copied to where the graph reads them. Texts and kept contexts, which are large and rarely change, are
copied when they are other tensors than before, into room for more of them than there are, so that requests come and go
without a new recording. The contexts of a step are read where the pass before has left them. Rows are rounded up
(``buckets.py``) and cut off again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...model.bridges import Context
from ...model.denoiser import AudioInputs, Denoiser, JointInputs, Modulation, VideoContextRef, VideoInputs
from ...types import Conditioning, Velocities
from ..buckets import round_up
from ..delegate import Delegate
from .capture import Capture, CudaCapture
from .graph_runner import Lane, Recordings, Slot, Tensors
from .static_inputs import Input
from .stream_order import CudaOrder, Order

MAX_GRAPHS = 128
MAX_ROWS = 16
SHARE = 4  # of the device's memory, one part for results and inputs


class GraphedDenoiser(Delegate):
    """A denoiser whose passes are recorded from those of ``model``; on a CUDA device.

    What a pass returns is valid until the next call of the same pass; contexts, with ``overlap``, until the next but
    one, so that the following tower can read them beside the leading tower of the next step. Tensors given as texts,
    contexts or indices must not be written to afterwards.

    Passes of more than ``max_rows`` rows are left to ``model``: they keep the device busy for longer than the host
    needs to launch them, and rounding them up would cost more than it saves. At most ``max_graphs`` recordings are
    kept, and ``max_bytes`` of results and inputs, by default a quarter of the device's memory. ``capture`` and
    ``order`` take the place of CUDA's. Raises ``ValueError`` for a model that is not on a CUDA device and no
    ``capture``.
    """

    def __init__(
        self,
        model: Denoiser,
        *,
        overlap: bool = False,
        max_rows: int = MAX_ROWS,
        max_graphs: int = MAX_GRAPHS,
        max_bytes: int | None = None,
        capture: Capture | None = None,
        order: Order | None = None,
    ) -> None:
        super().__init__(model)
        on_cuda = model.device.type == "cuda"
        if capture is None and not on_cuda:
            raise ValueError(f"CUDA graphs need a model on a CUDA device; this one is on {model.device}")
        if max_bytes is None and on_cuda:
            max_bytes = torch.cuda.get_device_properties(model.device).total_memory // SHARE
        self.overlap, self.max_rows = overlap, max_rows
        self.order = order or (CudaOrder(model.device) if on_cuda else Order())
        self.recordings = Recordings(capture or CudaCapture(model.device), self.order, max_graphs, max_bytes)
        leader = "audio" if self.config.bridge == "audio_rope" else "video"
        self._video, self._audio, self._joint = (
            Lane(name, self.recordings, self.order, slots=1 + (overlap and name == leader))
            for name in ("video", "audio", "joint")
        )

    def describe(self) -> dict[str, Any]:
        """Which switches are on, and how many graphs there are."""
        return super().describe() | {"graphs": True, "overlap": self.overlap, "recorded": len(self.recordings)}

    @torch.inference_mode()
    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        rows, context, context_rows = inputs.num_rows, inputs.audio_context, inputs.context_rows
        source = self._audio.lender(context)
        if rows > self.max_rows:
            return self._read(source, self.model.video_pass(inputs))
        upto = _rounded_outputs(inputs.num_outputs, rows)
        statics = {
            "latents": Input(inputs.latents),
            **_modulation_inputs(inputs.modulation),
            **_keys_and_values(inputs.text),
            **_steady(
                text_of_row=inputs.text_of_row,
                audio_context_of_row=inputs.audio_context_of_row,
                prefix_of_row=inputs.prefix_of_row,
                context_rows=context_rows,
            ),
            **(_contexts(context) if source is None else {}),
        }
        layers = 0 if context is None else len(context)

        def work(given: Tensors) -> tuple[Tensor, Context]:
            return self.model.video_pass(
                VideoInputs(
                    given["latents"],
                    _modulation(given),
                    _conditioning(given),
                    given["text_of_row"],
                    audio_context=_context(given, layers, source),
                    audio_context_of_row=given.get("audio_context_of_row"),
                    prefix_of_row=given.get("prefix_of_row"),
                    num_outputs=upto,
                    context_rows=given.get("context_rows"),
                )
            )

        (velocity, contexts), slot = self._video.run(upto, statics, work, reads=source, lends=context_rows is not None)
        lent = _lent(slot, contexts, 0 if context_rows is None else len(context_rows))
        return velocity[: rows if inputs.num_outputs is None else inputs.num_outputs], lent

    @torch.inference_mode()
    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        rows, context, ref = len(inputs.latents), inputs.video_context, inputs.video_context_ref
        source = self._video.lender(context)
        if rows > self.max_rows:
            return self._read(source, self.model.audio_pass(inputs))
        upto, layers = _rounded_outputs(inputs.num_outputs, rows), 0 if context is None else len(context)
        words = self._words(inputs.text)
        statics = {
            "latents": Input(inputs.latents),
            "time_token": Input(inputs.time_token),
            **words,
            **(_steady(text_of_row=inputs.text_of_row) if words else {}),
            **(_contexts(context) if source is None else {}),
        }
        if ref is not None:
            statics["positions"] = Input(ref.positions, steady=True, exact=True)
            statics |= _steady(context_of_row=ref.context_of_row)

        def work(given: Tensors) -> tuple[Tensor, Context]:
            positions = given.get("positions")
            return self.model.audio_pass(
                AudioInputs(
                    given["latents"],
                    given["time_token"],
                    _conditioning(given),
                    given.get("text_of_row", given["latents"]),
                    video_context=_context(given, layers, source),
                    video_context_ref=None
                    if positions is None
                    else VideoContextRef(positions, given.get("context_of_row")),
                    num_outputs=upto,
                )
            )

        lends = self.config.bridge == "audio_rope"
        (velocity, contexts), slot = self._audio.run(upto, statics, work, reads=source, lends=lends)
        lent = _lent(slot, contexts, rows)
        return velocity[: rows if inputs.num_outputs is None else inputs.num_outputs], lent

    @torch.inference_mode()
    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        rows, bridged_rows = len(inputs.video_latents), inputs.bridged_rows
        if rows > self.max_rows:
            return self.model.joint_pass(inputs)
        output_rows = {
            "video_output_rows": inputs.video_output_rows,
            "audio_output_rows": inputs.audio_output_rows,
        }
        statics = {
            "video_latents": Input(inputs.video_latents),
            "audio_latents": Input(inputs.audio_latents),
            **_modulation_inputs(inputs.modulation),
            "time_token": Input(inputs.time_token),
            **_keys_and_values(inputs.text),
            **self._words(inputs.text),
            **_steady(text_of_row=inputs.text_of_row, **output_rows),
        }
        if bridged_rows is not None:  # a row that stood there twice would be written to twice
            statics["bridged_rows"] = Input(bridged_rows, steady=True, exact=True)
        if inputs.reference is not None:
            statics["reference"] = Input(inputs.reference, exact=bridged_rows is not None)

        def work(given: Tensors) -> tuple[Tensor | None, Tensor | None]:
            names = "bridged_rows", "reference", "video_output_rows", "audio_output_rows"
            velocities = self.model.joint_pass(
                JointInputs(
                    given["video_latents"],
                    given["audio_latents"],
                    _modulation(given),
                    given["time_token"],
                    _conditioning(given),
                    given["text_of_row"],
                    **{name: given.get(name) for name in names},
                )
            )
            return velocities.video, velocities.audio

        found, _ = self._joint.run(None, statics, work)
        counts = (rows if index is None else len(index) for index in output_rows.values())
        video, audio = (None if one is None else one[:count] for one, count in zip(found, counts, strict=True))
        return Velocities(video, audio)

    def _words(self, text: Conditioning) -> dict[str, Input]:
        """The text that the audio tower reads, if it reads any."""
        return {} if text.audio is None or not self.config.audio_text else {"words": Input(text.audio, steady=True)}

    def _read(self, source: Slot | None, found: tuple[Tensor, Context]) -> tuple[Tensor, Context]:
        """What was found without a recording, which may have read what one has lent."""
        if source is not None:
            source.read.append(self.order.mark())
        return found


def _rounded_outputs(num_outputs: int | None, rows: int) -> int | None:
    """How many rows a recording draws; all of them as soon as rounding makes no difference."""
    return None if num_outputs is None or round_up(num_outputs) >= round_up(rows) else round_up(num_outputs)


def _steady(**indices: Tensor | None) -> dict[str, Input]:
    return {name: Input(index, steady=True) for name, index in indices.items() if index is not None}


def _modulation_inputs(modulation: Modulation) -> dict[str, Input]:
    return {name: Input(value) for name, value in modulation._asdict().items()}


def _modulation(given: Tensors) -> Modulation:
    return Modulation(*(given[name] for name in Modulation._fields))


def _keys_and_values(text: Conditioning) -> dict[str, Input]:
    return {
        "keys": Input(text.keys, axis=1, steady=True),
        "values": Input(text.values, axis=1, steady=True),
        "lengths": Input(text.lengths, steady=True),
    }


def _conditioning(given: Tensors) -> Conditioning:
    """The text as far as the pass reads it; any tensor stands for the rest."""
    unread = next(iter(given.values()))
    keys, values, lengths = (given.get(name, unread) for name in ("keys", "values", "lengths"))
    return Conditioning(keys, values, lengths, given.get("words"))


def _contexts(context: Context | None) -> dict[str, Input]:
    return {f"context_layer{i}": Input(part, steady=True) for i, part in enumerate(context or ())}


def _context(given: Mapping[str, Tensor], layers: int, source: Slot | None) -> Context | None:
    """Contexts where they were lent, or their copies; None where there are none."""
    if source is not None and source.last is not None:
        return source.last.result[1]
    return [given[f"context_layer{i}"] for i in range(layers)] or None


def _lent(slot: Slot, contexts: Context, count: int) -> Context:
    """The first ``count`` of the contexts in a slot."""
    given = [part[:count] for part in contexts]
    slot.lend(given)
    return given
