"""Time grids: they start at noise, end at data, and go forward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.sampling.schedule import schedule

STEPS, SHIFTS, LEADS = st.integers(1, 200), st.floats(0.05, 20), st.floats(0, 1)


@given(STEPS, SHIFTS, LEADS)
def test_both_modalities_go_from_noise_to_data(steps, shift, lead):
    times = schedule(steps, shift=shift, lead=lead)
    assert len(times) == len(times.video) - 1 == len(times.audio) - 1
    for grid in (times.video, times.audio):
        assert grid.dtype == np.float64
        assert (grid[0], grid[-1]) == (0.0, 1.0)
        assert (np.diff(grid) >= 0).all()
    assert (times.video >= times.audio).all()


@given(STEPS, SHIFTS, LEADS)
def test_every_modality_takes_its_steps_and_no_step_is_idle(steps, shift, lead):
    times = schedule(steps, shift=shift, lead=lead)
    moves_video, moves_audio = np.diff(times.video) > 0, np.diff(times.audio) > 0
    assert moves_video.sum() == moves_audio.sum() == steps
    assert (moves_video | moves_audio).all()
    assert len(times) == round(steps * (1 + lead))


@given(STEPS, SHIFTS)
def test_lead_0_shares_the_time(steps, shift):
    times = schedule(steps, shift=shift, lead=0)
    np.testing.assert_array_equal(times.video, times.audio)


@given(STEPS, SHIFTS)
def test_lead_1_finishes_the_video_first(steps, shift):
    times = schedule(steps, shift=shift, lead=1)
    assert len(times) == 2 * steps
    assert (times.video[steps:] == 1).all()
    assert (times.audio[: steps + 1] == 0).all()
    np.testing.assert_array_equal(times.video[: steps + 1], times.audio[steps:])


def test_lead_one_half_overlaps_by_half():
    times = schedule(4, lead=0.5)
    np.testing.assert_array_equal(times.video, [0, 0.25, 0.5, 0.75, 1, 1, 1])
    np.testing.assert_array_equal(times.audio, [0, 0, 0, 0.25, 0.5, 0.75, 1])


@given(STEPS)
def test_shift_1_is_an_even_grid(steps):
    np.testing.assert_allclose(schedule(steps).video, np.linspace(0, 1, steps + 1), atol=1e-15)


@given(STEPS, st.floats(1.01, 20))
def test_shift_bends_towards_noise(steps, shift):
    even, bent = schedule(steps).video, schedule(steps, shift=shift).video
    assert (bent[1:-1] < even[1:-1]).all()
    np.testing.assert_allclose(bent, even / (even + shift * (1 - even)))


@given(STEPS, st.floats(0.05, 20))
def test_shift_and_its_inverse_mirror_each_other(steps, shift):
    bent, mirrored = schedule(steps, shift=shift).video, schedule(steps, shift=1 / shift).video
    np.testing.assert_allclose(bent, 1 - mirrored[::-1], atol=1e-12)


@given(STEPS, SHIFTS, LEADS)
def test_a_known_video_leaves_the_steps_of_the_audio(steps, shift, lead):
    times = schedule(steps, shift=shift, lead=lead)
    known = times.known_video()
    assert len(known) == steps
    np.testing.assert_array_equal(known.audio, schedule(steps, shift=shift).audio)
    assert known.video[-1] == 1
    for t_video, t_audio in zip(known.video[:-1], known.audio[:-1], strict=True):
        here = (times.audio == t_audio) & (times.video == t_video)
        assert here.any()


@pytest.mark.parametrize(("lead", "t_video"), [(0.0, [0, 0.5, 1]), (1.0, [1, 1, 1])])
def test_a_known_video_is_noised_at_lead_0_and_clean_at_lead_1(lead, t_video):
    np.testing.assert_array_equal(schedule(2, lead=lead).known_video().video, t_video)
