"""What is exported of a model: every graph as a module, with example inputs and the axes that stay free.

Names are those that the runtimes use (``engine/runtime/exported.py``). Letters of ``dynamic`` are the symbols of
``docs/method.md``: R rows, C contexts, P prompts, K times, B clips, T latent frames, H and W of the latents, A audio
tokens, N bridged rows, M tokens of a context, A_r tokens of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..engine.codecs import AudioCodec, VideoCodec
from ..engine.components import Components
from ..engine.config import ModelConfig
from ..engine.model import DDiT
from ..engine.model.denoiser import JointInputs, Modulation, VideoContextRef, VideoInputs
from ..engine.runtime.exported import collected, graph_names, numbered
from ..engine.types import Conditioning

Axes = dict[int, str]


@dataclass(frozen=True)
class Graph:
    """A module called with ``inputs`` in their order; ``dynamic`` names the free axes of each; ``outputs`` in order."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, Axes] = field(default_factory=dict)


class _Part(nn.Module):
    """One part of a d-DiT, called with tensors in the order of ``names``; returns a tuple of tensors."""

    def __init__(self, model: DDiT, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.names = model, names

    def named(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True))


class PrepareText(_Part):
    """States (P, L, W) -> keys and values (blocks, P, L, n, d), and the projected tokens (P, L, D)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (states,) = tensors
        found = self.model.condition(states, states.new_zeros(states.shape[0], dtype=torch.long))
        assert found.text_tokens is not None
        return found.keys, found.values, found.text_tokens


class PrepareTimes(_Part):
    """Flow times t (K,) and frame rates fps (K,) -> block modulation (K, 6, D), time embedding (K, D), and the time
    token of the audio (K, D)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        t, fps = tensors
        block_modulation, time_embedding = self.model.modulation(t[:, None], fps)
        return block_modulation[:, 0], time_embedding[:, 0], self.model.audio_time(t)


class DenoiseVideo(_Part):
    """The video tower: velocity, and in an ``adaptor`` model what the adaptors attend over, by layer."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        of = self.named(tensors)
        rows = of["latents"], _modulation(of), _text(of), of["text_of_row"]
        if self.model.config.bridge == "audio_rope":
            inputs = VideoInputs(
                *rows,
                audio_context=collected("audio_context", of),
                audio_context_of_row=of["audio_context_of_row"],
                prefix_of_row=of["prefix_of_row"],
                frame_times=of["frame_times"],
            )
            return (self.model.video_pass(inputs)[0],)
        velocity, pooled = self.model.video(*rows, keep=lambda _, x: self.model.audio.pool(x))
        return velocity, *pooled


class AdaptVideo(_Part):
    """Pooled features (C, M, D) of every layer at positions (M,) -> contexts (C, M, 2, n, d) of every layer."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        of = self.named(tensors)
        rope = self.model.audio.rope_table(of["video_token_positions"])
        return tuple(self.model.audio.adapt(i, x, rope) for i, x in enumerate(collected("feature", of)))


class DenoiseAudio(_Part):
    """The audio tower: velocity, and in an ``audio_rope`` model what the video reads, by bridged layer."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        of = self.named(tensors)
        context, ref = None, None
        if self.model.config.bridge == "adaptor":
            context = collected("video_context", of)
            ref = VideoContextRef(of["video_token_positions"], of["video_context_of_row"])
        inputs = of["latents"], of["time_token"], context, ref, of.get("text_tokens")
        velocity, attended = self.model.audio(*inputs)
        if self.model.config.bridge == "adaptor":
            return (velocity,)
        assert self.model.bridge is not None
        return velocity, *self.model.bridge.adapt(attended)  # type: ignore[operator]


class EmbedReference(_Part):
    """Reference latents (N, A_r, C_a) -> style tokens (N, A_r, D)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.model.style(tensors[0]),)


class DenoiseJoint(_Part):
    """Both towers of a ``global_local`` model."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        of = self.named(tensors)
        inputs = JointInputs(
            of["video_latents"],
            of["audio_latents"],
            _modulation(of),
            of["time_token"],
            _text(of),
            of["text_of_row"],
            bridged_rows=of["bridged_rows"],
            frame_times=of["frame_times"],
        )
        found = self.model.run_both_towers(inputs, of.get("text_tokens"), of["style"])
        assert found.video is not None and found.audio is not None
        return found.video, found.audio


class VideoDecoder(nn.Module):
    """Latents (B, C_v, T, H, W) -> frames uint8 (B, F, H', W', 3), of which the last are the clip's."""

    def __init__(self, codec: VideoCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents, latents.shape[2] * self.codec.strides.time)


class VideoEncoder(VideoDecoder):
    """Frames uint8 (B, F, H', W', 3), as many as fill latents, -> latents (B, C_v, T, H, W)."""

    def forward(self, frames: Tensor) -> Tensor:
        return self.codec.encode(frames)


