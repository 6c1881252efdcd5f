"""How much a batcher takes on, and how its scheduler chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_PRIORITY = 100


@dataclass(frozen=True)
class Limits:
    """Sizes that are never exceeded.

    ``queue`` requests wait at most; ``batch`` requests of one latent shape step together; ``ahead`` more of the shape
    are made ready before there is a place for them, with memory that nobody else waits for. ``memory`` bytes bound the
    sum of the predicted costs of all requests from their preparation to the end of their decoding (None: no bound).
    ``prepare_threads`` and ``decode_threads`` work beside the step loop. Raises ``ValueError`` with what is allowed.
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

    ``continuous``: requests join a batch at any step; without it only a batch that nobody is in (static batching).
    ``max_wait`` seconds for which the first request of a batch waits for others before the first step. ``ageing``
    seconds of waiting count as much as one priority more. Raises ``ValueError`` with what is allowed.
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
