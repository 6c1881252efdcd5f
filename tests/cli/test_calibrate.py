"""``syncflow bench calibrate`` and engines with the bundled model: really timed, kept, found again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from syncflow import Engine
from syncflow.cli import main
from syncflow.engine.runtime.selection import choose
from syncflow.engine.runtime.selection.calibration import TIE_RATIO
from syncflow.engine.runtime.selection.timing import StepTimes
from syncflow.kernels import native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.EXTENSION is None, reason="without the native part there is nothing to choose"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """What the first of the tests times, the others find."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def timed(cache, monkeypatch) -> None:
    monkeypatch.setenv("SYNCFLOW_CACHE", str(cache))
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")


@pytest.fixture
def run(monkeypatch, capsys):
    """``syncflow bench calibrate`` with arguments: what it printed."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["syncflow", "bench", "calibrate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return printed.out

    return call


def unexpected(*_: object) -> None:
    raise AssertionError("something was timed")


def test_the_bundled_model_is_timed_once(cache, run, monkeypatch):
    """On the first use of "auto"; then the engine, another one and the command say the same."""
    first = Engine.from_pretrained(device="cpu").describe()
    times = first["step_ms"]
    assert times.keys() == {"torch-plain", "torch", "native"} and all(ms > 0 for ms in times.values())
    assert min(times.values()) >= TIE_RATIO * times[first["runtime"]]
    assert first["why"] and first["timed"]["threads"] >= 1
    (file,) = (cache / "calibration").iterdir()
    assert first["timed"]["file"] == str(file)
    monkeypatch.setattr(choose, "time_denoisers", unexpected)
    assert Engine.from_pretrained(device="cpu").describe() == first
    told = json.loads(run("--json"))
    assert (told["runtime"], told["step_ms"]) == (first["runtime"], times)
    text = run()
    assert f"auto takes {first['runtime']}: {first['why']}" in text and str(file) in text
    assert all(f"{name:20} {ms:9.2f} ms a step" in text for name, ms in times.items())


def test_it_is_renewed(cache, run, monkeypatch):
    asked = []
    time_denoisers = choose.time_denoisers

    def planted(factories, workload):
        asked.append(tuple(factories))
        times, made = time_denoisers({"torch": factories["torch"]}, workload)
        return StepTimes({name: times.seconds["torch"] * (1 + i) for i, name in enumerate(factories)}), made

    monkeypatch.setattr(choose, "time_denoisers", planted)
    told = json.loads(run("--renew", "--json"))
    assert asked == [("torch-plain", "torch", "native")]
    assert told["runtime"] == "torch-plain" and list(told["step_ms"]) == list(asked[0])
    assert Engine.from_pretrained(device="cpu").describe()["runtime"] == "torch-plain" and len(asked) == 1


def test_switched_off_it_says_so(run, monkeypatch):
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "off")
    monkeypatch.setattr(choose, "time_denoisers", unexpected)
    assert "not timed: SYNCFLOW_CALIBRATION is off" in run("--renew")
