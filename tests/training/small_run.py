"""A run of a few steps on a small model, for tests that need processes.

``python -m tests.training.small_run RUN JSON``: JSON has settings of ``TrainConfig``, and under ``model`` those of the
model. The weights at the end are in ``RUN/weights.pt``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from syncflow.engine.codecs.text import TextEncoder
from syncflow.engine.model import DDiT
from syncflow.training.config import TrainConfig
from syncflow.training.loop import train
from syncflow.training.processes import end_together, processes

from .small_model import SMALL, TEXT, small_latents


def main() -> None:
    run, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, text = DDiT(SMALL.replace(**settings.pop("model", {}))), TextEncoder.build(TEXT, SMALL.text_tokens)
    for parameter in (*model.parameters(), *text.parameters()):
        nn.init.normal_(parameter, std=0.3)
    latents = small_latents([f"clip {i}" for i in range(9)])
    train(model, text, [latents], TrainConfig(warmup=1, compile=False, train_text=True, **settings), run)
    if processes().is_main_process:
        torch.save(model.state_dict() | text.state_dict(), run / "weights.pt")
    end_together()


if __name__ == "__main__":
    main()
