"""One-to-one matching of moments and the ratios made of it."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.training.evaluation import Matches, av_align, av_align_any, cycle_sync, match_times, pool

moments = st.lists(st.floats(0, 2, allow_nan=False, width=32), max_size=8)
few_moments = st.lists(st.floats(0, 1, allow_nan=False, width=32), max_size=4)
tolerances = st.floats(0, 0.5, width=32)


def every_matching(a: list[float], b: list[float], tolerance: float) -> list[tuple[int, float]]:
    """Number of pairs and total difference of every one-to-one matching within the tolerance."""
    found = [(0, 0.0)]
    for size in range(1, min(len(a), len(b)) + 1):
        for rows in combinations(range(len(a)), size):
            for columns in permutations(range(len(b)), size):
                differences = [abs(a[i] - b[j]) for i, j in zip(rows, columns, strict=True)]
                if max(differences) <= tolerance:
                    found.append((size, sum(differences)))
    return found


@given(few_moments, few_moments, tolerances)
def test_no_other_matching_is_better(a: list[float], b: list[float], tolerance: float) -> None:
    matches = match_times(a, b, tolerance)
    hits, total = max(every_matching(a, b, tolerance + 1e-9), key=lambda found: (found[0], -found[1]))
    assert matches.hits == hits
    assert sum(abs(a[i] - b[j]) for i, j in matches.pairs) == pytest.approx(total, abs=1e-6)


@given(moments, moments, tolerances)
def test_pairs_are_one_to_one_and_within_tolerance(a: list[float], b: list[float], tolerance: float) -> None:
    matches = match_times(a, b, tolerance)
    assert (
        matches.hits == len(matches.pairs) == len({i for i, _ in matches.pairs}) == len({j for _, j in matches.pairs})
    )
    assert all(abs(a[i] - b[j]) <= tolerance + 1e-9 for i, j in matches.pairs)
    assert (matches.reference, matches.found) == (len(a), len(b))


@pytest.mark.slow
@given(moments, moments, tolerances, st.randoms(use_true_random=False))
def test_neither_order_nor_roles_change_the_score(a: list[float], b: list[float], tolerance: float, random) -> None:
    matches = match_times(a, b, tolerance)
    exchanged = match_times(b, a, tolerance)
    assert (exchanged.hits, exchanged.f1, exchanged.iou) == (matches.hits, matches.f1, matches.iou)
    assert exchanged.precision == matches.recall
    assert match_times(random.sample(a, len(a)), random.sample(b, len(b)), tolerance).hits == matches.hits


@given(moments, moments, tolerances)
def test_ratios_are_bounded_and_ordered(a: list[float], b: list[float], tolerance: float) -> None:
    matches = match_times(a, b, tolerance)
    assert 0 <= matches.iou <= matches.f1 <= 1
    assert (
        min(matches.precision, matches.recall) - 1e-12 <= matches.f1 <= max(matches.precision, matches.recall) + 1e-12
    )
    assert matches.hits <= match_times(a, b, tolerance + 0.1).hits


@given(moments)
def test_a_set_matches_itself(a: list[float]) -> None:
    matches = match_times(a, a, 0.0)
    assert matches.hits == len(a)
    assert matches.iou == (1.0 if a else 0.0)


def test_many_matches_win_over_close_ones() -> None:
    assert match_times([0.0, 0.1], [0.1, 0.2], 0.1).pairs == ((0, 0), (1, 1))


def test_empty_sets() -> None:
    nothing, missed, invented = match_times([], [], 0.1), match_times([0.5], [], 0.1), match_times([], [0.5], 0.1)
    assert nothing == Matches(0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.iou) == (0, 0, 0, 0)
    assert (missed.f1, invented.f1) == (0, 0)
    hit = match_times([0.5], [0.5], 0.1)
    assert pool([hit, nothing, nothing]).f1 == 1
    assert pool([hit, missed]).f1 == pytest.approx(2 / 3)
    assert pool([]) == Matches()


def test_pooled_ratios_are_micro_averages() -> None:
    pooled = pool([Matches(1, 1, 3), Matches(2, 5, 2)])
    assert (pooled.precision, pooled.recall, pooled.iou) == (3 / 5, 3 / 6, 3 / 8)
    assert pooled.f1 == pytest.approx(2 * 3 / 11)


def test_cycle_sync_and_av_align_are_the_ratio_of_the_papers() -> None:
    heard, inferred = [0.1, 0.5, 0.9], [0.12, 0.51, 1.4, 1.6]
    assert cycle_sync(heard, inferred, 0.05) == av_align(heard, inferred, 0.05) == pytest.approx(2 / (3 + 4 - 2))
    assert cycle_sync([], [], 0.05) == 0
    assert av_align_any([0.1, 0.12, 0.9], [0.11, 0.5], 0.05) == pytest.approx(2 / (3 + 2 - 2))  # two share a peak
    assert av_align([0.1, 0.12, 0.9], [0.11, 0.5], 0.05) == pytest.approx(1 / (3 + 2 - 1))
    assert av_align_any([], [], 0.05) == 0 == av_align_any([0.1], [0.2], 0.1)
    assert cycle_sync(np.array(heard), np.array(heard), 0.05) == 1


@pytest.mark.parametrize("tolerance", [-0.1, float("nan")])
def test_a_tolerance_is_a_length_of_time(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        match_times([0.1], [0.1], tolerance)
