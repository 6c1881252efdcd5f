"""The passes of a d-DiT as CUDA graphs.

A step of a small batch is about a thousand short kernels, which the host launches more slowly than the device computes
them; replaying a graph is one launch. Latents, times and index tensors are copied into the static inputs of the graph.
Texts and kept contexts are large and rarely change: they are copied only when they are different tensors, into padded
static inputs, so that requests can join and leave without a new capture. Contexts that the preceding pass of the same
step has computed are read in place. Numbers of rows are padded (``static_inputs.py``), and outputs are cut to size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...model.bridges import Context
from ...model.denoiser import ALL_ROWS, AudioInputs, Denoiser, JointInputs, Modulation, VideoContextRef, VideoInputs
from ...model.tower_step import TowerStep
from ...types import Conditioning, Velocities
from ..delegate import Delegate
from .capture import Capture, CudaCapture
from .graph_runner import GraphCache, GraphRunner, OutputBuffer, Tensors
from .static_inputs import GraphInput, padded_size
from .stream_order import MAX_STEPS_AHEAD, StepLimit, StreamOrder, order_of

MAX_GRAPHS = 128
MAX_ROWS = 16
MEMORY_FRACTION = 0.25  # of the device's memory, for outputs and static inputs


class CudaGraphDenoiser(Delegate):
    """A denoiser that captures the passes of ``model`` as CUDA graphs, and replays them.

    The outputs of a pass are valid until the next call of the same pass. Contexts are valid until the call after the
    next with ``overlap``, so that the following tower can read them while the leading tower computes the next step.
    Tensors that are given as texts, contexts or indices must not be written in place afterwards. Batches of several
    threads can use one denoiser: :meth:`operations` is a lock that each of them holds for a step. The host is at most
    ``max_steps_ahead`` steps ahead of the device.

    A graph has at most ``max_rows`` rows: more keep the device busy for longer than the host needs to launch them, and
    padding them would cost more than it saves. The sampling loop keeps its batches below that
    (``sampling/sequential.py``); the takes of one request, which read the same contexts, are split here over several
    replays, and any other pass of more rows is not captured. The least recently used graphs are deleted beyond
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
        max_steps_ahead: int = MAX_STEPS_AHEAD,
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
        self._lock = threading.RLock()
        self.order = order or order_of(model.device)
        self.step_limit = StepLimit(self.order, max_steps_ahead)
        self.graphs = GraphCache(capture or CudaCapture(model.device), self.order, max_graphs, max_bytes)
        leading = "audio" if self.config.bridge == "audio_rope" else "video"
        self._video, self._audio, self._joint = (
            GraphRunner(name, self.graphs, self.order, num_buffers=1 + (overlap and name == leading))
            for name in ("video", "audio", "joint")
        )

    @contextmanager
    def operations(self) -> Iterator[None]:
        """A lock, which the sampling loop holds during a step: its passes share static inputs and output buffers.

        Before the step the host waits for that of ``max_steps_ahead`` steps ago, so that it never is further ahead.
        """
        with self._lock, self.step_limit.step():
            yield

    def describe(self) -> dict[str, Any]:
        """The options that are on, and the number of captured graphs."""
        return super().describe() | {"cuda_graphs": True, "overlap": self.overlap, "captured_graphs": len(self.graphs)}

    @torch.inference_mode()
    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        if inputs.num_rows > self.max_rows:
            source = self._audio.buffer_of(inputs.audio_context)
            return self._record_read(source, self.model.video_pass(inputs))
        return self._run_video(inputs, None)

    @torch.inference_mode()
    def video_step(self, inputs: VideoInputs, step: TowerStep) -> Context:
        """A pass with the Euler step around it, in one graph. -> what :meth:`video_pass` returns besides the velocity.

        The rows, at most ``max_rows``, are those of ``step``, which takes the place of latents and modulation.
        """
        return self._run_video(inputs, step)[1]

    def _run_video(self, inputs: VideoInputs, step: TowerStep | None) -> tuple[Tensor, Context]:
        rows, context, context_rows = inputs.num_rows, inputs.audio_context, inputs.context_rows
        every_row = isinstance(context_rows, slice)  # then the padded ones too
        source = self._audio.buffer_of(context)
        padded_outputs = _padded_outputs(inputs.num_outputs, rows)
        own = {"latents": GraphInput(inputs.latents), **_modulation_inputs(inputs.modulation)}
        graph_inputs = {
            **(own if step is None else _step_inputs(step)),
            **_keys_and_values(inputs.text),
            **_indices(
                text_of_row=inputs.text_of_row,
                audio_context_of_row=inputs.audio_context_of_row,
                prefix_of_row=inputs.prefix_of_row,
                context_rows=None if isinstance(context_rows, slice) else context_rows,
            ),
            **_frame_times_input(inputs),
            **({} if inputs.pixels is None else {"pixels": GraphInput(inputs.pixels, immutable=True, exact=True)}),
            **(_contexts(context) if source is None else {}),
        }
        layers = 0 if context is None else len(context)

        def function(static: Tensors) -> tuple[Tensor | None, Context]:
            if step is None:
                latents, modulation = static["latents"], _modulation(static)
            else:
                latents, times = _step(static).row_inputs(self.dtype)
                modulation = Modulation(*times)
            velocity, contexts = self.model.video_pass(
                VideoInputs(
                    latents,
                    modulation,
                    _conditioning(static),
                    static["text_of_row"],
                    audio_context=_context(static, layers, source),
                    audio_context_of_row=static.get("audio_context_of_row"),
                    prefix_of_row=static.get("prefix_of_row"),
                    num_outputs=padded_outputs,
                    context_rows=ALL_ROWS if every_row else static.get("context_rows"),
                    frame_times=static.get("frame_times"),
                    pixels=static.get("pixels"),
                )
            )
            return _finish(static, step, velocity), contexts

        constants, returns_contexts = (padded_outputs, every_row), context_rows is not None
        (velocity, contexts), buffer = self._video.run(
            constants, graph_inputs, function, source=source, returns_contexts=returns_contexts
        )
        count = 0 if context_rows is None else rows if isinstance(context_rows, slice) else len(context_rows)
        returned = _returned_contexts(buffer, contexts, count)
        return _first(velocity, inputs.num_outputs, rows), returned

    @torch.inference_mode()
    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        if len(inputs.text_of_row) > self.max_rows:
            if parts := _split(inputs, self.max_rows):
                return torch.cat([self._run_audio(part, None)[0].clone() for part in parts]), []
            source = self._video.buffer_of(inputs.video_context)
            return self._record_read(source, self.model.audio_pass(inputs))
        return self._run_audio(inputs, None)

    @torch.inference_mode()
    def audio_step(self, inputs: AudioInputs, step: TowerStep) -> Context:
        """As :meth:`video_step`, of the audio; ``step`` takes the place of latents and time tokens."""
        return self._run_audio(inputs, step)[1]

    def _run_audio(self, inputs: AudioInputs, step: TowerStep | None) -> tuple[Tensor, Context]:
        rows, context, ref = len(inputs.text_of_row), inputs.video_context, inputs.video_context_ref
        source = self._video.buffer_of(context)
        padded_outputs, layers = _padded_outputs(inputs.num_outputs, rows), 0 if context is None else len(context)
        text_tokens = self._text_tokens(inputs.text)
        own = {"latents": GraphInput(inputs.latents), "time_token": GraphInput(inputs.time_token)}
        graph_inputs = {
            **(own if step is None else _step_inputs(step)),
            **text_tokens,
            **(_indices(text_of_row=inputs.text_of_row) if text_tokens else {}),
            **(_contexts(context) if source is None else {}),
        }
        if ref is not None:
            graph_inputs["positions"] = GraphInput(ref.positions, immutable=True, exact=True)
            graph_inputs |= _indices(context_of_row=ref.context_of_row)

        def function(static: Tensors) -> tuple[Tensor | None, Context]:
            positions = static.get("positions")
            reference = None if positions is None else VideoContextRef(positions, static.get("context_of_row"))
            if step is None:
                latents, time_token = static["latents"], static["time_token"]
            else:
                latents, times = _step(static).row_inputs(self.dtype)
                time_token = times[0][:, 0]
            velocity, contexts = self.model.audio_pass(
                AudioInputs(
                    latents,
                    time_token,
                    _conditioning(static),
                    static.get("text_of_row", latents),
                    video_context=_context(static, layers, source),
                    video_context_ref=reference,
                    num_outputs=padded_outputs,
                )
            )
            return _finish(static, step, velocity), contexts

        returns_contexts = self.config.bridge == "audio_rope"
        (velocity, contexts), buffer = self._audio.run(
            padded_outputs, graph_inputs, function, source=source, returns_contexts=returns_contexts
        )
        returned = _returned_contexts(buffer, contexts, rows)
        return _first(velocity, inputs.num_outputs, rows), returned

    @torch.inference_mode()
    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`."""
        rows, bridged_rows = len(inputs.video_latents), inputs.bridged_rows
        if rows > self.max_rows or inputs.time_token is None:  # bidirectional models are not captured
            return self.model.joint_pass(inputs)
        output_rows = {
            "video_output_rows": inputs.video_output_rows,
            "audio_output_rows": inputs.audio_output_rows,
        }
        graph_inputs = {
            "video_latents": GraphInput(inputs.video_latents),
            "audio_latents": GraphInput(inputs.audio_latents),
            **_modulation_inputs(inputs.modulation),
            "time_token": GraphInput(inputs.time_token),
            **_keys_and_values(inputs.text),
            **self._text_tokens(inputs.text),
            **_indices(text_of_row=inputs.text_of_row, **output_rows),
            **_frame_times_input(inputs),
        }
        if bridged_rows is not None:  # exact: padding would repeat a row, which the pass would then write twice
            graph_inputs["bridged_rows"] = GraphInput(bridged_rows, immutable=True, exact=True)
        if inputs.reference is not None:
            graph_inputs["reference"] = GraphInput(inputs.reference, exact=bridged_rows is not None)

        def function(static: Tensors) -> tuple[Tensor | None, Tensor | None]:
            names = "bridged_rows", "reference", "video_output_rows", "audio_output_rows", "frame_times"
            optional: dict[str, Any] = {name: static.get(name) for name in names}
            velocities = self.model.joint_pass(
                JointInputs(
                    static["video_latents"],
                    static["audio_latents"],
                    _modulation(static),
                    static["time_token"],
                    _conditioning(static),
                    static["text_of_row"],
                    **optional,
                )
            )
            return velocities.video, velocities.audio

        outputs, _ = self._joint.run(None, graph_inputs, function)
        counts = (rows if index is None else len(index) for index in output_rows.values())
        video, audio = (None if one is None else one[:count] for one, count in zip(outputs, counts, strict=True))
        return Velocities(video, audio)

    def _text_tokens(self, text: Conditioning) -> dict[str, GraphInput]:
        """The text tokens that the audio tower reads, if it reads any."""
        if text.text_tokens is None or not self.config.audio_text:
            return {}
        return {"text_tokens": GraphInput(text.text_tokens, immutable=True)}

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


def _first(velocity: Any, num_outputs: int | None, rows: int) -> Any:
    """The velocity of the rows that were asked for; None, what the graph of a whole step returns, stays None."""
    return None if velocity is None else velocity[: rows if num_outputs is None else num_outputs]


def _split(inputs: AudioInputs, max_rows: int) -> list[AudioInputs]:
    """Passes of at most ``max_rows`` rows each, of rows that read given contexts; none where contexts are returned."""
    ref, rows = inputs.video_context_ref, len(inputs.latents)
    if max_rows == 0 or ref is None or ref.context_of_row is None or inputs.num_outputs is not None:
        return []
    parts = [slice(first, first + max_rows) for first in range(0, rows, max_rows)]
    return [
        replace(
            inputs,
            latents=inputs.latents[part],
            time_token=inputs.time_token[part],
            text_of_row=inputs.text_of_row[part],
            video_context_ref=VideoContextRef(ref.positions, ref.context_of_row[part]),
        )
        for part in parts
    ]


def _step_inputs(step: TowerStep) -> dict[str, GraphInput]:
    """The tensors of a step, of which the first two are its state."""
    return {
        "step_latents": GraphInput(step.latents, version=step.version),
        "step_steps": GraphInput(step.steps, version=step.version),
        "step_grid": GraphInput(step.grid, immutable=True),
        **{f"step_times{i}": GraphInput(part, immutable=True) for i, part in enumerate(step.times)},
        **{f"step_{name}": GraphInput(getattr(step, name), immutable=True) for name in ("samples", "rows", "weights")},
    }


def _step(static: Tensors) -> TowerStep:
    """The step whose tensors are static inputs."""
    names = "latents", "steps", "grid", "samples", "rows", "weights"
    times = tuple(tensor for name, tensor in static.items() if name.startswith("step_times"))
    return TowerStep(version=0, times=times, **{name: static[f"step_{name}"] for name in names})


def _finish(static: Tensors, step: TowerStep | None, velocity: Tensor) -> Tensor | None:
    """The velocity of a pass; of a step nothing, once its latents have moved."""
    if step is None:
        return velocity
    _step(static).update(velocity)
    return None


def _indices(**indices: Tensor | None) -> dict[str, GraphInput]:
    return {name: GraphInput(index, immutable=True) for name, index in indices.items() if index is not None}


def _frame_times_input(inputs: VideoInputs | JointInputs) -> dict[str, GraphInput]:
    times = inputs.frame_times
    return {} if times is None else {"frame_times": GraphInput(times, immutable=True, exact=True)}


def _modulation_inputs(modulation: Modulation) -> dict[str, GraphInput]:
    return {name: GraphInput(value) for name, value in modulation._asdict().items()}


def _modulation(static: Tensors) -> Modulation:
    return Modulation(*(static[name] for name in Modulation._fields))


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
