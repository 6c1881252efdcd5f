"""A d-DiT whose blocks are each one call of the native part: a CPU's runtime for small models in float32."""

from __future__ import annotations

import torch
from torch import nn

from ....kernels import native
from ...config import DDiTConfig
from ...model import DDiT
from .blocks import share
from .towers import NativeAudioTower, NativeVideoTower

__all__ = ["NativeDDiT", "is_expected_fastest", "unsupported_reason"]

WIDEST = 256  # above, the matrix products of libraries are as fast, and the weights of a block exceed the cache
VECTORS = ("x86-64-v3", "x86-64-v4")  # instructions for which the native part has vectors as wide as the registers


class NativeDDiT(DDiT):
    """A model whose blocks are computed by the native part, with the weights that ``model`` has now.

    What that does not take, many keys or a style, is computed as in ``model``. Raises ``ValueError`` where there is no
    native part, or where it does not suit the model.
    """

    def __init__(self, model: DDiT) -> None:
        if reason := unsupported_reason(model):
            raise ValueError(f"the runtime native {reason}")
        nn.Module.__init__(self)
        share(self, model)
        self.config, self.bridge, self.prior = model.config, model.bridge, model.prior
        self.video = NativeVideoTower(model.video)
        self.audio = NativeAudioTower(model.audio) if model.config.has_audio else model.audio
        self.train(model.training)


def unsupported_reason(model: DDiT) -> str:
    """The reason why the C++ part cannot compute the blocks of this model; empty if it can."""
    config = model.config
    if config.bridge == "bidirectional":
        return "has no blocks for the bridge bidirectional; such a model runs in the runtimes torch and torch-plain"
    if native.EXTENSION is None:
        return "needs the native part, which was not built or is switched off by SYNCFLOW_NATIVE=0"
    if model.device.type != "cpu" or model.dtype != torch.float32:
        dtype = str(model.dtype).removeprefix("torch.")
        return f"computes in float32 on a CPU; this model is in {dtype} on {model.device.type}"
    hidden = int(config.width * config.mlp_ratio)
    if not all(native.EXTENSION.supports(config.width, heads, hidden) for heads in (config.heads, config.audio_heads)):
        return (
            "takes widths and MLPs that are multiples of 32 and heads whose width is one of 16; this model has a width "
            f"of {config.width}, an MLP of {hidden}, {config.heads} heads and {config.audio_heads} of the audio"
        )
    return ""


def is_expected_fastest(config: DDiTConfig) -> bool:
    """Whether native blocks are the default where nothing is timed: for a small model, on a processor whose vectors the
    C++ part uses."""
    return config.width <= WIDEST and native.instructions() in VECTORS
