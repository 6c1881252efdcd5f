"""Towers whose blocks are native, and that keep what depends on the shape of a clip alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ...model.audio import AudioLayer, AudioTower, ModalityAdaptor
from ...model.bridges import Context, Reader
from ...model.denoiser import Sight
from ...model.video import STDiTBlock, VideoTower
from ...types import Conditioning
from .blocks import NativeAdaptor, NativeAudioLayer, NativeBlock, OfTensor, here, run_audio, run_video, share

SHAPES = 64  # that are kept


T = TypeVar("T")


def plainly(make: Callable[..., T]) -> Callable[..., T]:
    """``make`` outside of inference mode, whose tensors are of no use elsewhere, and without gradients."""

    @wraps(make)
    def made(*arguments: Any) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return make(*arguments)

    return made


class NativeVideoTower(VideoTower):
    """A video tower with native blocks and the weights of ``tower``."""

    def __init__(self, tower: VideoTower) -> None:
        share(self, tower)
        self.config = tower.config
        self.spatial_blocks, self.temporal_blocks = (
            nn.ModuleList(NativeBlock(cast("STDiTBlock", block)) for block in blocks)
            for blocks in (tower.spatial_blocks, tower.temporal_blocks)
        )
        self.rope_table = lru_cache(SHAPES)(plainly(tower.rope_table))  # type: ignore[method-assign]
        self.positions = lru_cache(SHAPES)(plainly(tower.positions))  # type: ignore[method-assign]

    def forward(
        self,
        z: Tensor,
        rows: Tensor,
        embedded: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        readers: Mapping[int, Reader] | None = None,
        prefix_of_row: Tensor | None = None,
        num_outputs: int | None = None,
        keep: Callable[[int, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`~syncflow.engine.model.video.VideoTower`; all blocks in one call where no audio is read."""
        if readers or prefix_of_row is not None or not here(z):
            return super().forward(z, rows, embedded, text, text_of_row, readers, prefix_of_row, num_outputs, keep)
        state = self.enter(z, rows, embedded, text, text_of_row)
        blocks = [cast("NativeBlock", block) for layer in self.layers for block in layer]
        features = state.x.new_empty(1 if keep is None else len(self.layers), *state.x.shape)
        attended = [features[i // 2 % len(features)] if i % 2 else None for i in range(len(blocks))]
        x, _ = run_video(blocks, None, state.x, blocks[0].norm(state.x, rows), state, 0, attended, num_outputs)
        state = replace(state if num_outputs is None else state.take(slice(num_outputs)), x=x)
        return self.finish(state), [] if keep is None else [keep(i, feature) for i, feature in enumerate(features)]


class NativeAudioTower(AudioTower):
    """An audio tower with native layers and adaptors and the weights of ``tower``."""

    def __init__(self, tower: AudioTower) -> None:
        share(self, tower)
        config = self.config = tower.config
        self.rope_table = OfTensor(plainly(tower.rope_table))  # type: ignore[method-assign, assignment]
        layers = [cast("AudioLayer", layer) for layer in tower.layers]
        self.heard = config.bridge != "adaptor"
        self.layers = nn.ModuleList(NativeAudioLayer(layer, self.rope_table, heard=self.heard) for layer in layers)
        pooled = config.adaptor_tokens == "frame"
        self._contexts = [
            NativeAdaptor(cast("ModalityAdaptor", adaptor), layer.cross_attn, pooled=pooled)
            for adaptor, layer in zip(tower.adaptors, layers, strict=False)
        ]
        self.clock = lru_cache(SHAPES)(plainly(tower.clock))  # type: ignore[method-assign]
        self.video_positions = lru_cache(SHAPES)(plainly(tower.video_positions))  # type: ignore[method-assign]

    def context(self, index: int, feature: Tensor, rows: Tensor, rope: Tensor) -> Tensor:
        """See :class:`~syncflow.engine.model.audio.AudioTower`."""
        if not self._contexts or not here(feature):
            return super().context(index, feature, rows, rope)
        return self._contexts[index](feature, rows, rope)

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        context: Context | None = None,
        sight: Sight | None = None,
        text: Tensor | None = None,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`~syncflow.engine.model.audio.AudioTower`; all layers in one call. Tokens only where they are
        heard."""
        if not here(z):
            return super().forward(z, time, context, sight, text, num_outputs)
        state = self.enter(z, time, text, sight=sight)
        layers = [cast("NativeAudioLayer", layer) for layer in self.layers]
        sounds = [state.x.new_empty(state.x.shape) for _ in layers if self.heard]
        read = [None] * len(layers) if context is None else context
        x = run_audio(layers, state.x, state, read, sounds or [None] * len(layers), num_outputs)
        return self.finish(replace(state if num_outputs is None else state.take(slice(num_outputs)), x=x)), sounds
