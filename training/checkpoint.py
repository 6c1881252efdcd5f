"""The checkpoint of a run: everything that is needed to continue it as if it had not been interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from ..engine.replacement import replacement
from .average import Average
from .config import Stage
from .sharding import gathered, scattered, scattered_optimizer, scattered_state

FILE = "checkpoint.pt"
LONGEST_REASON = 200


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
            with replacement(run / FILE) as part:
                torch.save(values, part)

    def resume(self, run: Path, *, keep_frozen: bool = False) -> None:
        """Take the state from the checkpoint of a run folder, if there is one; with ``keep_frozen`` weights that are
        not trained stay as they are.

        Raises ``ValueError`` for a checkpoint of another stage or of other settings, and for a damaged one.
        """
        file = run / FILE
        if not file.is_file():
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            stage = state["stage"]
            if stage == self.stage:
                self._take(state, keep_frozen)
        except (RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            raise ValueError(
                f"{file} is damaged or belongs to a run of other settings ({reason}); remove it or choose another run "
                "folder"
            ) from error
        if stage != self.stage:
            raise ValueError(f"{file} belongs to stage {stage}, not to stage {self.stage}; choose another run folder")

    def _take(self, state: dict[str, Any], keep_frozen: bool) -> None:
        self.step, self.elapsed = state["step"], state["elapsed"]
        for name in ("model", "text_encoder"):
            module = getattr(self, name)
            saved = scattered_state(state[name], module)
            module.load_state_dict(saved | _frozen(module) if keep_frozen else saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            decays = [group["weight_decay"] for group in optimizer.param_groups]  # which may be others than before
            optimizer.load_state_dict(scattered_optimizer(saved, optimizer))
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        with torch.no_grad():
            for mean, saved in zip(self.average.mean, state["average"], strict=True):
                mean.copy_(scattered(saved, mean))


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    """The weights that are not trained, under all of their names."""
    own = module.state_dict(keep_vars=True)
    return {name: value for name, value in own.items() if isinstance(value, nn.Parameter) and not value.requires_grad}
