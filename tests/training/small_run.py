"""A run of a few steps on a small model, for tests that need processes: ``python small_run.py RUN JSON``.

JSON has settings of ``TrainConfig``, and under ``model`` those of the model. The weights at the end are in
``RUN/weights.pt``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from syncflow.engine.codecs.text import TextEncoder
from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet
from syncflow.training.loop import train
from syncflow.training.processes import processes

SHAPE = DDiTConfig(width=8, depth=1, heads=2, audio_heads=2, video_channels=2, audio_channels=3, text_width=8,
                   text_tokens=6, base_size=32, adaptor_tokens="frame")  # fmt: skip
TEXT = {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "dropout_rate": 0.0}


def main() -> None:
    run, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, text = DDiT(SHAPE.replace(**settings.pop("model", {}))), TextEncoder.build(TEXT, SHAPE.text_tokens)
    for parameter in (*model.parameters(), *text.parameters()):
        nn.init.normal_(parameter, std=0.3)
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(9, 2, 2, 4, 4)), rng.normal(size=(9, 6, 3))
    captions = [f"clip {i}" for i in range(9)]
    latents = LatentSet(video.astype(np.float16), audio.astype(np.float16), captions, 16, (0.125, 0.375))
    train(model, text, [latents], TrainConfig(warmup=1, compile=False, train_text=True, **settings), run)
    if processes().is_main_process:
        torch.save(model.state_dict() | text.state_dict(), run / "weights.pt")


if __name__ == "__main__":
    main()
