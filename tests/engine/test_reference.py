"""The reference loop against the tests' own, request by request and in batches, for every bridge."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings

from syncflow.engine.sampling.guidance import combine, text_guidance
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.reference import ReferenceLoop

from .plain import CONFIG, HEARING_JOBS, JOBS, assert_plain, job, randomised

pytestmark = pytest.mark.slow

ADAPTOR = randomised()
HEARING = {
    "audio_rope": randomised(CONFIG.replace(bridge="audio_rope", first_block=1)),
    "global_local": randomised(CONFIG.replace(bridge="global_local")),
}


def one_sound(request: Job) -> Job:
    """Without further takes and reused branches, which the reference loop has not."""
    return dataclasses.replace(
        request, takes=request.takes[:1], plan=dataclasses.replace(request.plan, branch_interval=1)
    )


@settings(max_examples=20)
@given(JOBS)
def test_a_request_of_a_model_with_adaptors(request: Job) -> None:
    request = one_sound(request)
    assert_plain(ADAPTOR, request, ReferenceLoop(ADAPTOR, [request]).run())


@pytest.mark.parametrize("bridge", HEARING)
@settings(max_examples=12)
@given(request=HEARING_JOBS)
def test_a_request_of_a_model_whose_video_reads_the_audio(bridge: str, request: Job) -> None:
    request = one_sound(request)
    assert_plain(HEARING[bridge], request, ReferenceLoop(HEARING[bridge], [request]).run())


def test_requests_of_a_batch_are_sampled_each_by_itself() -> None:
    jobs = [job(seed, prefix=seed % 2, negative=seed == 2, length=2 + seed) for seed in range(3)]
    found = ReferenceLoop(ADAPTOR, jobs).run()
    for i, one in enumerate(jobs):
        alone = ReferenceLoop(ADAPTOR, [one]).run()
        torch.testing.assert_close(found.video[i], alone.video[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.audio[i], alone.audio[0], rtol=1e-4, atol=1e-5)


def test_reused_branches_are_refused() -> None:
    plan = combine([text_guidance(4.0)], branch_interval=2)
    with pytest.raises(ValueError, match="branch_interval must be 1"):
        ReferenceLoop(ADAPTOR, [job(guidance=plan)])
