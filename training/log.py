"""What a run says while it trains: a progress bar, TensorBoard and ``train.json``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..engine.progress import progress_bar
from ..engine.replacement import replacement
from .config import TrainConfig
from .evaluation.contact_sheet import contact_sheet
from .samples import Sampler


class Log:
    """Progress, TensorBoard and ``train.json`` of a run, in its main process."""

    def __init__(self, run: Path, config: TrainConfig, step: int, accelerator: Accelerator) -> None:
        self.accelerator, self.run = accelerator, run
        self.taken = 0
        self.board: SummaryWriter | None = None
        if accelerator.is_main_process:
            run.mkdir(parents=True, exist_ok=True)
            with replacement(run / "train.json") as part:
                part.write_text(json.dumps(asdict(config), indent=2) + "\n")
            self.board = SummaryWriter(str(run / "tensorboard"))
        self.bar = progress_bar(
            initial=step,
            total=None if config.minutes else config.steps,
            desc=f"stage {config.stage}",
            unit="step",
            disable=not accelerator.is_main_process,
            mininterval=5,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.bar.close()
        if error is None and not self.taken and self.board is not None:
            tqdm.write(
                f"{self.bar.desc} was finished before; it goes on with more --steps or --minutes, and begins again "
                f"where {self.run} is removed",
                file=sys.stderr,
            )
        if self.board is not None:
            self.board.close()

    def step(self, step: int, done: float, losses: list[dict[str, Tensor]], values: dict[str, float]) -> None:
        """Every 20 steps the losses, means over all parts of the step, and the other values."""
        self.taken += 1
        self.bar.update(1)
        if step % 20:
            return
        means = torch.stack(
            [torch.stack([part[name].detach().float() for part in losses]).mean() for name in losses[0]]
        )
        named = dict(zip(losses[0], self.accelerator.reduce(means, "mean").tolist(), strict=True))
        if self.board is not None:
            for name, value in ({f"loss/{name}": loss for name, loss in named.items()} | values).items():
                self.board.add_scalar(name, value, step)
        shown = {name: f"{loss:.4f}" for name, loss in named.items() if name != "loss"}
        self.bar.set_postfix(shown | {"done": f"{done:.1%}"}, refresh=False)

    def samples(self, step: int, sampler: Sampler) -> None:
        """Clips of the sampler: a contact sheet, and the sound of each; or why there are none, in a line."""
        try:
            clips = sampler()
        except ValueError as error:
            tqdm.write(f"no clips are sampled after step {step}: {error}", file=sys.stderr)
            return
        if self.board is not None:
            sheet = contact_sheet(list(clips.values()), list(clips))
            self.board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
            for i, clip in enumerate(clips.values()):
                self.board.add_audio(f"samples/{i}", clip.waveform[None], step, clip.sample_rate)
