"""Small entries, runs of them, and an engine that takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from syncflow import Clip, Handle, Request
from syncflow.engine.batching import Cancelled
from syncflow.engine.batching.handle import State
from syncflow.engine.engine import bundled_model
from syncflow.engine.offline import EngineSettings, Entry, Outputs, Record, generate_entries
from syncflow.engine.package import open_package

SMALL = {"steps": 2, "seconds": 0.5, "width": 32, "height": 32}
SETTINGS = EngineSettings(settings={"runtime": "torch", "device": "cpu", "deterministic": True})
Run = Callable[..., list[Record]]


def entries(count: int) -> list[Entry]:
    """Requests that differ in their seeds."""
    return [Entry(f"clip-{i}", f"line {i + 1}", Request(f"ball {i}", seed=i, **SMALL)) for i in range(count)]


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    """A folder, in which nothing is left half-written."""
    yield Outputs(tmp_path / "clips", "wav")
    assert not [*(tmp_path / "clips").glob(".*")]


@pytest.fixture
def run() -> Run:
    """All records of a run."""

    def call(todo: list[Entry], outputs: Outputs, **options: object) -> list[Record]:
        return [*generate_entries(todo, outputs, SETTINGS, **options)]

    return call


class NoiseEngine:
    """In the place of an :class:`syncflow.Engine`: a clip is noise of its seed; "wait" in a prompt never ends."""

    batcher = None

    def __init__(self) -> None:
        self.components = bundled()
        self.waiting: list[Handle[list[Clip]]] = []

    def submit(self, request: Request) -> Handle[list[Clip]]:
        handle: Handle[list[Clip]] = Handle()
        if "wait" in request.prompt:
            self.waiting.append(handle)
            return handle
        seeds = [(request.seed, take) for take in range(request.takes)]
        noise = [np.random.default_rng(seed).uniform(-1, 1, 4000).astype(np.float32) for seed in seeds]
        frames = np.zeros((4, 32, 32, 3), np.uint8)
        handle.finish(State.DONE, [Clip(frames, waveform, 16.0, 48_000) for waveform in noise])
        return handle

    def close(self) -> None:
        for handle in self.waiting:
            handle.finish(State.CANCELLED, error=Cancelled("closed"))


@cache
def bundled():
    """The bundled model; it has a digest, as the components of an engine do."""
    return open_package(bundled_model())


@pytest.fixture
def noise(monkeypatch) -> None:
    """Runs of this test use a :class:`NoiseEngine`."""
    monkeypatch.setattr(EngineSettings, "load", lambda settings: NoiseEngine())
