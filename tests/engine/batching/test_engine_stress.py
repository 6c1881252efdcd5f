"""A small real engine under a random load: every request has one end, nothing is kept, results are those alone.

Requests, cancellations and the injected failure follow from the seed of a test; the threads' order does not. A failure
names the request that is wrong, and the seed with which it is asked for again.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from syncflow import Clip, Engine, Request
from syncflow.engine.batching import Cancelled, Expired, Full, Handle, Limits, Policy, State
from syncflow.engine.codecs import AudioCodec, TextEncoder, VideoCodec
from syncflow.engine.codecs import audio as audio_codec
from syncflow.engine.codecs import video as video_codec
from syncflow.engine.components import Components
from syncflow.engine.config import DDiTConfig, ModelConfig, SequenceConfig
from syncflow.engine.cost.memory import MemoryEstimator
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.conditioning_cache import ConditioningCache

CLIENTS, SAMPLE, CACHE_BYTES = 3, 12, 60_000
SIDE, RATE = 32, 48_000

pytestmark = pytest.mark.slow

PROMPTS = ("a ball", "a cube", "a large red ball bounces", "glass", "rain on a tin roof")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # of latents up to 10, whose rows share matrix products with others'
Settings = dict[str, Any]


class Injected(Exception):
    """A pass of the model that fails for no fault of its requests."""


def sketch(seconds: float, seed: int = 0) -> Clip:
    """Noise to see and to hear."""
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, 256, (round(16 * seconds), SIDE, SIDE, 3), dtype=np.uint8)
    return Clip(frames, draw.uniform(-0.5, 0.5, round(RATE * seconds)).astype(np.float32), 16.0, RATE)


# What differs in memory is a kind of its own, and predicting one takes a while: few kinds, many requests.
STYLES: dict[str, tuple[Settings, ...]] = {
    "adaptor": (
        {},
        {"sync_guidance": 2.0, "branch_interval": 2},
        {"guidance": 4.0, "sync_cfg_audio": 2.0, "guidance_interval": (0.2, 0.8), "takes": 2},
    ),
    "global_local": (
        {"sync_cfg_video": 2.0, "sync_cfg_audio": 2.0},
        {"sync_guidance": 1.0, "guidance_rescale": 0.5, "branch_interval": 3},
    ),
}
MEDIA: dict[str, tuple[Settings, ...]] = {
    "adaptor": (
        {},
        {},
        {"video": sketch(0.5)},
        {"image": sketch(0.1)},
        {"extend": sketch(0.25)},
        {"video": sketch(0.5), "strength": 0.6},
    ),
    "global_local": ({}, {"video": sketch(0.5)}, {"audio": sketch(0.5)}, {"reference": sketch(0.3)}),
}
REFUSED: tuple[Settings, ...] = ({"sound_only": True}, {"steps": 0}, {"extend": sketch(1.0)}, {"priority": 1000})
FAILING: Settings = {"extend": sketch(0.1)}  # shorter than a latent, which encoding finds


def small(bridge: str) -> Components:
    """A model with random weights between the real codecs at their smallest."""
    torch.manual_seed(0)
    shape = DDiTConfig(
        width=16,
        depth=2,
        heads=2,
        audio_heads=2,
        video_channels=4,
        audio_channels=4,
        text_width=16,
        text_tokens=32,
        base_size=SIDE,
        adaptor_tokens="frame",
        bridge=bridge,
    )
    model = DDiT(shape).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    narrow = {"block_out_channels": [8, 16], "decoder_block_out_channels": [8, 16], "latent_channels": 4}
    quick = {"num_filters": 2, "hidden_size": 8, "latent_channels": 4}
    return Components(
        ModelConfig(name="small", sequence=SequenceConfig(seconds=0.5, width=SIDE, height=SIDE), ddit=shape),
        model,
        VideoCodec.build(settings=video_codec.TINY_SETTINGS | narrow),
        AudioCodec(audio_codec.TINY_SETTINGS | quick),
        TextEncoder.build({"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16}, max_tokens=32),
    )


@pytest.fixture(scope="module")
def models() -> Callable[[str], tuple[Components, MemoryEstimator]]:
    """Parts by bridge, and what is predicted of their memory, each made once."""
    made: dict[str, tuple[Components, MemoryEstimator]] = {}

    def get(bridge: str) -> tuple[Components, MemoryEstimator]:
        if bridge not in made:
            parts = small(bridge)
            made[bridge] = parts, MemoryEstimator(parts)
        return made[bridge]

    return get


class Client(threading.Thread):
    """Submits random requests, some of them bad, and cancels some a little later."""

    def __init__(self, engine: Engine, bridge: str, count: int, seed: str) -> None:
        super().__init__(name=f"client-{seed}")
        self.engine, self.bridge, self.count, self.draw = engine, bridge, count, random.Random(seed)
        self.asked: list[tuple[Request, bool]] = []
        self.handles: list[Handle[list[Clip]]] = []
        self.ends: Counter[int] = Counter()
        self.refused = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for number in range(self.count):
                self._one(number)
                if self.draw.random() < 0.15:
                    self.draw.choice(self.handles[-3:]).cancel()
                time.sleep(self.draw.choice([0.0, 0.0, 0.01, 0.05]))
        except BaseException as error:
            self.error = error

    def _one(self, number: int) -> None:
        draw, bad = self.draw, self.draw.random() < 0.05
        if draw.random() < 0.1:
            with pytest.raises(ValueError):
                self.engine.submit("a ball", **{"seconds": 0.5} | draw.choice(REFUSED))
            self.refused += 1
        settings = {
            "seed": draw.getrandbits(40),
            "steps": draw.randint(1, 6),
            "seconds": draw.choice([0.5, 0.5, 0.75]),
            "video_lead": draw.choice([0.0, 0.5, 1.0]),
            "shift": draw.choice([1.0, 3.0]),
            **draw.choice(STYLES[self.bridge]),
            **(FAILING if bad else draw.choice(MEDIA[self.bridge])),
        }
        if draw.random() < 0.3:
            settings["negative_prompt"] = "noise"
        request = Request(draw.choice(PROMPTS), **settings)
        terms: Settings = {
            "priority": draw.randint(-2, 2),
            "deadline": draw.choice([None, None, None, None, 0.002, 0.3, 60.0]),
        }
        while True:
            try:
                handle = self.engine.submit(request, **terms)
                break
            except Full:
                time.sleep(0.005)
        handle.add_done_callback(lambda _: self.ends.update([number]))
        self.asked.append((request, bad))
        self.handles.append(handle)


class Watch:
    """Fails one pass of an engine's model, and knows every job that was made and the most memory that was reserved."""

    def __init__(self, engine: Engine, fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[weakref.ref[Any]] = []
        self.passes = self.most = 0
        name = "joint_pass" if engine.config.ddit.bridge == "global_local" else "audio_pass"
        compute, encode = getattr(engine.denoiser, name), engine.pipeline.encode

        def failing(inputs: Any) -> Any:
            self.passes += 1
            self.most = max(self.most, engine.batcher.stats().memory)
            if self.passes == fails_at:
                raise Injected
            return compute(inputs)

        def noted(prepared: Any) -> Any:
            job = encode(prepared)
            self.jobs.append(weakref.ref(job))
            return job

        monkeypatch.setattr(engine.denoiser, name, failing)
        monkeypatch.setattr(engine.pipeline, "encode", noted)


def check_end(request: Request, bad: bool, handle: Handle[list[Clip]]) -> None:
    """The end of a request is one that it may have."""
    error = handle.exception(0)
    if handle.state is State.DONE:
        assert not bad and len(handle.result(0)) == request.takes, request
        done, steps = handle.progress
        assert done == steps >= 1, request
    elif handle.state is State.FAILED:
        assert isinstance(error, Injected) or (bad and "clip to continue" in str(error)), (request, error)
    else:
        assert isinstance(error, {State.CANCELLED: Cancelled, State.EXPIRED: Expired}[handle.state]), request


def check_result(found: list[Clip], alone: list[Clip], request: Request, exact: bool) -> None:
    """Clips are those of the request alone: to the last bit, or as near as other shapes of matrix products round."""
    for one, other in zip(found, alone, strict=True):
        assert one.provenance == other.provenance, request
        pairs = [(one.latents, other.latents), (one.waveform, other.waveform), (one.frames, other.frames)]
        for values, expected in pairs:
            assert values is not None and expected is not None
            if exact:
                assert np.array_equal(values, expected), request
            else:
                close = CLOSE if values.dtype.kind == "f" else {"rtol": 0, "atol": 1}
                np.testing.assert_allclose(values.astype(float), expected.astype(float), **close, err_msg=str(request))


@pytest.mark.parametrize(
    ("bridge", "deterministic", "count", "seed"),
    [("adaptor", False, 120, 1), ("adaptor", True, 60, 2), ("global_local", False, 60, 3)],
    ids=["shared batches", "deterministic", "joint model"],
)
def test_a_random_load(models, monkeypatch, bridge, deterministic, count, seed):
    parts, memory = models(bridge)
    limits = Limits(queue=16, batch=4, memory=12_000_000, prepare_threads=2, decode_threads=2)
    with monkeypatch.context() as patch:
        engine = Engine(parts, deterministic=deterministic, limits=limits, policy=Policy(ageing=0.5))
        engine.backend.memory_model = memory
        engine.backend.conditioning_cache = ConditioningCache(engine.denoiser, capacity=CACHE_BYTES)
        watch = Watch(engine, fails_at=20, monkeypatch=patch)
        clients = [Client(engine, bridge, count // CLIENTS, f"{seed}{name}") for name in "abc"]
        for client in clients:
            client.start()
        for client in clients:
            client.join(120)
            assert not client.is_alive() and client.error is None, client.error
        assert engine.drain(120)

        asked = [pair for client in clients for pair in client.asked]
        handles = [handle for client in clients for handle in client.handles]
        assert len(handles) == count and sum(client.refused for client in clients) > 0
        assert all(client.ends == Counter(range(client.count)) for client in clients)
        for (request, bad), handle in zip(asked, handles, strict=True):
            check_end(request, bad, handle)
        states = Counter(handle.state for handle in handles)
        found, batcher = engine.batcher.stats(), engine.batcher
        assert {state: n for state, n in found.states.items() if n} == states
        assert states[State.DONE] > count / 4 and states[State.CANCELLED] and states[State.EXPIRED]
        assert watch.passes > 20, "no pass has failed"
        assert found.request_steps > found.steps, "no requests were stepped together"

        assert (found.queue, found.running, found.batches, found.memory) == (0, 0, 0, 0)
        assert not batcher._scheduler.requests and not batcher._batches
        assert 0 < watch.most <= limits.memory
        engine.close()
        gc.collect()
        assert watch.jobs and not [job for job in watch.jobs if job() is not None]
        kept = [tensor.nbytes for tensors in engine.conditioning_cache._kept.values() for tensor in tensors]
        assert engine.conditioning_cache.size == sum(kept) <= CACHE_BYTES

    done = [i for i, handle in enumerate(handles) if handle.state is State.DONE]
    reference = Engine(parts, deterministic=deterministic)
    for i in random.Random(seed).sample(done, min(SAMPLE, len(done))):
        alone = reference.generate([asked[i][0]])
        check_result(handles[i].result(0), alone, asked[i][0], exact=deterministic)
