"""Helpers of the tests of batching."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

from syncflow.engine.batching import Handle
from syncflow.engine.batching.request_state import RequestState


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether the condition becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def make_request(
    shape: Hashable = 0, memory: int = 0, submitted_at: float = 0.0, **terms: Any
) -> RequestState[None, None, None]:
    """A request as the scheduler sees it; by default one that needs no memory, submitted at time 0."""
    return RequestState(request=None, handle=Handle(), shape=shape, memory=memory, submitted_at=submitted_at, **terms)
