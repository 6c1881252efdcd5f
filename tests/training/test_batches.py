"""A batch: latents with their captions, of one length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syncflow.training.batches import Batches
from syncflow.training.data.latents import LatentSet

from .small_model import CAPTIONS, Words, config

pytestmark = pytest.mark.slow


def test_batches_pair_latents_with_their_captions(latents):
    words = Words()
    batches = Batches([latents], words, config(batch=64), torch.device("cpu"))
    made = batches.at(torch.Generator().manual_seed(0))
    assert made.video.dtype == made.audio.dtype == torch.float32
    assert made.fps.tolist() == [16.0] * 64
    for video, audio, ids, mask in zip(made.video, made.audio, made.ids, made.mask, strict=True):
        index = next(i for i in range(5) if np.array_equal(latents.video[i], video.half().numpy()))
        assert np.array_equal(latents.audio[index], audio.half().numpy())
        expected_ids, expected_mask = words.tokenize([CAPTIONS[index]])
        assert torch.equal(ids, expected_ids[0])
        assert torch.equal(mask, expected_mask[0])
    again = batches.at(torch.Generator().manual_seed(0))
    assert torch.equal(made.video, again.video)


def test_a_batch_is_of_one_length_and_of_as_many_tokens(latents):
    """Sets of other lengths take part as often as their clips; a longer clip leaves space for fewer rows."""
    longer = LatentSet(
        np.zeros((2, *latents.video.shape[1:2], 4, *latents.video.shape[3:]), np.float16),
        np.zeros((2, 2 * latents.audio.shape[1], latents.audio.shape[2]), np.float16),
        CAPTIONS[:2],
        16,
        (0.125, 0.375, 0.625, 0.875),
    )
    batches = Batches([latents, longer], Words(), config(batch=4), torch.device("cpu"))
    counts = {2: 0, 4: 0}
    for step in range(300):
        batch = batches.at(torch.Generator().manual_seed(step))
        rows, length = len(batch.video), len(batch.frame_times)
        assert (batch.video.shape[2], rows) in {(2, 4), (4, 2)} and batch.video.shape[2] == length
        assert len(batch.audio) == len(batch.ids) == rows
        counts[length] += rows
    each = counts[4] / 2 / (counts[2] / len(latents))
    assert 0.7 < each < 1.4  # a clip of either set is seen equally often
