"""Small models of every bridge, random inputs, and forwards through both towers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT
from syncflow.engine.model.denoiser import AudioInputs, VideoInputs
from syncflow.engine.types import Velocities

BRIDGES = ("adaptor", "audio_rope", "global_local")
SMALL = DDiTConfig(
    width=16,
    depth=3,
    heads=2,
    audio_heads=4,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
    audio_rate=10.0,
    adaptor_tokens="frame",
)
ROWS, FRAMES, SIDE, AUDIO = 3, 4, 4, 10


def fresh(bridge: str, **changes: Any) -> DDiT:
    """Random weights outside the bridge; what a bridge starts with stays."""
    return randomised(bridge, outside="bridge.", **changes)


def randomised(bridge: str, outside: str = "none", seed: int = 0, **changes: Any) -> DDiT:
    """A model none of whose weights is zero, except those whose name begins with ``outside``."""
    model = DDiT(SMALL.replace(bridge=bridge, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(outside):
                generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.requires_grad_(False)


def inputs(rows: int = ROWS, seed: int = 0, config: DDiTConfig = SMALL) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "z_v": torch.randn(rows, config.video_channels, FRAMES, SIDE, SIDE, generator=generator),
        "z_a": torch.randn(rows, AUDIO, config.audio_channels, generator=generator),
        "t_v": torch.rand(rows, generator=generator),
        "t_a": torch.rand(rows, generator=generator),
        "fps": torch.full((rows,), 16.0),
        "states": torch.randn(rows, config.text_tokens, config.text_width, generator=generator),
    }


def run(model: DDiT, *, states: Tensor, **given: Any) -> Velocities:
    text = model.condition(states, torch.full((len(states),), model.config.text_tokens))
    return model(**given, text=text, text_of_row=torch.arange(len(states)))


def passes(model: DDiT, given: dict[str, Tensor]) -> tuple[VideoInputs, AudioInputs]:
    """Inputs of the video pass and of the audio pass, a text for every row."""
    states, rows = given["states"], torch.arange(len(given["states"]))
    text = model.condition(states, torch.full((len(states),), model.config.text_tokens))
    times = model.modulation(given["t_v"][:, None], given["fps"]), model.audio_time(given["t_a"])
    return VideoInputs(given["z_v"], times[0], text, rows), AudioInputs(given["z_a"], times[1], text, rows)


def without_bridge(model: DDiT, given: dict[str, Tensor]) -> Velocities:
    """Both towers on their own, as if the model had no bridge."""
    video, audio = passes(model, given)
    return Velocities(model.video_pass(video)[0], model.audio_pass(audio)[0])


def same(one: Velocities, other: Velocities, rows: Any = slice(None)) -> bool:
    return torch.equal(one.video[rows], other.video[rows]) and torch.equal(one.audio[rows], other.audio[rows])


def flags(*values: bool) -> Tensor:
    return torch.tensor(values)
