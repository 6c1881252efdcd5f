"""Losses of rectified flow on clips that were not trained on, with the same noise and times for every model."""

from __future__ import annotations

import numpy as np
import torch

from ...engine.codecs.text import TextEncoder
from ...engine.model import DDiT
from ..config import TrainConfig
from ..data.latents import LatentSet
from ..objectives import Batch, FlowObjective, sample_flow

BATCH = 16


@torch.no_grad()
def validation_losses(
    model: DDiT,
    text_encoder: TextEncoder,
    latents: LatentSet,
    *,
    time_shift: float = 1.0,
    bridged: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Means over the clips: ``video`` and ``audio``, both at one time, and ``video_driven`` and ``audio_driven``, each
    given the other modality clean.

    Noise and times are those of ``seed``, the times bent towards noise by ``time_shift``; without ``bridged`` the
    towers do not read each other.
    """
    config = TrainConfig(
        stage="joint",
        text_dropout=0.0,
        optimal_transport=False,
        clean_video=0.0,
        independent=0.0,
        time_shift=time_shift,
        synergy_video=1.0,
        synergy_audio=1.0,
        bridge_dropout=float(not bridged),
    )
    objective = FlowObjective(model, text_encoder, config).eval()
    sums: dict[str, float] = {}
    for first in range(0, len(latents), BATCH):
        batch = _batch(latents, slice(first, first + BATCH), text_encoder, model.device)
        generator = torch.Generator().manual_seed(hash((seed, first)) & (2**63 - 1))
        found = objective(batch, sample_flow(batch, config, generator))
        for name, loss in found.items():
            sums[name] = sums.get(name, 0.0) + float(loss) * len(batch.video)
    return {name: total / len(latents) for name, total in sums.items() if name != "loss"}


def _batch(latents: LatentSet, rows: slice, text_encoder: TextEncoder, device: torch.device) -> Batch:
    ids, mask = text_encoder.tokenize(latents.captions[rows])
    video, audio = (torch.from_numpy(np.array(part[rows])).float() for part in (latents.video, latents.audio))
    return Batch(
        video.to(device),
        audio.to(device),
        ids.to(device),
        mask.to(device),
        torch.full((len(video),), float(latents.fps), device=device),
        torch.tensor(latents.frame_times, device=device),
    )
