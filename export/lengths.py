"""The ranges of the dynamic axes of a graph."""

from __future__ import annotations

import math

from torch import nn

from ..engine.codecs import seanet
from ..engine.config import MAX_SECONDS, MAX_SIDE, ModelConfig
from ..engine.exports import Axis
from .graphs import Graph


def axes_of(graph: Graph, config: ModelConfig) -> dict[str, Axis]:
    """The dynamic axes of a graph by name; the usual lengths are those of its example inputs."""
    s, patch = config.sequence, config.ddit.patch
    frames, side = math.ceil(MAX_SECONDS * s.fps), MAX_SIDE // s.space_factor
    tokens = math.ceil(MAX_SECONDS * s.audio_rate)
    step = s.space_factor * patch
    limits: dict[str, tuple[int, int | None, int]] = {
        "T": (1, math.ceil(frames / s.time_factor), 1),
        "H": (patch, side, patch),
        "W": (patch, side, patch),
        "A": (1, tokens, 1),
        "F": (s.time_factor, frames, s.time_factor),
        "height": (step, MAX_SIDE, step),
        "width": (step, MAX_SIDE, step),
    }
    if graph.name == "denoise_joint":
        limits["N"] = (0, None, 1)
    if graph.name in ("audio_encoder", "audio_decoder"):
        least = _least_tokens(graph.module)
        limits["A"] = (least, tokens, 1)
        limits["M"] = (least * s.audio_hop, tokens * s.audio_hop, s.audio_hop)
    found = {}
    for name, axes in graph.dynamic.items():
        for axis, label in axes.items():
            least, most, every = limits.get(label, (1, None, 1))
            found[label] = Axis(least, most, graph.inputs[name].shape[axis], every)
    return found


def _least_tokens(codec: nn.Module) -> int:
    """Audio tokens from which on every convolution has more samples than it mirrors at an end.

    Of fewer, PyTorch's codec makes more by zeros before it mirrors them, and a graph cannot.
    """
    mirrors = [layer for layer in codec.modules() if isinstance(layer, seanet.Conv) and layer.mode == "reflect"]
    return max((side for layer in mirrors for side in layer.sides), default=0) + 1
