"""The cache of step times: found for an equal key and no other; the ranking of runtimes."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.runtime.selection import calibration
from syncflow.engine.runtime.selection.calibration import (
    TIE_RATIO,
    Calibration,
    CalibrationKey,
    enabled,
    load_or_measure,
)
from syncflow.engine.runtime.selection.timing import StepTimes

NAMES = ("torch-plain", "torch", "native", "onnxruntime", "openvino", "aoti")
TIMES = StepTimes({"torch-plain": 0.04, "native": 0.01}, {"openvino": "it is broken"})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_in_memory", {})
    return tmp_path / "cache"


@pytest.fixture
def key() -> CalibrationKey:
    return CalibrationKey.here("7" * 64, "float32", ("torch-plain", "native", "openvino"), {"openvino": "2026 abc"})


class Measure:
    """A measurement with given times, which counts its calls."""

    def __init__(self, times: StepTimes = TIMES) -> None:
        self.times, self.count = times, 0

    def __call__(self) -> StepTimes:
        self.count += 1
        return self.times


def unexpected() -> StepTimes:
    raise AssertionError("it was timed")


def test_a_key_is_measured_once(key):
    measure = Measure()
    first = load_or_measure(key, measure)
    again = load_or_measure(key, unexpected)
    assert first == again and again.times == TIMES and measure.count == 1
    assert first.file == key.file and first.file.is_file()
    assert [file.name for file in key.file.parent.iterdir()] == [key.file.name]  # and nothing half written


def test_renew_measures_again(key):
    load_or_measure(key, Measure())
    newer = StepTimes(dict.fromkeys(("torch-plain", "native", "openvino"), 0.02))
    assert load_or_measure(key, Measure(newer), renew=True).times == newer
    assert load_or_measure(key, unexpected).times == newer


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "Another CPU [0123456789ab]"},
        {"instructions": "baseline"},
        {"environment": {"ATEN_CPU_CAPABILITY": "avx2"}},
        {"threads": 64},
        {"versions": {"torch": "1.0"}},
        {"model": "8" * 64},
        {"precision": "bfloat16"},
        {"candidates": ("torch-plain", "native")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_key_is_measured_separately(key, change):
    """Also where the file of one is found in the place of the other."""
    other, planted = replace(key, **change), StepTimes(dict.fromkeys(key.candidates, 0.03))
    here = Measure(StepTimes(dict.fromkeys(replace(key, **change).candidates, 0.02)))
    foreign = load_or_measure(key, Measure(planted)).file
    assert load_or_measure(other, here).times == here.times and here.count == 1
    os.replace(foreign, other.file)
    assert load_or_measure(other, here).times == here.times and here.count == 2
    assert load_or_measure(other, unexpected).times == here.times


def test_the_key_of_this_process(monkeypatch):
    monkeypatch.setattr(calibration.native, "instructions", lambda: "x86-64-v9")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    key = CalibrationKey.here("7", "float32", (), {"aoti": "3"})
    assert key.instructions == "x86-64-v9" and key.environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert key.threads == torch.get_num_threads()
    assert key.versions["torch"] == torch.__version__ and key.versions["aoti"] == "3"


@pytest.mark.skipif(calibration.native.EXTENSION is None, reason="the native part was not built")
def test_another_build_of_the_cpp_part_is_another_key(monkeypatch, tmp_path):
    before = CalibrationKey.here("7", "float32", (), {})
    assert len(before.versions["native"]) == 64
    (tmp_path / "_native.so").write_bytes(b"another build")

    class Other:
        __file__ = str(tmp_path / "_native.so")
        instructions = staticmethod(calibration.native.EXTENSION.instructions)

    monkeypatch.setattr(calibration.native, "EXTENSION", Other)
    assert CalibrationKey.here("7", "float32", (), {}).versions["native"] != before.versions["native"]


def damages():
    """By name, what becomes of the text of a file."""

    def of(change):
        return lambda text: json.dumps(change(json.loads(text)))

    def times(**changes):
        return of(lambda v: v | {"times": v["times"] | changes})

    return {
        "empty": lambda text: "",
        "cut": lambda text: text[: len(text) // 2],
        "no object": lambda text: "[]",
        "no text": lambda text: "\udcff",
        "newer": of(lambda v: v | {"schema": 3}),
        "without times": of(lambda v: {name: v[name] for name in v if name != "times"}),
        "negative": times(seconds={"torch-plain": -1.0, "native": 0.1}),
        "not a number": times(seconds={"torch-plain": float("nan"), "native": 0.1}),
        "text for a number": times(seconds={"torch-plain": "fast", "native": 0.1}),
        "no times at all": times(seconds={}),
        "one missing": times(seconds={"native": 0.1}),
        "one too many": times(seconds={"torch-plain": 0.1, "native": 0.1, "magic": 0.1}),
        "a list for an object": times(seconds=[0.1]),
        "another field": times(more=1),
        "a number for a date": of(lambda v: v | {"date": 5}),
    }


@pytest.mark.parametrize("name", damages())
def test_a_damaged_file_is_ignored_and_replaced(key, name):
    load_or_measure(key, Measure())
    text = damages()[name](key.file.read_text())
    key.file.write_bytes(text.encode("utf-8", "surrogateescape"))
    measure = Measure()
    assert load_or_measure(key, measure).times == TIMES and measure.count == 1
    assert load_or_measure(key, unexpected).times == TIMES


def test_without_a_writable_cache_a_process_measures_once(key, cache):
    cache.write_text("a file where a folder should be")
    measure = Measure()
    assert load_or_measure(key, measure).file is None
    assert load_or_measure(key, unexpected).times == TIMES
    assert load_or_measure(key, measure, renew=True).times == TIMES
    assert measure.count == 2 and cache.is_file()


def test_a_failed_rename_leaves_no_temporary_file(key, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(calibration.os, "replace", refuse)
    assert load_or_measure(key, Measure()).file is None
    assert list(key.file.parent.iterdir()) == []


def test_threads_measure_once(key):
    """And never two at a time."""
    measure, inside, most, found = Measure(), threading.Semaphore(1), [], []

    def slowly() -> StepTimes:
        most.append(inside.acquire(blocking=False))
        threading.Event().wait(0.05)
        inside.release()
        return measure()

    def ask(one: CalibrationKey) -> None:
        found.append(load_or_measure(one, slowly).times)

    keys = [key, replace(key, threads=77)] * 4
    threads = [threading.Thread(target=ask, args=(one,)) for one in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measure.count == 2 and all(most) and found == [TIMES] * 8


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(1e-4, 10.0), min_size=1))
def test_each_rank_is_within_the_tie_ratio_of_the_fastest_left(seconds):
    order = Calibration(CalibrationKey.here("", "float32", (), {}), StepTimes(seconds), "").ranking()
    assert sorted(order) == sorted(seconds)
    for i, name in enumerate(order):
        assert min(seconds[other] for other in order[i:]) >= TIE_RATIO * seconds[name]


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        ({"torch-plain": 1.00, "torch": 1.02, "native": 1.04}, "native"),
        ({"torch-plain": 1.00, "torch": 1.02, "native": 1.06}, "torch"),
        ({"openvino": 1.00, "torch-plain": 1.04}, "torch-plain"),
        ({"openvino": 1.00, "torch-plain": 1.06}, "openvino"),
        ({"torch-plain": 0.1, "torch": 1.0, "native": 30.0}, "torch-plain"),
        ({"onnxruntime": 1.01, "openvino": 1.0}, "onnxruntime"),
    ],
    ids=str,
)
def test_ties_have_a_fixed_order(seconds, first):
    assert Calibration(CalibrationKey.here("", "float32", (), {}), StepTimes(seconds), "").ranking()[0] == first


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("on", True), ("off", False)])
def test_timing_can_be_switched_off(monkeypatch, value, expected):
    monkeypatch.delenv("SYNCFLOW_CALIBRATION")
    if value is not None:
        monkeypatch.setenv("SYNCFLOW_CALIBRATION", value)
    assert enabled() is expected


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "maybe")
    with pytest.raises(ValueError, match="SYNCFLOW_CALIBRATION is 'maybe'; it must be on or off"):
        enabled()


def test_timing_that_was_stopped_is_not_kept_on_disk(key, cache):
    """A busy machine makes every step slow for a while: the next process times again."""
    stopped = StepTimes({key.candidates[0]: 9.0}, stopped="a step takes 9.0 s")
    found = load_or_measure(key, lambda: stopped)
    assert found.file is None and not key.file.exists()
