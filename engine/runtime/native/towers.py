"""Towers whose blocks are native, and that keep what depends on the shape of a clip alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ...model.audio import AudioLayer, AudioTower, ModalityAdaptor
from ...model.video import STDiTBlock, VideoTower
from .blocks import NativeAdaptor, NativeAudioLayer, NativeBlock, OfTensor, here, share

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
        self.turns = lru_cache(SHAPES)(plainly(tower.turns))  # type: ignore[method-assign]
        self.positions = lru_cache(SHAPES)(plainly(tower.positions))  # type: ignore[method-assign]


class NativeAudioTower(AudioTower):
    """An audio tower with native layers and adaptors and the weights of ``tower``."""

    def __init__(self, tower: AudioTower) -> None:
        share(self, tower)
        config = self.config = tower.config
        self.turns = OfTensor(plainly(tower.turns))  # type: ignore[method-assign, assignment]
        layers = [cast("AudioLayer", layer) for layer in tower.layers]
        heard = config.bridge != "adaptor"
        self.layers = nn.ModuleList(NativeAudioLayer(layer, self.turns, heard=heard) for layer in layers)
        pooled = config.adaptor_tokens == "frame"
        self._contexts = [
            NativeAdaptor(cast("ModalityAdaptor", adaptor), layer.cross_attn, pooled=pooled)
            for adaptor, layer in zip(tower.adaptors, layers, strict=False)
        ]
        self.clock = lru_cache(SHAPES)(plainly(tower.clock))  # type: ignore[method-assign]
        self.video_positions = lru_cache(SHAPES)(plainly(tower.video_positions))  # type: ignore[method-assign]

    def context(self, index: int, feature: Tensor, rows: Tensor, turns: Tensor) -> Tensor:
        """See :class:`~syncflow.engine.model.audio.AudioTower`."""
        if not self._contexts or not here(feature):
            return super().context(index, feature, rows, turns)
        return self._contexts[index](feature, rows, turns)
