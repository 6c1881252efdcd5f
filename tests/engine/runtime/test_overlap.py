"""Overlap of the towers of successive steps: the same result, without races between the streams.

Streams and events are fakes that know what happened before what (``timeline.py``).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from syncflow.engine.runtime.cuda_graphs.stream_order import CudaStreamOrder
from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.oneway import OneWayBatch
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.sampling.streams import AHEAD, TwoStreams

from ..plain import HEARING_JOBS, JOBS, job
from .conftest import CONFIGS, ONE_WAY
from .tape import TapeCapture
from .test_cuda_graphs import assert_same, come_and_go
from .timeline import races

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def captured(model, buffers):
    """A denoiser with one output buffer for contexts or two; or, for none, the model itself."""
    if buffers == 0:
        return model
    return CudaGraphDenoiser(model, overlap=buffers == 2, capture=TapeCapture(), order=CudaStreamOrder(CPU), max_rows=8)


def overlapped(denoiser, witness):
    return OneWayBatch(denoiser, ConditioningCache(denoiser), TwoStreams(witness.side))


@pytest.mark.parametrize("buffers", [0, 1, 2], ids=["eager", "one buffer", "two buffers"])
@pytest.mark.parametrize("name", ONE_WAY)
@given(st.data())
@settings(max_examples=5)
def test_nothing_is_touched_too_early(models, name, buffers, data):
    requests = HEARING_JOBS if CONFIGS[name].video_reads_audio else JOBS
    jobs = data.draw(st.lists(requests, min_size=1, max_size=3))
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        denoiser = captured(models[name], buffers)
        batches = [overlapped(denoiser, witness) for _ in range(2)]
        come_and_go(batches, batch_of(models[name]), jobs, data)
    assert witness.operations["side"] > 0
    assert not witness.found


@pytest.mark.parametrize("buffers", [0, 1, 2], ids=["eager", "one buffer", "two buffers"])
@pytest.mark.parametrize("name", ["adaptor", "audio_rope"])
def test_long_runs(models, name, buffers):
    """Kept contexts, several takes, more rows than are captured, and requests that join later."""
    jobs = [
        job(1, steps=8),
        job(2, lead=1.0, steps=4),
        job(3, lead=0.5, steps=5, takes=(4, 5, 6) * (name == "adaptor")),
    ]
    later = [job(seed, steps=3) for seed in range(7, 10)]
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        batch = overlapped(captured(models[name], buffers), witness)
        expected = batch_of(models[name])
        for one in (batch, expected):
            one.join(jobs)
            for _ in range(5):
                one.step()
            one.join(later)
            for _ in range(3):
                one.step()
        assert_same(batch.latents, expected.latents)
    assert not witness.found


@pytest.mark.parametrize("buffers", [0, 2], ids=["eager", "two buffers"])
def test_the_leading_tower_goes_ahead(models, buffers):
    """At its end no stream has waited for the other's last step: that is what it is for."""
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        batch = overlapped(captured(models["adaptor"], buffers), witness)
        batch.join([job(1, steps=6)])
        reached = []
        for _ in range(6):
            batch.step()
            reached.append((witness.side.clock["side"], witness.main.clock.get("side", 0)))
    ends = [end for end, _ in reached]
    for step, (_, known) in enumerate(reached):
        assert known == (ends[step - AHEAD - 1] if step > AHEAD else 0)


# Each rule is needed: without it the witness speaks


@pytest.mark.parametrize("buffers", [1, 2])
def test_without_events_contexts_are_overwritten(models, buffers):
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        patch.setattr(TwoStreams, "lead", lambda self: None)
        patch.setattr(CudaStreamOrder, "wait_events", lambda self, *events: None)
        batch = overlapped(captured(models["adaptor"], buffers), witness)
        batch.join([job(1, steps=5)])
        for _ in range(5):
            batch.step()
    assert any("writes over what is still read" in fault for fault in witness.found)


def test_without_a_hold_memory_is_taken(models):
    follow = TwoStreams.follow
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        patch.setattr(TwoStreams, "follow", lambda self, *read: follow(self))
        batch = overlapped(models["adaptor"], witness)
        batch.join([job(1, steps=3)])
        for _ in range(3):
            batch.step()
    assert any("memory that is still in use" in fault for fault in witness.found)


def test_without_waiting_contexts_are_read_too_early(models):
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        patch.setattr(witness.side, "wait_stream", lambda stream: None)
        batch = overlapped(models["adaptor"], witness)
        batch.join([job(1, steps=2)])
        batch.step()
    assert any("what is not written yet" in fault for fault in witness.found)


def test_without_joining_the_end_is_read_too_early(models):
    with pytest.MonkeyPatch.context() as patch, races(patch) as witness:
        patch.setattr(TwoStreams, "join", lambda self: None)
        batch = overlapped(models["adaptor"], witness)
        batch.join([job(1, steps=2)])
        batch.step()
        batch.leave([0])
    assert any("what is not written yet" in fault for fault in witness.found)
