"""Quality against steps: figures that can be known beforehand, and rows of the real command's parts."""

from __future__ import annotations

import numpy as np
import pytest

from syncflow import Engine
from syncflow.benchmarks.few_steps import Result, compare, run, table
from syncflow.training.evaluation import Matches

GOOD, HALF, NONE = Matches(2, 2, 2), Matches(1, 2, 2), Matches(0, 2, 2)


def result(impacts, onsets, scale=1.0, flops=100, steps=4):
    return Result("small", steps, flops, impacts, onsets, [np.full((2, 2), scale)] * len(impacts))


def test_a_row_is_a_result_beside_the_reference():
    row = compare(result([GOOD, HALF], [GOOD, GOOD], 1.5, 8), result([GOOD, GOOD], [HALF, HALF], 1.0, 100, 50))
    assert (row.model, row.steps, row.cost, row.video_err) == ("small", 4, 0.08, 0.5)
    assert (row.impact_f1, row.impact_f1_kept, row.v2a_onset_f1, row.v2a_onset_f1_kept) == (0.75, 0.75, 1.0, 2.0)
    assert row.impact_f1_interval == row.impact_f1_kept_interval == (0.5, 1.0)
    assert row.v2a_onset_f1_kept_interval == (2.0, 2.0)


def test_the_reference_keeps_all_of_itself():
    """Its clips vary, and the ratio of the same clips does not."""
    same = result([GOOD, HALF, NONE] * 8, [GOOD, HALF])
    row = compare(same, same)
    assert (row.cost, row.video_err, row.impact_f1_kept, row.impact_f1_kept_interval) == (1.0, 0.0, 1.0, (1.0, 1.0))
    low, high = row.impact_f1_interval
    assert low < row.impact_f1 == 0.5 < high


def test_the_table_has_a_line_for_each_row():
    same = result([GOOD, HALF], [GOOD, GOOD])
    lines = table([compare(same, same)] * 2).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| small | 4 | 100.0% | 0.750 (0.500 to 1.000) | 1.00 (1.00 to 1.00) | 1.000 (1.000 to 1.000) "
        "| 1.00 (1.00 to 1.00) | 0.00 |"
    )


@pytest.mark.slow
def test_fewer_steps_cost_less_and_move_the_clip():
    engine = Engine.from_pretrained(device="cpu", runtime="torch")
    exact, fewer = (run(engine, 2, 2, steps=steps) for steps in (4, 2))
    assert (exact.steps, len(exact.impacts), len(exact.onsets), exact.latents[0].shape) == (4, 2, 2, (16, 8, 8, 8))
    row = compare(fewer, exact)
    assert 0.45 < row.cost < 0.6 and 0 < row.video_err < 2
