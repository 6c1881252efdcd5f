"""Estimated memory against that of the same work on real tensors."""

from __future__ import annotations

import pytest
import torch

from syncflow.benchmarks.memory import allocated
from syncflow.engine.batching import Limits
from syncflow.engine.cost.live_memory import peak_bytes
from syncflow.engine.cost.memory import WORKSPACE, MemoryEstimator
from syncflow.engine.engine import Engine
from syncflow.engine.runtime.cuda_graphs.capture import eager_capture
from syncflow.engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Request

pytestmark = pytest.mark.slow

PROMPT = "a large red rubber ball bounces on a wooden floor"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def memory(engine) -> MemoryEstimator:
    return MemoryEstimator(engine.components)


@pytest.mark.parametrize("requests", [1, 2, 4])
def test_a_step_takes_what_is_predicted(engine, memory, requests):
    """Without the conditioning cache, and without temporaries inside operations."""
    prepared = engine.pipeline.prepare(Request(PROMPT, steps=1, video_lead=0.0, seconds=1.0))
    jobs = [engine.pipeline.encode(prepared) for _ in range(requests)]

    def work():
        batch = batch_of(engine.components.ddit)
        batch.join(jobs)
        batch.step()

    predicted = memory.predict(prepared.sequence, prepared.plan)
    expected = predicted.fixed - memory.weights + requests * memory.step_of(prepared.sequence, prepared.plan)
    assert peak_bytes(work) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("side", [64, 128])
def test_decoding_takes_what_is_predicted(engine, memory, side):
    """Of the allocator, with what convolutions need beside their outputs."""
    sequence, parts = engine.config.sequence.replace(width=side, height=side), engine.components
    grid = sequence.latent_frames, sequence.latent_height, sequence.latent_width
    video = torch.randn(1, engine.config.ddit.video_channels, *grid)
    audio = torch.randn(1, sequence.audio_tokens, engine.config.ddit.audio_channels)

    def frames():
        parts.video.decode(video, sequence.frames)

    def sound():
        parts.audio.decode(audio, sequence.samples)

    with torch.inference_mode():
        frames(), sound()  # makes what later calls keep
    assert memory.decode_video_bytes(sequence) == pytest.approx(allocated(frames, engine.device), rel=0.1)
    assert memory.decode_audio_bytes(sequence) == pytest.approx(allocated(sound, engine.device), rel=0.1)


def test_more_of_a_request_takes_more(memory, engine):
    plan = engine.pipeline.plan(Request(PROMPT))
    guided = engine.pipeline.plan(Request(PROMPT, sync_guidance=2.0))
    base = engine.config.sequence
    large = base.replace(width=256, height=256)
    assert memory.step_of(large, plan) > 4 * memory.step_of(base, plan)
    assert memory.predict(large, plan).request > memory.predict(base, plan).request
    assert memory.step_of(base, guided) > memory.step_of(base, plan)
    assert memory.step_of(base, plan, takes=8) > 2 * memory.step_of(base, plan)


def test_the_peak_is_that_of_steps_or_of_decoding(memory, engine):
    sequence, plan = engine.config.sequence, engine.pipeline.plan(Request(PROMPT))
    one, eight = (memory.peak(sequence, plan, count) for count in (1, 8))
    assert memory.weights < one < eight
    assert eight - memory.weights == pytest.approx(8 * memory.step_of(sequence, plan), rel=0.2)


def test_what_can_never_fit_is_refused_at_once(engine):
    small = Engine(engine.components, limits=Limits(memory=20_000_000))
    with small:
        clips = small.submit(PROMPT, steps=1, seconds=0.5).result(60)
        assert len(clips) == 1
        with pytest.raises(ValueError, match="memory"):
            small.submit(PROMPT, steps=1, seconds=60.0, width=256, height=256)


@pytest.mark.parametrize("overlap", [False, True])
def test_graphs_take_what_is_predicted(engine, memory, overlap):
    """Contexts, static inputs and states of every bucket, as real graphs have them."""
    prepared = engine.pipeline.prepare(Request(PROMPT, seconds=0.5, steps=2))
    job, batches = engine.pipeline.encode(prepared), [2, 1]
    real = CudaGraphDenoiser(engine.components.ddit, overlap=overlap, capture=eager_capture)
    for requests in batches:
        batch = batch_of(real)
        batch.join([job] * requests)
        while not batch.step():
            pass
    predicted = memory.graphs(prepared.sequence, prepared.plan, batches, overlap=overlap)
    assert predicted.buffers == real.graphs.bytes
    step = memory.step_of(prepared.sequence, prepared.plan)
    assert predicted.pools >= (2 + overlap) * 2 * step
    assert predicted.workspaces == (2 + 3 + 2 * overlap) * WORKSPACE
    assert predicted.total == predicted.buffers + predicted.pools + predicted.workspaces
    more = memory.graphs(prepared.sequence, prepared.plan, [4, *batches], overlap=overlap)
    assert more.buffers > predicted.buffers
