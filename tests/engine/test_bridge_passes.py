"""Passes of models whose video reads audio: shared prefixes, contexts of rows, and what a joint pass returns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from syncflow.engine.model.denoiser import JointInputs, Modulation, VideoInputs

from .bridge_cases import (
    ROWS,
    inputs,
    passes,
    randomised,
    run,
)


def one(video: VideoInputs, row: int) -> VideoInputs:
    """A row of the inputs of a video pass."""
    index = slice(row, row + 1)
    modulation = Modulation(*(part[index] for part in video.modulation))
    return VideoInputs(video.latents[index], modulation, video.text, video.text_of_row[index])


@pytest.mark.slow
@pytest.mark.parametrize("first_block", [0, 2])
@examples(st.data())
@settings(max_examples=20)
def test_rows_share_prefixes_and_contexts(first_block, data):
    """What guidance away from a skipped bridge needs: layers that rows agree on once, then each reads its own."""
    model = randomised("audio_rope", first_block=first_block)
    rows = data.draw(st.integers(1, 4))
    picks = [st.lists(st.integers(low, ROWS - 1), min_size=rows, max_size=rows) for low in (0, -1)]
    prefix_of_row, context_of_row = data.draw(picks[0]), data.draw(picks[1])
    video, audio = passes(model, inputs())
    _, contexts = model.audio_pass(audio)
    together, _ = model.video_pass(
        replace(
            video,
            audio_context=contexts,
            audio_context_of_row=torch.tensor(context_of_row),
            prefix_of_row=torch.tensor(prefix_of_row),
        )
    )
    assert len(together) == rows
    for row, (prefix, context) in enumerate(zip(prefix_of_row, context_of_row, strict=True)):
        own = None if context < 0 else [part[context : context + 1] for part in contexts]
        alone, _ = model.video_pass(replace(one(video, prefix), audio_context=own))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_audio_rows_without_a_velocity_still_have_contexts(count):
    model = randomised("audio_rope", first_block=1)
    _, audio = passes(model, inputs())
    whole, every = model.audio_pass(audio)
    velocity, contexts = model.audio_pass(replace(audio, num_outputs=count))
    torch.testing.assert_close(velocity[:count], whole[:count])
    for part, other in zip(contexts, every, strict=True):
        assert torch.equal(part, other)


@pytest.mark.slow
@examples(st.data())
@settings(max_examples=20)
def test_a_joint_pass_gives_what_it_is_asked_for(data):
    """Any rows see each other, any have velocities of the video or of the audio."""
    model, given = randomised("global_local"), inputs()
    some = st.sets(st.integers(0, ROWS - 1)).map(sorted)
    bridged, video_rows, audio_rows = (torch.tensor(data.draw(some), dtype=torch.long) for _ in range(3))
    reference = torch.randn(ROWS, 4, 5) if data.draw(st.booleans()) else None
    flagged = torch.zeros(ROWS, dtype=torch.bool).index_fill(0, bridged, True)
    whole = run(model, **given, bridged=flagged, reference=reference)
    video, audio = passes(model, given)
    found = model.joint_pass(
        JointInputs(
            video.latents,
            audio.latents,
            video.modulation,
            audio.time_token,
            video.text,
            video.text_of_row,
            bridged_rows=bridged,
            reference=None if reference is None else reference[bridged],
            video_output_rows=video_rows,
            audio_output_rows=audio_rows,
        )
    )
    torch.testing.assert_close(found.video, whole.video[video_rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.audio, whole.audio[audio_rows], rtol=1e-4, atol=1e-5)
