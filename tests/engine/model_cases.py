"""A small SyncFlow model, random inputs, and forwards through both towers."""

from __future__ import annotations

import torch

from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT
from syncflow.engine.model.denoiser import AudioInputs, VideoInputs

SMALL = DDiTConfig(
    width=16,
    depth=2,
    heads=2,
    audio_heads=2,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
)
ROWS, FRAMES, SIDE, AUDIO = 2, 2, 4, 9


def randomised(config: DDiTConfig, seed: int = 0) -> DDiT:
    """A model none of whose weights is zero; fresh ones are silent."""
    model = DDiT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.requires_grad_(False)


def inputs(rows=ROWS, frames=FRAMES, height=SIDE, width=SIDE, config=SMALL, seed=0):
    """z_v, z_a, t_v, t_a, fps, states of a text for every row, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "z_v": torch.randn(rows, config.video_channels, frames, height, width, generator=generator),
        "z_a": torch.randn(rows, AUDIO, config.audio_channels, generator=generator),
        "t_v": torch.rand(rows, generator=generator),
        "t_a": torch.rand(rows, generator=generator),
        "fps": torch.full((rows,), 16.0),
        "states": torch.randn(rows, config.text_tokens, config.text_width, generator=generator),
        "lengths": torch.randint(1, config.text_tokens + 1, (rows,), generator=generator),
    }


def run(model, *, states, lengths, text_of_row=None, **given):
    text = model.video.condition(states, lengths)
    row = torch.arange(len(given["z_v"])) if text_of_row is None else text_of_row
    return model(**given, text=text, text_of_row=row)


def passes(model, given):
    """Inputs of the video pass and of the audio pass, a text for every row."""
    text, rows = model.condition(given["states"], given["lengths"]), torch.arange(len(given["z_v"]))
    times = model.modulation(given["t_v"][:, None], given["fps"]), model.audio_time(given["t_a"])
    return VideoInputs(given["z_v"], times[0], text, rows), AudioInputs(given["z_a"], times[1], text, rows)


def features_of(model, video):
    """The tokens of every layer after the temporal attention."""
    rows = video.latents, video.modulation, video.text, video.text_of_row
    return model.video(*rows, keep=lambda _, x: x)[1]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
