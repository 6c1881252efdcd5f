"""Guidance plans: branches and weights that sum to 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.sampling.guidance import (
    Branch,
    GuidancePlan,
    cfg,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
)

TEXT, NULL = Branch(text=True), Branch(text=False)


@given(st.floats(-100, 100).filter(lambda w: min(abs(w), abs(w - 1)) > 1e-6))
def test_cfg_moves_away_from_the_null_text(weight):
    plan = cfg(weight)
    assert plan.branches == (TEXT, NULL)
    assert plan.video == plan.audio == pytest.approx((weight, 1 - weight))


def test_directions_add_up():
    """CFG 6, sync guidance 2, SyncCFG 3 and 2: text 1 + 5 + 2 + 2 on the video, 1 + 5 + 2 + 1 on the audio."""
    plan = combine([text_guidance(6), sync_guidance(2), sync_cfg_video(3), sync_cfg_audio(2)])
    assert dict(zip(plan.branches, zip(plan.video, plan.audio, strict=True), strict=True)) == {
        TEXT: (10, 9),
        NULL: (-5, -5),
        Branch(bridge=False): (-2, -2),
        Branch(muted=True): (-2, 0),
        Branch(static=True): (0, -1),
    }


@given(*[st.floats(-10, 10)] * 4)
def test_any_sum_of_directions_has_weights_that_sum_to_1(text, sync, video, audio):
    plan = combine([text_guidance(text), sync_guidance(sync), sync_cfg_video(video), sync_cfg_audio(audio)])
    assert sum(plan.video) == pytest.approx(1)
    assert sum(plan.audio) == pytest.approx(1)


def test_directions_of_no_strength_need_no_branch():
    plan = combine([text_guidance(1), sync_guidance(0), sync_cfg_video(1), sync_cfg_audio(1)])
    assert plan == GuidancePlan((TEXT,), (1.0,), (1.0,))


def test_outside_its_interval_a_plan_is_the_full_branch():
    plan = combine([text_guidance(6)], interval=(0.25, 0.75))
    assert plan.at("video", 0.2) == plan.at("audio", 0.75) == {TEXT: 1.0}
    assert plan.at("video", 0.25) == {TEXT: 6.0, NULL: -5.0}


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1.0), (0.2, 1.1)])
def test_intervals_that_are_refused(interval):
    with pytest.raises(ValueError, match="two rising times from 0 to 1"):
        combine([], interval=interval)


@pytest.mark.parametrize("rescale", [-0.1, 1.5, float("nan")])
def test_rescales_that_are_refused(rescale):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        combine([], rescale=rescale)


@pytest.mark.parametrize(("weight", "branch"), [(1, TEXT), (1.0, TEXT), (0, NULL), (0.0, NULL)])
def test_cfg_of_1_and_0_needs_one_branch(weight, branch):
    assert cfg(weight) == GuidancePlan((branch,), (1.0,), (1.0,))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(weight):
    with pytest.raises(ValueError, match="they must sum to 1"):
        cfg(weight)


@pytest.mark.parametrize(
    ("video", "audio", "message"),
    [
        ((6.0, -4.0), (1.0, 0.0), r"video weights \(6.0, -4.0\) sum to 2; they must sum to 1"),
        ((1.0, 0.0), (0.5, 0.4), r"audio weights \(0.5, 0.4\) sum to 0.9; they must sum to 1"),
        ((1.0,), (1.0, 0.0), r"2 branches need as many video weights; there are 1"),
        ((1.0, 0.0), (1.0, 0.0, 0.0), r"2 branches need as many audio weights; there are 3"),
    ],
)
def test_plans_that_are_refused(video, audio, message):
    with pytest.raises(ValueError, match=message):
        GuidancePlan((TEXT, NULL), video, audio)


def test_a_plan_needs_a_branch():
    with pytest.raises(ValueError, match="must sum to 1"):
        GuidancePlan((), (), ())
