"""What several tests of training begin with."""

from __future__ import annotations

import pytest

from syncflow.training.data.latents import LatentSet

from .small_model import small_latents


@pytest.fixture
def latents() -> LatentSet:
    return small_latents()