class AudioDecoder(nn.Module):
    """Latents (B, A, C_a) -> waveform (B, M)."""

    def __init__(self, codec: AudioCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents, latents.shape[1] * self.codec.hop)


class AudioEncoder(AudioDecoder):
    """Waveform (B, M), as many samples as fill latents, -> latents (B, A, C_a)."""

    def forward(self, waveform: Tensor) -> Tensor:
        return self.codec.encode(waveform)


def _modulation(of: dict[str, Tensor]) -> Modulation:
    return Modulation(of["block_modulation"], of["time_embedding"])


def _text(of: dict[str, Tensor]) -> Conditioning:
    return Conditioning(of["keys"], of["values"], of["lengths"])


def denoiser_graphs(model: DDiT, config: ModelConfig) -> list[Graph]:
    """The graphs of a d-DiT, with inputs of the model's own clip."""
    examples = _Examples(model, config)
    return [getattr(examples, name)() for name in graph_names(model.config)]


def codec_graphs(components: Components) -> list[Graph]:
    """Text encoder, decoders, and the encoders of known media."""
    s, d = components.config.sequence, components.config.ddit
    latents = torch.zeros(2, d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
    video, audio = components.video, components.audio
    frames = torch.zeros(2, s.latent_frames * video.strides.time, s.height, s.width, 3, dtype=torch.uint8)
    sounds = torch.zeros(2, s.audio_tokens, d.audio_channels)
    waveform = torch.zeros(2, s.audio_tokens * audio.hop)
    ids = torch.ones(2, d.text_tokens, dtype=torch.long)
    texts: dict[str, Axes] = {"ids": {0: "P"}, "mask": {0: "P"}}
    samples: Axes = {0: "B", 1: "M"}
    clips: Axes = {0: "B", 2: "T", 3: "H", 4: "W"}
    return [
        Graph("text_encoder", components.text, {"ids": ids, "mask": ids.bool()}, ("states",), texts),
        Graph("video_decoder", VideoDecoder(video), {"latents": latents}, ("frames",), {"latents": clips}),
        Graph("audio_decoder", AudioDecoder(audio), {"latents": sounds}, ("waveform",), {"latents": {0: "B", 1: "A"}}),
        Graph(
            "video_encoder",
            VideoEncoder(video),
            {"frames": frames},
            ("latents",),
            {"frames": {0: "B", 1: "F", 2: "height", 3: "width"}},
        ),
        Graph("audio_encoder", AudioEncoder(audio), {"waveform": waveform}, ("latents",), {"waveform": samples}),
    ]


class _Examples:
    """Example inputs of every graph of a d-DiT; sizes of free axes differ, so that none is taken for another."""

    def __init__(self, model: DDiT, config: ModelConfig) -> None:
        self.model, self.s, self.d = model, config.sequence, model.config
        self.rows, self.prompts, self.contexts = 4, 3, 2

    def prepare_text(self) -> Graph:
        states = self._floats(self.prompts, self.d.text_tokens, self.d.text_width)
        outputs = "keys", "values", "text_tokens"
        return Graph("prepare_text", PrepareText(self.model), {"states": states}, outputs, {"states": {0: "P"}})

    def prepare_times(self) -> Graph:
        t, fps = torch.rand(5, device=self.model.device), torch.full((5,), float(self.s.fps), device=self.model.device)
        outputs = "block_modulation", "time_embedding", "time_token"
        times: dict[str, Axes] = {"t": {0: "K"}, "fps": {0: "K"}}
        return Graph("prepare_times", PrepareTimes(self.model), {"t": t, "fps": fps}, outputs, times)

    def denoise_video(self) -> Graph:
        if self.d.bridge == "adaptor":
            inputs, dynamic = self._video("latents", "R", self.rows)
            outputs = "velocity", *numbered("feature", [torch.empty(0)] * self.d.depth)
            return self._graph("denoise_video", DenoiseVideo, inputs, outputs, dynamic)
        inputs, dynamic = self._video("latents", "Q", self.prompts + 2)
        layers = range(self.d.first_block, self.d.depth)
        context = numbered("audio_context", [self._context(self.s.audio_tokens, self.d.heads) for _ in layers])
        inputs |= {"prefix_of_row": self._indices(self.rows), "audio_context_of_row": self._indices(self.rows)}
        inputs["frame_times"] = self._floats(self.s.latent_frames)
        inputs |= context
        dynamic |= {"prefix_of_row": {0: "R"}, "audio_context_of_row": {0: "R"}, "frame_times": {0: "T"}}
        dynamic |= {name: {0: "C", 1: "A"} for name in context}
        return self._graph("denoise_video", DenoiseVideo, inputs, ("velocity",), dynamic)

    def adapt_video(self) -> Graph:
        features = [self._floats(self.contexts, self._context_tokens, self.d.width) for _ in range(self.d.depth)]
        inputs = {"video_token_positions": self._floats(self._context_tokens), **numbered("feature", features)}
        dynamic: dict[str, Axes] = {"video_token_positions": {0: "M"}} | {
            n: {0: "C", 1: "M"} for n in numbered("feature", features)
        }
        outputs = tuple(numbered("video_context", features))
        return self._graph("adapt_video", AdaptVideo, inputs, outputs, dynamic)

    def denoise_audio(self) -> Graph:
        inputs, dynamic = self._audio("latents")
        outputs: tuple[str, ...] = ("velocity",)
        if self.d.bridge == "adaptor":
            tokens, layers = self._context_tokens, range(self.d.depth)
            context = numbered("video_context", [self._context(tokens, self.d.audio_heads) for _ in layers])
            inputs |= {"video_token_positions": self._floats(tokens), "video_context_of_row": self._indices(self.rows)}
            inputs |= context
            dynamic |= {"video_token_positions": {0: "M"}, "video_context_of_row": {0: "R"}}
            dynamic |= {name: {0: "C", 1: "M"} for name in context}
        else:
            outputs = "velocity", *numbered("audio_context", [torch.empty(0)] * (self.d.depth - self.d.first_block))
        return self._graph("denoise_audio", DenoiseAudio, inputs, outputs, dynamic)

    def embed_reference(self) -> Graph:
        reference = self._floats(self.contexts, 7, self.d.audio_channels)
        dynamic: dict[str, Axes] = {"reference": {0: "N", 1: "A_r"}}
        return Graph("embed_reference", EmbedReference(self.model), {"reference": reference}, ("style",), dynamic)

    def denoise_joint(self) -> Graph:
        inputs, dynamic = self._video("video_latents", "R", self.rows)
        audio, axes = self._audio("audio_latents")
        inputs |= audio | {
            "frame_times": self._floats(self.s.latent_frames),
            "bridged_rows": self._indices(self.rows - 1),
            "style": self._floats(self.rows - 1, 7, self.d.width),
        }
        dynamic |= axes | {"frame_times": {0: "T"}, "bridged_rows": {0: "N"}, "style": {0: "N", 1: "A_r"}}
        return self._graph("denoise_joint", DenoiseJoint, inputs, ("video_velocity", "audio_velocity"), dynamic)

    def _video(self, latents: str, rows: str, count: int) -> tuple[dict[str, Tensor], dict[str, Axes]]:
        s, d = self.s, self.d
        text = (2 * d.depth, self.prompts, d.text_tokens, d.heads, d.head_width)
        inputs = {
            latents: self._floats(count, d.video_channels, s.latent_frames, s.latent_height, s.latent_width),
            "block_modulation": self._floats(count, s.latent_frames, 6, d.width),
            "time_embedding": self._floats(count, s.latent_frames, d.width),
            "keys": self._floats(*text),
            "values": self._floats(*text),
            "lengths": torch.tensor([d.text_tokens, 3, 5], device=self.model.device),
            "text_of_row": self._indices(count),
        }
        dynamic: dict[str, Axes] = {
            latents: {0: rows, 2: "T", 3: "H", 4: "W"},
            "block_modulation": {0: rows, 1: "T"},
            "time_embedding": {0: rows, 1: "T"},
            "keys": {1: "P"},
            "values": {1: "P"},
            "lengths": {0: "P"},
            "text_of_row": {0: rows},
        }
        return inputs, dynamic

    def _audio(self, latents: str) -> tuple[dict[str, Tensor], dict[str, Axes]]:
        inputs = {
            latents: self._floats(self.rows, self.s.audio_tokens, self.d.audio_channels),
            "time_token": self._floats(self.rows, self.d.width),
        }
        dynamic: dict[str, Axes] = {latents: {0: "R", 1: "A"}, "time_token": {0: "R"}}
        if self.d.audio_text:
            inputs["text_tokens"] = self._floats(self.rows, self.d.text_tokens, self.d.width)
            dynamic["text_tokens"] = {0: "R"}
        return inputs, dynamic

    def _graph(
        self,
        name: str,
        kind: type[_Part],
        inputs: dict[str, Tensor],
        outputs: tuple[str, ...],
        dynamic: dict[str, Axes],
    ) -> Graph:
        return Graph(name, kind(self.model, tuple(inputs)), inputs, outputs, dynamic)

    @property
    def _context_tokens(self) -> int:
        """M of a context from the video."""
        return self.s.latent_frames * (1 if self.d.adaptor_tokens == "frame" else self.s.spatial_tokens)

    def _context(self, length: int, heads: int) -> Tensor:
        return self._floats(self.contexts, length, 2, heads, self.d.width // heads)

    def _floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.model.device, dtype=self.model.dtype)

    def _indices(self, count: int) -> Tensor:
        return torch.arange(count, device=self.model.device) % self.contexts
