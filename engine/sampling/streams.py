"""The following tower of a step beside the leading tower of the next one.

In a one-way model nothing that the leading tower computes depends on the other, so the leading tower need not wait for
it. Latents, times and index tensors of the following modality belong to its stream alone between two calls of
:meth:`Streams.join`; what crosses are the contexts, from the leading to the following pass of the same step. They are
held until the leading stream knows that they have been read, so at most ``AHEAD + 1`` steps' contexts are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

AHEAD = 1  # steps by which the leading tower may be ahead


class Streams:
    """One tower after the other, on the current stream: nothing to do."""

    overlap = False

    def lead(self) -> None:
        """A leading pass comes next."""

    @contextmanager
    def follow(self, *read: Tensor) -> Iterator[None]:
        """Within: the following pass, which reads tensors of the leading stream, and what becomes of it."""
        yield

    def join(self) -> None:
        """What the following stream has made is wanted on the leading one."""


class TwoStreams(Streams):
    """The leading tower on the current stream of a CUDA device, the following one on a stream beside it."""

    overlap = True

    def __init__(self, side: torch.cuda.Stream) -> None:
        self.side = side
        self._reading: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    @classmethod
    def of(cls, device: torch.device) -> TwoStreams:
        """On the device's one side stream, so that batches which alternate keep their order there."""
        return cls(_side(device))

    def lead(self) -> None:
        """The leading stream waits for the following pass of ``AHEAD + 1`` steps ago and lets go of what it read."""
        while len(self._reading) > AHEAD:
            done, _ = self._reading.popleft()
            torch.cuda.current_stream(self.side.device).wait_event(done)

    @contextmanager
    def follow(self, *read: Tensor) -> Iterator[None]:
        """Within: the side stream, after all that the leading stream has been given so far."""
        self.side.wait_stream(torch.cuda.current_stream(self.side.device))
        with torch.cuda.stream(self.side):
            yield
        self._reading.append((self.side.record_event(), read))

    def join(self) -> None:
        """The leading stream waits for all that the side stream has been given."""
        torch.cuda.current_stream(self.side.device).wait_stream(self.side)
        self._reading.clear()


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
