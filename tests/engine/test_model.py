"""The d-DiT as a whole: shapes, the one-way rule, times, texts, rows and precisions."""

from __future__ import annotations

import pytest
import torch

from syncflow import preset
from syncflow.engine.model import DDiT

from .model_cases import FRAMES, SMALL, inputs, randomised, run


@pytest.fixture(scope="module")
def model() -> DDiT:
    return randomised(SMALL)


def test_the_full_size_audio_tower_is_as_deep_as_the_video_tower():
    with torch.device("meta"):
        tower = DDiT(preset("syncflow-xl").ddit).audio
    assert len(tower.layers) == len(tower.adaptors) == 28
    assert tower.x_embedder.in_features == tower.final_linear.out_features == 128


def test_a_fresh_model_is_silent():
    velocities = run(DDiT(SMALL), **inputs())
    assert not velocities.video.any()
    assert not velocities.audio.any()


def test_shapes(model):
    given = inputs(rows=3, frames=4, height=6, width=8)
    velocities = run(model, **given)
    assert velocities.video.shape == given["z_v"].shape
    assert velocities.audio.shape == given["z_a"].shape


def test_the_video_does_not_hear_the_audio(model):
    given = inputs()
    before = run(model, **given)
    after = run(model, **given | {"z_a": given["z_a"] + 1, "t_a": 1 - given["t_a"]})
    torch.testing.assert_close(before.video, after.video, rtol=0, atol=0)
    assert not torch.allclose(before.audio, after.audio)


@pytest.mark.parametrize("what", ["z_v", "t_v"])
def test_the_audio_sees_the_video(model, what):
    given = inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    assert not torch.allclose(before.audio, after.audio, atol=1e-4)


@pytest.mark.parametrize("what", ["z_a", "t_a"])
def test_the_audio_hears_itself(model, what):
    given = inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    assert not torch.allclose(before.audio, after.audio, atol=1e-4)


@pytest.mark.parametrize("what", ["t_v", "fps", "states"])
def test_the_video_depends_on(model, what):
    given = inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    assert not torch.allclose(before.video, after.video, atol=1e-4)


def test_equal_times_of_all_frames_are_one_time(model):
    given = inputs()
    per_frame = given["t_v"][:, None].expand(-1, FRAMES)
    one, many = run(model, **given), run(model, **given | {"t_v": per_frame})
    torch.testing.assert_close(one.video, many.video)
    torch.testing.assert_close(one.audio, many.audio)


def test_frames_have_times_of_their_own(model):
    given = inputs()
    earlier = torch.stack((given["t_v"], given["t_v"] * 0.5), 1)
    one, two = run(model, **given), run(model, **given | {"t_v": earlier})
    assert not torch.allclose(one.video, two.video, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(model):
    given = inputs(rows=4)
    together = run(model, **given)
    for row in range(4):
        alone = run(model, **{name: value[row : row + 1] for name, value in given.items()})
        torch.testing.assert_close(together.video[row], alone.video[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.audio[row], alone.audio[0], rtol=1e-4, atol=1e-5)


def test_rows_may_share_a_text(model):
    given = inputs(rows=3)
    shared = torch.tensor([1, 0, 1])
    texts = {"states": given.pop("states"), "lengths": given.pop("lengths")}
    apart = run(model, **given, **{name: value[shared] for name, value in texts.items()})
    together = run(model, **given, **texts, text_of_row=shared)
    torch.testing.assert_close(apart.video, together.video)
    torch.testing.assert_close(apart.audio, together.audio)


def test_words_beyond_the_length_do_not_count(model):
    given = inputs() | {"lengths": torch.tensor([2, 4])}
    changed = given["states"].clone()
    changed[0, 2:] += 1
    changed[1, 4:] += 1
    before, after = run(model, **given), run(model, **given | {"states": changed})
    torch.testing.assert_close(before.video, after.video, rtol=0, atol=0)


@pytest.mark.parametrize("adaptor_tokens", ["all", "frame", "none"])
@pytest.mark.parametrize("audio_text", [False, True])
def test_every_way_to_read_the_video(adaptor_tokens, audio_text):
    config = SMALL.replace(adaptor_tokens=adaptor_tokens, audio_text=audio_text)
    model, given = randomised(config), inputs(frames=3)
    assert len(model.audio.adaptors) == (0 if adaptor_tokens == "none" else config.depth)
    velocities = run(model, **given)
    assert velocities.audio.shape == given["z_a"].shape
    assert velocities.audio.isfinite().all()
    changed = run(model, **given | {"z_v": given["z_v"] * 0.5})
    assert not torch.allclose(velocities.audio, changed.audio, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_run(dtype):
    model = randomised(SMALL).to(dtype)
    given = {name: value.to(dtype) if name in ("z_v", "z_a", "states") else value for name, value in inputs().items()}
    velocities = run(model, **given)
    assert velocities.video.dtype == velocities.audio.dtype == dtype
    assert velocities.video.isfinite().all()
