"""Settings that cannot work are refused with one sentence."""

from __future__ import annotations

import math

import pytest

from syncflow.engine.batching import Limits, Policy


@pytest.mark.parametrize("name", ["queue", "batch", "memory", "prepare_threads", "decode_threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_sizes_are_whole_and_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a whole number, 1 or more"):
        Limits(**{name: value})


def test_nobody_needs_to_be_made_ready_ahead():
    assert Limits(ahead=0).ahead == 0
    with pytest.raises(ValueError, match="ahead is -1"):
        Limits(ahead=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_wait", -0.1), ("max_wait", math.inf), ("ageing", 0.0), ("ageing", math.inf), ("ageing", math.nan)],
)
def test_times_of_the_policy_are_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a number of seconds"):
        Policy(**{name: value})
