"""A model that is arithmetic: whatever joins, leaves and fails around a request, its result has one right value."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest

from syncflow.engine.batching import Batcher, Limits, Policy

MODULUS = 2**61 - 1


@dataclass(frozen=True)
class Ask:
    """A request. ``bad`` names the method that fails on it ("encode", "step" or "decode")."""

    seed: int
    steps: int = 3
    shape: str = "small"
    cost: int = 1
    bad: str | None = None


class Job:
    def __init__(self, ask: Ask) -> None:
        self.ask = ask


class Latents:
    """A number that every step scrambles."""

    def __init__(self, seed: int) -> None:
        self.value, self.steps = seed, 0

    def step(self) -> None:
        self.value = (self.value * 6364136223846793005 + 1442695040888963407) % MODULUS
        self.steps += 1


class Result:
    def __init__(self, value: int) -> None:
        self.value = value


def alone(ask: Ask) -> int:
    """The result of a request that nobody shares a batch with."""
    latents = Latents(ask.seed)
    for _ in range(ask.steps):
        latents.step()
    return latents.value


@dataclass
class ModelBatch:
    """A batch of the model, which checks that only the step thread uses it."""

    shape: str
    model: Model
    jobs: list[Job] = field(default_factory=list)
    latents: list[Latents] = field(default_factory=list)

    def join(self, jobs: Sequence[Job]) -> None:
        assert all(job.ask.shape == self.shape for job in jobs)
        self.jobs += jobs
        self.latents += [Latents(job.ask.seed) for job in jobs]
        with self.model.lock:
            self.model.most = max(self.model.most, len(self.jobs))

    def leave(self, places: Sequence[int]) -> list[Latents]:
        assert list(places) == sorted(set(places))
        left = [self.latents[place] for place in places]
        self.jobs = [job for place, job in enumerate(self.jobs) if place not in places]
        self.latents = [one for place, one in enumerate(self.latents) if place not in places]
        return left

    def step(self) -> list[int]:
        assert self.jobs, "nobody is left, and the batch should have been dropped"
        assert threading.current_thread().name == "syncflow-step"
        self.model.before_step(self)
        if any(job.ask.bad == "step" for job in self.jobs):
            raise ArithmeticError("a bad request")
        for one in self.latents:
            one.step()
        return [place for place, job in enumerate(self.jobs) if self.latents[place].steps >= job.ask.steps]

    def progress(self, place: int) -> tuple[int, int]:
        return self.latents[place].steps, self.jobs[place].ask.steps

    def preview(self, place: int) -> int:
        return self.latents[place].value


class Model:
    """The backend of the arithmetic. ``gate``: steps wait while it is closed; ``on_step`` is called before each."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.stepping_now = threading.Event()
        self.on_step: Callable[[ModelBatch], None] = lambda batch: None
        self.started: list[str] = []
        self.made: list[str] = []
        self.encoded: list[int] = []
        self.stepped: list[tuple[str, tuple[int, ...]]] = []
        self.most = 0

    def before_step(self, batch: ModelBatch) -> None:
        self.stepping_now.set()
        assert self.gate.wait(30)
        self.stepped.append((batch.shape, tuple(job.ask.seed for job in batch.jobs)))
        self.on_step(batch)

    def start_thread(self) -> None:
        self.started.append(threading.current_thread().name)

    def stepping(self) -> nullcontext[None]:
        return nullcontext()

    def shape(self, ask: Ask) -> str:
        return ask.shape

    def memory(self, ask: Ask) -> int:
        return ask.cost

    def encode(self, ask: Ask) -> Job:
        self.encoded.append(ask.seed)
        if ask.bad == "encode":
            raise ValueError(f"request {ask.seed} is bad")
        return Job(ask)

    def make_batch(self, shape: Hashable) -> ModelBatch:
        assert isinstance(shape, str)
        self.made.append(shape)
        return ModelBatch(shape, self)

    def decode(self, ask: Ask, latents: Latents) -> Result:
        if ask.bad == "decode":
            raise OSError(f"request {ask.seed} is bad")
        return Result(latents.value)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def ask() -> type[Ask]:
    return Ask


@pytest.fixture
def expected() -> Callable[[Ask], int]:
    return alone


@pytest.fixture
def start(model):
    """Batchers that are closed at the end, and that leave no thread behind."""
    before = set(threading.enumerate())
    started: list[Batcher] = []

    def begin(
        limits: Limits | None = None, policy: Policy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> Batcher:
        started.append(Batcher(model, limits, policy, clock))
        return started[-1]

    yield begin
    model.gate.set()
    for batcher in started:
        batcher.close()
    left = {thread for thread in threading.enumerate() if thread.name.startswith("syncflow-")}
    assert not left - before


@pytest.fixture
def blocked(start, model, ask):
    """Starts a batcher whose step thread stands in a step of its first request until the gate opens."""

    def begin(limits=None, policy=None, first=None, clock=time.monotonic, **settings):
        model.gate.clear()
        batcher = start(limits, policy, clock)
        handle = batcher.submit(first or ask(0, steps=2, shape="first"), **settings)
        assert model.stepping_now.wait(30)
        return batcher, handle

    return begin
