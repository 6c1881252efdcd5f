"""Priorities and deadlines are checked; errors that are kept hold text in place of frames."""

from __future__ import annotations

import gc
import math
import weakref

import pytest

from syncflow.engine.batching.request_state import without_frames

from .helpers import make_request


@pytest.mark.parametrize("priority", [-101, 101, 0.5])
def test_priorities_have_a_range(priority):
    with pytest.raises(ValueError, match="it must be a whole number from -100 to 100"):
        make_request(priority=priority)


@pytest.mark.parametrize("deadline", [0, -1.0, math.inf, math.nan])
def test_deadlines_are_ahead(deadline):
    with pytest.raises(ValueError, match=f"deadline is {deadline}; it must be a number of seconds above 0"):
        make_request(timeout=deadline)


class Tensor:
    pass


def fail(tensor):
    local = tensor
    try:
        raise KeyError(f"first, with {type(local).__name__}")
    except KeyError as error:
        raise ValueError("second") from error


def caught():
    tensor = Tensor()
    try:
        fail(tensor)
    except ValueError as error:
        return without_frames(error), weakref.ref(tensor)


@pytest.mark.slow
def test_nothing_of_the_frames_stays_but_their_text():
    error, tensor = caught()
    gc.collect()
    assert tensor() is None
    assert isinstance(error.__cause__, KeyError)
    (note,) = error.__notes__
    for text in ("in fail", "KeyError: 'first, with Tensor'", "ValueError: second"):
        assert text in note


def test_errors_that_refer_to_each_other():
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__cause__ = second, first
    assert without_frames(first) is first
