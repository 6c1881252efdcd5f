"""The passes of a d-DiT as CUDA graphs.

A step of a small batch is about a thousand short kernels, which the host launches more slowly than the device computes
them; replaying a graph is one launch. Latents, times and index tensors are copied into the static inputs of the graph.
Texts and kept contexts are large and rarely change: they are copied only when they are different tensors, into padded
static inputs, so that requests can join and leave without a new capture. Contexts that the preceding pass of the same
step has computed are read in place. Numbers of rows are padded (``static_inputs.py``), and outputs are cut to size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...model.bridges import Context
from ...model.denoiser import Denoiser, Modulation, Sight
from ...types import Conditioning, Velocities
from ..delegate import Delegate
from .capture import Capture, CudaCapture
from .graph_runner import GraphCache, GraphRunner, OutputBuffer, Tensors
from .static_inputs import GraphInput, padded_size
from .stream_order import CudaStreamOrder, StreamOrder

MAX_GRAPHS = 128
MAX_ROWS = 16
MEMORY_FRACTION = 0.25  # of the device's memory, for outputs and static inputs


class CudaGraphDenoiser(Delegate):
    """A denoiser that captures the passes of ``model`` as CUDA graphs, and replays them.

    The outputs of a pass are valid until the next call of the same pass. Contexts are valid until the call after the
    next with ``overlap``, so that the following tower can read them while the leading tower computes the next step.
    Tensors that are given as texts, contexts or indices must not be written in place afterwards.

    Passes of more than ``max_rows`` rows are not captured: they keep the device busy for longer than the host needs to
    launch them, and padding them would cost more than it saves. The least recently used graphs are deleted beyond
    ``max_graphs`` graphs, and beyond ``max_bytes`` of outputs and static inputs (a quarter of the device's memory by
    default). ``capture`` and ``order`` replace those of CUDA in tests. Raises ``ValueError`` for a model that is not on
    a CUDA device, unless ``capture`` is given.
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
        order: StreamOrder | None = None,
    ) -> None:
        super().__init__(model)
        on_cuda = model.device.type == "cuda"
        if capture is None and not on_cuda:
            raise ValueError(f"CUDA graphs need a model on a CUDA device; this one is on {model.device}")
        if max_bytes is None and on_cuda:
            max_bytes = int(torch.cuda.get_device_properties(model.device).total_memory * MEMORY_FRACTION)
        self.overlap, self.max_rows = overlap, max_rows
        self.order = order or (CudaStreamOrder(model.device) if on_cuda else StreamOrder())
        self.graphs = GraphCache(capture or CudaCapture(model.device), self.order, max_graphs, max_bytes)
        leading = "audio" if self.config.bridge == "audio_rope" else "video"
        self._video, self._audio, self._joint = (
            GraphRunner(name, self.graphs, self.order, num_buffers=1 + (overlap and name == leading))
            for name in ("video", "audio", "joint")
        )

    def describe(self) -> dict[str, Any]:
        """The options that are on, and the number of captured graphs."""
        return super().describe() | {"cuda_graphs": True, "overlap": self.overlap, "captured_graphs": len(self.graphs)}

    @torch.inference_mode()
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
        rows = len(z if prefix_of_row is None else prefix_of_row)
        source = self._audio.buffer_of(heard)
        if rows > self.max_rows:
            outputs = self.model.video_pass(
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
            return self._record_read(source, outputs)
        padded_outputs = _padded_outputs(num_outputs, rows)
        inputs = {
            "z": GraphInput(z),
            "rows": GraphInput(times.rows),
            "embedded": GraphInput(times.embedded),
            **_keys_and_values(text),
            **_indices(text_of_row=text_of_row, heard_of_row=heard_of_row, prefix_of_row=prefix_of_row, seen=seen),
            **(_contexts(heard) if source is None else {}),
        }
        layers = 0 if heard is None else len(heard)

        def function(static: Tensors) -> tuple[Tensor, Context]:
            return self.model.video_pass(
                static["z"],
                Modulation(static["rows"], static["embedded"]),
                _conditioning(static),
                static["text_of_row"],
                heard=_context(static, layers, source),
                heard_of_row=static.get("heard_of_row"),
                prefix_of_row=static.get("prefix_of_row"),
                num_outputs=padded_outputs,
                seen=static.get("seen"),
            )

        (velocity, contexts), buffer = self._video.run(
            padded_outputs, inputs, function, source=source, returns_contexts=seen is not None
        )
        return velocity[: rows if num_outputs is None else num_outputs], _returned_contexts(
            buffer, contexts, 0 if seen is None else len(seen)
        )

    @torch.inference_mode()
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
        rows, source = len(z), self._video.buffer_of(context)
        if rows > self.max_rows:
            outputs = self.model.audio_pass(
                z, times, text, text_of_row, context=context, sight=sight, num_outputs=num_outputs
            )
            return self._record_read(source, outputs)
        padded_outputs, layers, text_tokens = (
            _padded_outputs(num_outputs, rows),
            0 if context is None else len(context),
            self._text_tokens(text),
        )
        inputs = {
            "z": GraphInput(z),
            "times": GraphInput(times),
            **text_tokens,
            **(_indices(text_of_row=text_of_row) if text_tokens else {}),
            **(_contexts(context) if source is None else {}),
        }
        if sight is not None:
            inputs["positions"] = GraphInput(sight.positions, immutable=True, exact=True)
            inputs |= _indices(context_of_row=sight.context_of_row)

        def function(static: Tensors) -> tuple[Tensor, Context]:
            positions = static.get("positions")
            return self.model.audio_pass(
                static["z"],
                static["times"],
                _conditioning(static),
                static.get("text_of_row", static["z"]),
                context=_context(static, layers, source),
                sight=None if positions is None else Sight(positions, static.get("context_of_row")),
                num_outputs=padded_outputs,
            )

        returns_contexts = self.config.bridge == "audio_rope"
        (velocity, contexts), buffer = self._audio.run(
            padded_outputs, inputs, function, source=source, returns_contexts=returns_contexts
        )
        return velocity[: rows if num_outputs is None else num_outputs], _returned_contexts(buffer, contexts, rows)

    @torch.inference_mode()
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
        rows = len(z_v)
        outputs_of = {"drawn_video": drawn_video, "drawn_audio": drawn_audio}
        if rows > self.max_rows:
            return self.model.joint_pass(
                z_v, z_a, times_v, times_a, text, text_of_row, bridged=bridged, reference=reference, **outputs_of
            )
        inputs = {
            "z_v": GraphInput(z_v),
            "z_a": GraphInput(z_a),
            "rows": GraphInput(times_v.rows),
            "embedded": GraphInput(times_v.embedded),
            "times_a": GraphInput(times_a),
            **_keys_and_values(text),
            **self._text_tokens(text),
            **_indices(text_of_row=text_of_row, **outputs_of),
        }
        if bridged is not None:  # exact: padding would repeat a row, which the pass would then write twice
            inputs["bridged"] = GraphInput(bridged, immutable=True, exact=True)
        if reference is not None:
            inputs["reference"] = GraphInput(reference, exact=bridged is not None)

        def function(static: Tensors) -> tuple[Tensor | None, Tensor | None]:
            velocities = self.model.joint_pass(
                static["z_v"],
                static["z_a"],
                Modulation(static["rows"], static["embedded"]),
                static["times_a"],
                _conditioning(static),
                static["text_of_row"],
                bridged=static.get("bridged"),
                reference=static.get("reference"),
                drawn_video=static.get("drawn_video"),
                drawn_audio=static.get("drawn_audio"),
            )
            return velocities.video, velocities.audio

        outputs, _ = self._joint.run(None, inputs, function)
        counts = (rows if index is None else len(index) for index in outputs_of.values())
        video, audio = (None if one is None else one[:count] for one, count in zip(outputs, counts, strict=True))
        return Velocities(video, audio)

    def _text_tokens(self, text: Conditioning) -> dict[str, GraphInput]:
        """The text tokens that the audio tower reads, if it reads any."""
        if text.audio is None or not self.config.audio_text:
            return {}
        return {"text_tokens": GraphInput(text.audio, immutable=True)}

    def _record_read(self, source: OutputBuffer | None, outputs: tuple[Tensor, Context]) -> tuple[Tensor, Context]:
        """The outputs of a pass that was not captured, after an event that says that it has read ``source``."""
        if source is not None:
            source.reads.append(self.order.record_event())
        return outputs


def _padded_outputs(num_outputs: int | None, rows: int) -> int | None:
    """The number of rows for which a captured pass computes outputs; None, all of them, if padding leaves no other."""
    if num_outputs is None or padded_size(num_outputs) >= padded_size(rows):
        return None
    return padded_size(num_outputs)


def _indices(**indices: Tensor | None) -> dict[str, GraphInput]:
    return {name: GraphInput(index, immutable=True) for name, index in indices.items() if index is not None}


def _keys_and_values(text: Conditioning) -> dict[str, GraphInput]:
    return {
        "keys": GraphInput(text.keys, axis=1, immutable=True),
        "values": GraphInput(text.values, axis=1, immutable=True),
        "lengths": GraphInput(text.lengths, immutable=True),
    }


def _conditioning(static: Tensors) -> Conditioning:
    """The text as far as the pass reads it; an arbitrary tensor takes the place of what it does not read."""
    unread = next(iter(static.values()))
    keys, values, lengths = (static.get(name, unread) for name in ("keys", "values", "lengths"))
    return Conditioning(keys, values, lengths, static.get("text_tokens"))


def _contexts(context: Context | None) -> dict[str, GraphInput]:
    return {f"context_layer{i}": GraphInput(part, immutable=True) for i, part in enumerate(context or ())}


def _context(static: Mapping[str, Tensor], layers: int, source: OutputBuffer | None) -> Context | None:
    """The contexts in the outputs of another pass, or their copies in static inputs; None where there are none."""
    if source is not None and source.graph is not None:
        return source.graph.outputs[1]
    return [static[f"context_layer{i}"] for i in range(layers)] or None


def _returned_contexts(buffer: OutputBuffer, contexts: Context, count: int) -> Context:
    """The first ``count`` contexts, remembered as those that the caller was given."""
    returned = [part[:count] for part in contexts]
    buffer.set_contexts(returned)
    return returned
