"""Random batches of clips, each of them the same whenever a step is repeated."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.codecs.text import TextEncoder
from .config import TrainConfig
from .data.latents import LatentSet
from .objectives import Batch, rows_of_lengths


class Batches:
    """Random batches of latent sets, on the device, addressed by step; each step is of one set, thus of one length.

    A step has ``parts`` of ``config.batch`` rows of the first set, or of as many of another as have the same number of
    tokens. Sets are chosen so often that every clip is seen equally often.
    """

    def __init__(
        self,
        latents: Sequence[LatentSet],
        text_encoder: TextEncoder,
        config: TrainConfig,
        device: torch.device,
        parts: int = 1,
    ) -> None:
        self.latents, self.device = latents, device
        captions = sorted({caption for one in latents for caption in one.captions})
        ids, mask = text_encoder.tokenize(captions)
        index = {caption: i for i, caption in enumerate(captions)}
        self.text = [torch.tensor([index[caption] for caption in one.captions]) for one in latents]
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.rows = rows_of_lengths(config.batch, parts, [len(one.frame_times) for one in latents])
        self.shares = torch.tensor([len(one) / rows for one, rows in zip(latents, self.rows, strict=True)])

    def at(self, generator: torch.Generator) -> Batch:
        chosen = int(torch.multinomial(self.shares, 1, generator=generator)) if len(self.latents) > 1 else 0
        latents = self.latents[chosen]
        picks = torch.randint(len(latents), (self.rows[chosen],), generator=generator)
        rows = picks.numpy()
        text = self.text[chosen][picks].to(self.device)
        return Batch(
            torch.from_numpy(latents.video[rows]).float().to(self.device),
            torch.from_numpy(latents.audio[rows]).float().to(self.device),
            self.ids[text],
            self.mask[text],
            torch.full((len(picks),), float(latents.fps), device=self.device),
            torch.tensor(latents.frame_times, device=self.device),
        )
