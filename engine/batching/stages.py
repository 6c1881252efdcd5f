"""What a batcher asks of a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Q = TypeVar("Q")  # request
J = TypeVar("J")  # job: a request made ready
L = TypeVar("L", covariant=True)  # latents
R = TypeVar("R")  # result
Job = TypeVar("Job", contravariant=True)
Latents = TypeVar("Latents")


class Stepper(Protocol[Job, L]):
    """A batch of one latent shape; ``engine.sampling.loop.Batch`` is one.

    Its requests sit at places 0, 1, …: those that join come last, and when some leave, the rest move up. Used by one
    thread; it is made with nobody in it and dropped when nobody is left.
    """

    def join(self, jobs: Sequence[Job]) -> None:
        """Take more in, at their first step."""

    def leave(self, places: Sequence[int]) -> Sequence[L]:
        """Let the requests at these places (rising) go, finished or not; their latents, in this order."""

    def step(self) -> Sequence[int]:
        """One step of every request; the places of those that are finished."""

    def progress(self, place: int) -> tuple[int, int]:
        """Steps done, and steps in all."""


@dataclass(frozen=True)
class Stages(Generic[Q, J, Latents, R]):
    """The parts of the way from a request to a result.

    ``key`` and ``cost`` are asked in the thread that submits, before anything is computed: the latent shape, and a
    bound of the bytes that the request takes of the device from its preparation to the end of its decoding. ``prepare``
    and ``decode`` run in threads of their own, beside the steps. ``make`` gives an empty batch of a shape; it and its
    batches are used by one thread. What any of them raises is what its request fails with.
    """

    key: Callable[[Q], Hashable]
    cost: Callable[[Q], int]
    prepare: Callable[[Q], J]
    make: Callable[[Any], Stepper[J, Latents]]
    decode: Callable[[Q, J, Latents], R]
