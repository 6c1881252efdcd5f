"""A small ImageBind in its published layout, with weights that depend on their names alone, and what it is given.

The same weights were loaded into ImageBind's own code (package imagebind-packaged 0.1.2) to make
``imagebind.safetensors``. How it was made: docs/training.md.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow import Clip
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.training.evaluation.imagebind import ImageBindNetwork, Sizes

from .importers.published import values

SIZES = Sizes(
    widths={"vision": 160, "audio": 128, "text": 128},
    depths={"vision": 2, "audio": 3, "text": 2},
    embedding=24,
    vocabulary=320,
    text_length=77,
)
WORDS = ("a", "ball", "bounces", "on", "wood")
START, END = SIZES.vocabulary - 2, SIZES.vocabulary - 1
TEXTS = ((START, END), (START, 7, 301, 7, 12, END), (START, *range(1, 80), END))  # the last one is cut
# frames, height, width, frames a second, samples of the sound
CLIPS = {
    "wide": (40, 48, 70, 10.0, 64_000),
    "tall": (33, 61, 40, 16.0, 33_333),
    "square": (20, 32, 32, 10.0, 32_000),
    "short": (7, 24, 40, 24.0, 4_667),
}


def imagebind_tensors() -> dict[str, Tensor]:
    """Those of the three towers."""
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in ImageBindNetwork(SIZES).state_dict().items()}
    tensors = {name: values(name, shape, 1.5) for name, shape in shapes.items()}
    for name in ("trunks.vision.pre_transformer_layer.0", "heads.vision.0", "heads.audio.0", "heads.text.proj.0"):
        tensors[f"modality_{name}.weight"] = 1 + 4 * tensors[f"modality_{name}.weight"]
    tensors["modality_preprocessors.audio.rgbt_stem.proj.weight"] /= 50  # so that the epsilon of its norm matters
    return tensors


def unused_tensors() -> dict[str, Tensor]:
    """What else the published file holds, or some of it."""
    return {
        "modality_preprocessors.text.mask": torch.zeros(77, 77),
        "modality_postprocessors.text.1.log_logit_scale": torch.tensor(math.log(1 / 0.07)),
        "modality_postprocessors.audio.1.log_logit_scale": torch.tensor(math.log(20.0)),
        "modality_preprocessors.depth.cls_token": torch.zeros(1, 1, 3),
        "modality_trunks.thermal.blocks.0.norm_1.bias": torch.zeros(3),
        "modality_heads.imu.3.weight": torch.zeros(2, 3),
    }


def make_clip(name: str) -> Clip:
    """Noise with sound at 16 kHz, whose mean is not 0."""
    frames, height, width, fps, samples = CLIPS[name]
    pixels = normal(len(name), Stream.VIDEO, (frames, height, width, 3)) * 60 + 120
    waveform = np.tanh(normal(len(name), Stream.AUDIO, (samples,))) * 0.3 + 0.05
    return Clip(pixels.clip(0, 255).astype(np.uint8), waveform.astype(np.float32), fps, 16_000)


def write_published(folder: Path) -> Path:
    """The file of the weights, with a tokenizer of a few words beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    torch.save(imagebind_tensors() | unused_tensors(), folder / "imagebind.pth")
    vocabulary = {word: index for index, word in enumerate(("<unk>", *WORDS))} | {"<start>": START, "<end>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder / "imagebind.pth"
