"""Guidance plans: branches and weights that sum to 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.sampling.guidance import Branch, GuidancePlan, cfg

TEXT, NULL = Branch(text=True), Branch(text=False)


@given(st.floats(-100, 100).filter(lambda w: w not in (0, 1)))
def test_cfg_moves_away_from_the_null_text(weight):
    plan = cfg(weight)
    assert plan.branches == (TEXT, NULL)
    assert plan.video == plan.audio == (weight, 1 - weight)


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
