"""Settings of a batcher: its limits and its scheduling policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_PRIORITY = 100


@dataclass(frozen=True)
class Limits:
    """Sizes that are never exceeded.

    At most ``queue`` requests wait, and ``batch`` requests of one latent shape are stepped together; ``ahead`` more of
    the shape are encoded before a slot is free, with memory that no waiting request needs. ``memory`` (bytes, None: no
    bound) limits the sum of the predicted memory of all requests from encoding to the end of decoding.
    ``prepare_threads`` encode texts and media and ``decode_threads`` decode latents, beside the thread that steps.
    Raises ``ValueError`` with what is allowed.
    """

    queue: int = 64
    batch: int = 8
    ahead: int = 1
    memory: int | None = None
    prepare_threads: int = 1
    decode_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("queue", "batch", "prepare_threads", "decode_threads"):
            _check_whole(name, getattr(self, name), 1)
        _check_whole("ahead", self.ahead, 0)
        if self.memory is not None:
            _check_whole("memory", self.memory, 1)


@dataclass(frozen=True)
class Policy:
    """How the scheduler chooses.

    ``continuous``: requests join a running batch at any step; False: only an empty one (static batching). The first
    request of a batch waits up to ``max_wait`` seconds for others before the first step. ``ageing`` seconds of waiting
    count as much as one level of priority. Raises ``ValueError`` with what is allowed.
    """

    continuous: bool = True
    max_wait: float = 0.0
    ageing: float = 30.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_wait) and self.max_wait >= 0):
            raise ValueError(f"max_wait is {self.max_wait}; it must be a number of seconds, 0 or more")
        if not (math.isfinite(self.ageing) and self.ageing > 0):
            raise ValueError(f"ageing is {self.ageing}; it must be a number of seconds above 0")


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value}; it must be a whole number, {least} or more")
