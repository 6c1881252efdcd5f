"""Activation checkpointing: layers are computed again in the backward pass instead of kept (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from ..engine.model import DDiT


@contextmanager
def recomputing(model: DDiT, *, active: bool = True) -> Iterator[None]:
    """What is computed within keeps the inputs of layers and adaptors alone, for about a third more work."""
    methods = ((model.video, "layer"), (model.audio, "layer"), (model.audio, "context"))
    wrapped = [(tower, name, vars(tower).get(name)) for tower, name in methods if active and hasattr(tower, name)]
    for tower, name, _ in wrapped:
        setattr(tower, name, partial(checkpoint, getattr(tower, name), use_reentrant=False))
    try:
        yield
    finally:
        for tower, name, own in wrapped:
            delattr(tower, name)  # the method of the class is seen again
            if own is not None:
                setattr(tower, name, own)
