"""Towers whose blocks are native, and that keep what depends on the shape of a clip alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ...model.audio import AudioLayer, AudioState, AudioTower, ModalityAdaptor
from ...model.bridges import Context, LayerBridge
from ...model.stdit import STDiTBlock, STDiTState
from ...model.video import VideoTower
from .blocks import (
    NativeAdaptor,
    NativeAudioLayer,
    NativeBlock,
    TensorCache,
    run_audio,
    run_video,
    runs_natively,
    share,
)

SHAPES = 64  # that are kept


T = TypeVar("T")


def outside_inference_mode(make: Callable[..., T]) -> Callable[..., T]:
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
        self.blocks = [cast("NativeBlock", block) for layer in self.layers for block in layer]  # in their order
        self.rope_table = lru_cache(SHAPES)(outside_inference_mode(tower.rope_table))  # type: ignore[method-assign]
        self.positions = lru_cache(SHAPES)(outside_inference_mode(tower.positions))  # type: ignore[method-assign]

    def run_layers(
        self,
        state: STDiTState,
        layer_bridges: Mapping[int, LayerBridge],
        prefix_of_row: Tensor | None,
        num_outputs: int | None,
        keep: Callable[[int, Tensor], Tensor] | None,
    ) -> tuple[STDiTState, list[Tensor]]:
        """See :class:`~syncflow.engine.model.video.VideoTower`; all blocks in one call where no audio is read."""
        x = state.x
        if layer_bridges or prefix_of_row is not None or not runs_natively(x):
            return super().run_layers(state, layer_bridges, prefix_of_row, num_outputs, keep)
        features = x.new_empty(1 if keep is None else len(self.blocks) // 2, *x.shape)
        attended = [features[i // 2 % len(features)] if i % 2 else None for i in range(len(self.blocks))]
        x, normed = self.blocks[0].begin(x, None, None, state.block_modulation)
        x, _ = run_video(self.blocks, None, x, normed, state, 0, attended, num_outputs)
        state = replace(state if num_outputs is None else state.take(slice(num_outputs)), x=x)
        return state, [] if keep is None else [keep(i, feature) for i, feature in enumerate(features)]


class NativeAudioTower(AudioTower):
    """An audio tower with native layers and adaptors and the weights of ``tower``."""

    def __init__(self, tower: AudioTower) -> None:
        share(self, tower)
        config = self.config = tower.config
        self.rope_table = TensorCache(outside_inference_mode(tower.rope_table))  # type: ignore[method-assign, assignment]
        layers = [cast("AudioLayer", layer) for layer in tower.layers]
        self.returns_attended = config.bridge != "adaptor"
        options: dict[str, Any] = {"rope_table": self.rope_table, "returns_attended": self.returns_attended}
        self.layers = nn.ModuleList(NativeAudioLayer(layer, **options) for layer in layers)
        pooled = config.adaptor_tokens == "frame"
        self._contexts = [
            NativeAdaptor(cast("ModalityAdaptor", adaptor), layer.cross_attn, pooled=pooled)
            for adaptor, layer in zip(tower.adaptors, layers, strict=False)
        ]
        self._all_rows = lru_cache(SHAPES)(outside_inference_mode(torch.arange))
        self.token_positions = lru_cache(SHAPES)(outside_inference_mode(tower.token_positions))  # type: ignore[method-assign]
        if pooled:  # then positions depend on the frame times alone
            self.video_positions = TensorCache(outside_inference_mode(tower.video_positions))  # type: ignore[method-assign, assignment]

    def context(self, index: int, feature: Tensor, rows: Tensor | slice, rope: Tensor) -> Tensor:
        """See :class:`~syncflow.engine.model.audio.AudioTower`."""
        if not self._contexts or not runs_natively(feature):
            return super().context(index, feature, rows, rope)
        rows = self._all_rows(feature.shape[0]) if isinstance(rows, slice) else rows
        return self._contexts[index](feature, rows, rope)

    def run_layers(
        self, state: AudioState, context: Context | None, num_outputs: int | None
    ) -> tuple[AudioState, list[Tensor]]:
        """See :class:`~syncflow.engine.model.audio.AudioTower`; all layers in one call. Tokens after the
        self-attention only where a bridge reads them."""
        if not runs_natively(state.x):
            return super().run_layers(state, context, num_outputs)
        layers = [cast("NativeAudioLayer", layer) for layer in self.layers]
        attended = [state.x.new_empty(state.x.shape) for _ in layers if self.returns_attended]
        contexts = [None] * len(layers) if context is None else context
        x = run_audio(layers, state.x, state, contexts, attended or [None] * len(layers), num_outputs)
        return replace(state if num_outputs is None else state.take(slice(num_outputs)), x=x), attended
