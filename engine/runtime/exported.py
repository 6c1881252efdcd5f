"""A d-DiT as exported graphs that a library runs: ONNX Runtime, OpenVINO, AOTInductor, TensorRT.

The sampling loop asks for passes (``engine/model/denoiser.py``); every pass is one call of an exported graph, with
named tensors in and out. ``export/graphs.py`` has the graphs, with the same names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import DDiTConfig
from ..exports import Export, GraphSpec
from ..model import DDiT
from ..model.bridges import Context, GlobalLocalBridge
from ..model.denoiser import (
    AudioInputs,
    JointInputs,
    Modulation,
    VideoInputs,
    context_positions,
    frame_times_of,
    spatial_tokens,
)
from ..types import Conditioning, Velocities
from .cuda_graphs.stream_order import StepLimit, order_of

Tensors = Mapping[str, Tensor]
Run = Callable[[Tensors], Tensors]
Load = Callable[[GraphSpec, Path], Run]


def without_weights(model: DDiT, dtype: torch.dtype, device: torch.device) -> DDiT:
    """A model that stands for ``model`` where graphs compute it: weights of ``dtype`` that have shapes and no values.

    ``null_text`` and ``silence``, which no graph holds, are those of ``model``, on ``device``.
    """
    with torch.device("meta"):
        shapes = DDiT(model.config).to(dtype).train(model.training).requires_grad_(False)
    shapes.video.y_embedder.y_embedding = nn.Parameter(model.null_text.to(device), requires_grad=False)
    if isinstance(model.bridge, GlobalLocalBridge) and isinstance(shapes.bridge, GlobalLocalBridge):
        shapes.bridge.silence = nn.Parameter(model.bridge.silence.to(device), requires_grad=False)
    return shapes


class Graphs(Protocol):
    """Runs graphs by name."""

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        """The outputs of graph ``name``; which graphs there are depends on the bridge of the model."""


class Sessions:
    """Runs the graphs of an export by name; each is loaded when it is first called.

    ``load`` loads one of them; ``settings`` are those of the library, for reports. Raises ``ValueError`` for an export
    whose files do not match their checksums.
    """

    def __init__(self, export: Export, load: Load, settings: Mapping[str, Any]) -> None:
        self.export, self.settings = export.check(), dict(settings)
        self._load = load
        self._loaded: dict[str, Run] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        """The outputs of graph ``name``."""
        with self._lock:
            if name not in self._loaded:
                spec = self.export.graphs[name]
                self._loaded[name] = self._load(spec, self.export.path / spec.file)
        return self._loaded[name](inputs)


def graph_names(config: DDiTConfig) -> tuple[str, ...]:
    """The graphs of a model: what is computed once a prompt, once a schedule, and in every step."""
    steps = {
        "adaptor": ("denoise_video", "adapt_video", "denoise_audio"),
        "audio_rope": ("denoise_audio", "denoise_video"),
        "global_local": ("embed_reference", "denoise_joint"),
        "none": ("denoise_video",),
        "bidirectional": (),  # not exported
    }
    return ("prepare_text", "prepare_times", *steps[config.bridge])


def numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Tensors of the layers under names: ``video_context_0``, ``video_context_1``, …."""
    return {f"{name}_{i}": tensor for i, tensor in enumerate(tensors)}


def collected(name: str, tensors: Tensors) -> list[Tensor]:
    """The inverse of :func:`numbered`."""
    count = sum(key.rpartition("_")[0] == name for key in tensors)
    return [tensors[f"{name}_{i}"] for i in range(count)]


