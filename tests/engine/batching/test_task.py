"""Errors that are kept hold text in place of frames."""

from __future__ import annotations

import gc
import weakref

from syncflow.engine.batching.task import without_frames


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
