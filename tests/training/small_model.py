"""A small model with a stand-in for the text encoder, and latents to train it on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet

SMALL = DDiTConfig(
    width=8,
    depth=1,
    heads=2,
    audio_heads=2,
    video_channels=2,
    audio_channels=3,
    text_width=8,
    text_tokens=6,
    base_size=32,
    adaptor_tokens="frame",
)
TEXT = {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "dropout_rate": 0.0}  # of a T5 of its width
CAPTIONS = ["a ball falls", "a cup breaks", "a ball falls", "rain", "wind"]


class Block(nn.Module):
    """Named like a block of T5, so that its matrix counts as hidden."""

    def __init__(self, width):
        super().__init__()
        self.block = nn.Linear(width, width)


class Words(nn.Module):
    """Stands in for the text encoder: bytes to states."""

    def __init__(self):
        super().__init__()
        self.states = nn.Embedding(256, SMALL.text_width)
        self.encoder = Block(SMALL.text_width)

    def tokenize(self, prompts):
        rows = [list(prompt.encode())[: SMALL.text_tokens] for prompt in prompts]
        ids = torch.tensor([row + [0] * (SMALL.text_tokens - len(row)) for row in rows])
        return ids, torch.tensor([[1] * len(row) + [0] * (SMALL.text_tokens - len(row)) for row in rows])

    def forward(self, ids, mask):
        return self.encoder.block(self.states(ids))


def small_latents(captions: Sequence[str] = CAPTIONS) -> LatentSet:
    """One clip for each caption."""
    rng, count = np.random.default_rng(0), len(captions)
    video, audio = rng.normal(size=(count, 2, 2, 4, 4)), rng.normal(size=(count, 6, 3))
    return LatentSet(video.astype(np.float16), audio.astype(np.float16), list(captions), 16, (0.125, 0.375))


def parts(bridge: str = "adaptor") -> tuple[DDiT, Words]:
    """The same model and text encoder every time, none of its weights zero."""
    torch.manual_seed(0)
    changes = {"depth": 2, "first_block": 1} if bridge == "audio_rope" else {}
    model, words = DDiT(SMALL.replace(bridge=bridge, **changes)), Words()
    for parameter in (*model.parameters(), *words.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return model, words


def config(**changes) -> TrainConfig:
    plain = {"steps": 4, "batch": 4, "warmup": 1, "compile": False, "text_dropout": 0.5}
    return TrainConfig(**plain | changes)


def states(model: nn.Module, words: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for module in (model, words) for name, tensor in module.state_dict().items()}
