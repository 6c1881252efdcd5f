"""The checkpoint of a run: everything that is needed to continue it as if it had not been interrupted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from .average import Average
from .config import Stage
from .sharding import gathered, scattered, scattered_optimizer, scattered_state

FILE = "checkpoint.pt"


@dataclass
class TrainingState:
    """What training changes. ``elapsed``: seconds of training over all sessions."""

    stage: Stage
    model: DDiT
    text_encoder: TextEncoder
    optimizers: Sequence[Any]
    average: Average
    step: int = 0
    elapsed: float = 0.0

    def save(self, run: Path, *, write: bool = True) -> None:
        """Write the checkpoint of a run folder beside its place, then put it there.

        Where the state is sharded, every process has to call it, and one is to ``write`` it whole.
        """
        values = gathered(
            {
                "stage": self.stage,
                "step": self.step,
                "elapsed": self.elapsed,
                "model": self.model.state_dict(),
                "text_encoder": self.text_encoder.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "average": self.average.mean,
            }
        )
        if write:
            part = run / f"{FILE}.part"
            torch.save(values, part)
            os.replace(part, run / FILE)

    def resume(self, run: Path) -> None:
        """Take the state from the checkpoint of a run folder, if there is one.

        Raises ``ValueError`` for a checkpoint of another stage.
        """
        file = run / FILE
        if not file.is_file():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state["stage"] != self.stage:
            raise ValueError(
                f"{file} belongs to stage {state['stage']}, not to stage {self.stage}; choose another run folder"
            )
        self.step, self.elapsed = state["step"], state["elapsed"]
        for name in ("model", "text_encoder"):
            module = getattr(self, name)
            module.load_state_dict(scattered_state(state[name], module))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(scattered_optimizer(saved, optimizer))
        with torch.no_grad():
            for mean, saved in zip(self.average.mean, state["average"], strict=True):
                mean.copy_(scattered(saved, mean))