class GraphDenoiser:
    """A :class:`~syncflow.engine.model.denoiser.Denoiser` whose passes are graphs.

    ``null_text`` (L, W) and, in a ``global_local`` model, ``silence`` (1, 1, D) are weights that no graph holds.
    """

    def __init__(
        self,
        config: DDiTConfig,
        run: Graphs,
        null_text: Tensor,
        silence: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.run = config, run
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.step_limit = StepLimit(order_of(self.device))
        self.null_text = null_text.to(self.device)
        self.silence = None if silence is None else silence.to(self.device, dtype)

    def operations(self) -> AbstractContextManager[None]:
        """Within, the sampling loop makes a step: on a GPU the host is never many of them ahead of the device."""
        return self.step_limit.step()

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks for P prompts."""
        found = self.run("prepare_text", {"states": states.to(self.dtype)})
        return Conditioning(found["keys"], found["values"], lengths, found["text_tokens"])

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """Of the video's flow times t (R, T or 1) and frame rates fps (R,)."""
        frames = t.shape[1]
        flat = t.flatten()
        found = self.run("prepare_times", {"t": flat.float(), "fps": fps.repeat_interleave(frames)})
        return Modulation(*(found[name].unflatten(0, (-1, frames)) for name in Modulation._fields))

    def audio_time(self, t: Tensor) -> Tensor:
        """Of the audio's flow times t (R,). -> (R, D), or (R, 0) in a model without an audio tower."""
        if not self.config.has_audio:
            return t.new_zeros(len(t), 0)
        return self.run("prepare_times", {"t": t, "fps": torch.ones_like(t)})["time_token"]

    def video_token_positions(self, frame_times: Tensor, tokens: int) -> Tensor:
        """Positions on the clock of the audio of the tokens of a context. -> (M,)."""
        return context_positions(self.config, frame_times, tokens)

    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """Velocity, and the contexts of ``context_rows``; the graph has a velocity for all rows.

        Raises ``ValueError`` for latents that are not of whole patches, which graphs do not take.
        """
        if inputs.pixels is not None:
            step = self.config.patch * 8
            raise ValueError(f"exported graphs take sizes that are multiples of {step}; another runtime takes this one")
        z, context = inputs.latents, inputs.audio_context
        tensors = {"latents": z, **self._modulation_and_text(inputs, z.shape[2])}
        frame_times = frame_times_of(self.config, z, inputs.frame_times)
        if self.config.bridge == "audio_rope":
            tensors["frame_times"] = frame_times
            rows = torch.arange(len(z), device=self.device)
            prefix = rows if inputs.prefix_of_row is None else inputs.prefix_of_row
            if context is None:
                layers = self.config.depth - self.config.first_block
                context, of_row = self._empty_context(layers, self.config.heads), torch.full_like(prefix, -1)
            else:
                of_row = prefix if inputs.audio_context_of_row is None else inputs.audio_context_of_row
            tensors |= {"prefix_of_row": prefix, "audio_context_of_row": of_row, **numbered("audio_context", context)}
        found = self.run("denoise_video", tensors)
        if inputs.context_rows is None:
            return found["velocity"], []
        features = [feature[inputs.context_rows] for feature in collected("feature", found)]
        positions = self.video_token_positions(frame_times, spatial_tokens(self.config, z))
        adapted = self.run("adapt_video", {"video_token_positions": positions, **numbered("feature", features)})
        return found["velocity"], collected("video_context", adapted)

    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """Velocity, and in an ``audio_rope`` model the context of every row."""
        context, ref = inputs.video_context, inputs.video_context_ref
        tensors = {"latents": inputs.latents, "time_token": inputs.time_token, **self._text_tokens(inputs)}
        if self.config.bridge == "audio_rope":
            found = self.run("denoise_audio", tensors)
            return found["velocity"], collected("audio_context", found)
        rows = torch.arange(len(inputs.latents), device=self.device)
        if context is None or ref is None:
            context = self._empty_context(self.config.depth, self.config.audio_heads)
            positions, of_row = torch.zeros(2, device=self.device), torch.full_like(rows, -1)
        else:
            positions, of_row = ref.positions, rows if ref.context_of_row is None else ref.context_of_row
        tensors |= {"video_token_positions": positions, "video_context_of_row": of_row}
        tensors |= numbered("video_context", context)
        return self.run("denoise_audio", tensors)["velocity"], []

    @property
    def null_prior(self) -> Tensor:
        """Empty: a model with the bridge ``bidirectional`` is not exported."""
        return self.null_text.new_empty(0, 0)

    def condition_prior(self, priors: Tensor) -> Conditioning:
        """See :meth:`null_prior`."""
        raise AssertionError("a model with the bridge bidirectional has no exported graphs")

    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """Velocities of the rows that are asked for; the graph has them for all rows."""
        assert self.silence is not None and inputs.time_token is not None
        rows, reference = inputs.bridged_rows, inputs.reference
        if rows is None:
            rows = torch.arange(len(inputs.video_latents), device=self.device)
        style = self.silence
        if reference is not None:
            style = self.run("embed_reference", {"reference": reference})["style"]
        tensors = {
            "video_latents": inputs.video_latents,
            **self._modulation_and_text(inputs, inputs.video_latents.shape[2]),
            "audio_latents": inputs.audio_latents,
            "time_token": inputs.time_token,
            **self._text_tokens(inputs),
            "frame_times": frame_times_of(self.config, inputs.video_latents, inputs.frame_times),
            "bridged_rows": rows,
            "style": style.expand(len(rows), -1, -1).contiguous(),
        }
        found = self.run("denoise_joint", tensors)
        video, audio = found["video_velocity"], found["audio_velocity"]
        if inputs.video_output_rows is not None:
            video = video[inputs.video_output_rows]
        if inputs.audio_output_rows is not None:
            audio = audio[inputs.audio_output_rows]
        return Velocities(video, audio)

    def _modulation_and_text(self, inputs: VideoInputs | JointInputs, frames: int) -> dict[str, Tensor]:
        block_modulation, time_embedding = inputs.modulation
        return {
            "block_modulation": block_modulation.expand(-1, frames, -1, -1),
            "time_embedding": time_embedding.expand(-1, frames, -1),
            "keys": inputs.text.keys,
            "values": inputs.text.values,
            "lengths": inputs.text.lengths,
            "text_of_row": inputs.text_of_row,
        }

    def _text_tokens(self, inputs: AudioInputs | JointInputs) -> dict[str, Tensor]:
        """What the audio tower reads of the text, if it reads any: the tokens of each row (R, L, D)."""
        if not self.config.audio_text:
            return {}
        assert inputs.text.text_tokens is not None
        return {"text_tokens": inputs.text.text_tokens[inputs.text_of_row]}

    def _empty_context(self, layers: int, heads: int) -> Context:
        """A context that stands where no row reads any: graphs want one, of two tokens."""
        shape = (1, 2, 2, heads, self.config.width // heads)
        return [torch.zeros(shape, device=self.device, dtype=self.dtype)] * layers
