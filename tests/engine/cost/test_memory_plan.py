"""Which parts of a model stay under a budget, and what is refused."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.cost.memory_plan import MemoryPlan, Stage, gigabytes, plan_memory

WEIGHTS = {"text": 9_000_000_000, "ddit": 3_000_000_000, "video": 400_000_000, "audio": 100_000_000}
STAGES = (
    Stage("text", "text", 100_000_000),
    Stage("steps", "ddit", 2_000_000_000),
    Stage("frames", "video", 1_000_000_000),
    Stage("sound", "audio", 50_000_000),
)


@pytest.mark.parametrize(
    ("budget", "kept", "peak"),
    [
        (20_000_000_000, ("text", "ddit", "video", "audio"), 14_500_000_000),
        (13_000_000_000, ("ddit", "video", "audio"), 12_600_000_000),
        (12_000_000_000, ("video", "audio"), 9_600_000_000),
        (9_100_000_000, (), 9_100_000_000),
    ],
    ids=["all", "all but the text encoder", "codecs", "nothing"],
)
def test_what_is_kept(budget, kept, peak):
    plan = plan_memory(budget, WEIGHTS, STAGES)
    assert (plan.kept, plan.peak) == (kept, peak)


def test_too_little_is_one_sentence_with_what_would_fit():
    with pytest.raises(ValueError, match=r"memory is 9 GB; .* the stage text needs 9\.1 GB .* memory='9\.1GB'$"):
        plan_memory(9_000_000_000, WEIGHTS, STAGES)
    assert plan_memory(9_100_000_000, WEIGHTS, STAGES).peak == 9_100_000_000


SIZES = st.integers(0, 100)


@given(st.tuples(*[SIZES] * 4), st.tuples(*[SIZES] * 4), st.integers(1, 500))
def test_the_plan_fits_and_keeps_as_much_as_can_be_kept(weights, working, budget):
    sizes = dict(zip(WEIGHTS, weights, strict=True))
    stages = [Stage(part, part, size) for part, size in zip(WEIGHTS, working, strict=True)]
    possible = [
        sum(sizes[part] for part in kept)
        for count in range(5)
        for kept in combinations(sizes, count)
        if all(
            stage.working + sum(size for part, size in sizes.items() if part in kept or part == stage.part) <= budget
            for stage in stages
        )
    ]
    if not possible:
        with pytest.raises(ValueError, match="allow at least memory="):
            plan_memory(budget, sizes, stages)
        return
    plan = plan_memory(budget, sizes, stages)
    assert plan.peak <= budget
    assert sum(sizes[part] for part in plan.kept) == max(possible)


def test_a_request_beyond_the_budget_is_refused_with_its_stage():
    plan = MemoryPlan(10_000_000_000, WEIGHTS, STAGES, ("video", "audio"))
    plan.check(STAGES)
    larger = (*STAGES[:2], Stage("frames", "video", 9_600_000_000), STAGES[3])
    with pytest.raises(ValueError, match=r"needs 10\.1 GB of memory in the stage frames and 10 GB are allowed"):
        plan.check(larger)


def test_what_is_printed():
    plan = plan_memory(12_000_000_000, WEIGHTS, STAGES)
    assert str(plan) == (
        "memory: 9.6 GB of 12 GB predicted (text 9.6 GB, steps 5.5 GB, frames 1.5 GB, sound 550 MB); "
        "video codec, audio codec kept; text encoder, d-DiT in turn"
    )
    assert plan.to_dict()["stages"] == {
        "text": 9_600_000_000,
        "steps": 5_500_000_000,
        "frames": 1_500_000_000,
        "sound": 550_000_000,
    }


def test_sizes_are_rounded_up_where_they_must_be_enough():
    assert (gigabytes(1_010_000_000), gigabytes(1_010_000_000, up=True)) == ("1 GB", "1.1 GB")
    assert gigabytes(34_000_000) == "34 MB"
