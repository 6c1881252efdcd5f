"""Random batches of clips, each of them the same whenever a step is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..engine.codecs.text import TextEncoder
from .config import TrainConfig
from .data.latents import LatentSet
from .objectives import Batch, rows_of_lengths
from .trajectories import TrajectorySet

Set = TypeVar("Set", LatentSet, TrajectorySet)


class CaptionedSets(Generic[Set]):
    """Sets of captioned rows, each of one length, of which a step takes one; their captions, on the device.

    A step has ``parts`` of ``config.batch`` rows of the first set, or of as many of another as have the same number of
    tokens. Sets are chosen so often that every row is seen equally often.
    """

    def __init__(
        self,
        sets: Sequence[Set],
        text_encoder: TextEncoder,
        config: TrainConfig,
        device: torch.device,
        parts: int = 1,
    ) -> None:
        self.sets: Sequence[Set] = sets
        self.device = device
        captions = sorted({caption for one in sets for caption in one.captions})
        ids, mask = text_encoder.tokenize(captions)
        index = {caption: i for i, caption in enumerate(captions)}
        self.text = [torch.tensor([index[caption] for caption in one.captions]) for one in sets]
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.rows = rows_of_lengths(config.batch, parts, [len(one.frame_times) for one in sets])
        self.shares = torch.tensor([len(one) / rows for one, rows in zip(sets, self.rows, strict=True)])

    def choose(self, generator: torch.Generator) -> int:
        """The number of the set of a step."""
        return int(torch.multinomial(self.shares, 1, generator=generator)) if len(self.sets) > 1 else 0

    def tokens(self, chosen: int, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask (n, L) of the rows ``picks`` (n,) of a set."""
        text = self.text[chosen][picks].to(self.device)
        return self.ids[text], self.mask[text]


class Batches(CaptionedSets[LatentSet]):
    """Random batches of latent sets, on the device, addressed by step."""

    def at(self, generator: torch.Generator) -> Batch:
        """The batch of a generator."""
        chosen = self.choose(generator)
        latents = self.sets[chosen]
        picks = torch.randint(len(latents), (self.rows[chosen],), generator=generator)
        rows = picks.numpy()
        return Batch(
            torch.from_numpy(latents.video[rows]).float().to(self.device),
            torch.from_numpy(latents.audio[rows]).float().to(self.device),
            *self.tokens(chosen, picks),
            torch.full((len(picks),), float(latents.fps), device=self.device),
            torch.tensor(latents.frame_times, device=self.device),
        )
