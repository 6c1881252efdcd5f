"""``syncflow bench step``: every way computes the naive step before it is timed, and is counted."""

from __future__ import annotations

import json
import sys

import pytest

from syncflow.benchmarks import step
from syncflow.cli import main
from syncflow.engine.engine import Engine
from syncflow.engine.runtime.choice import without_exports
from syncflow.engine.runtime.delegate import Delegate


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(runtime="torch")


def test_a_way_is_held_against_the_naive_loop(engine):
    ways = step.runtimes(engine, ["torch", "auto"])
    automatic, _ = without_exports(engine.components.ddit)
    assert list(ways) == ["torch", f"auto ({automatic})"]
    naive, *own = step.contest(engine, ways, batch=2, rounds=1)
    assert (naive.name, naive.ratio, naive.rel_err) == ("naive, batch 2", 1.0, 0.0)
    assert all(row.rel_err < 1e-4 and row.ms_p50 > 0 for row in own)
    torch, _ = own
    assert torch.launches is not None and naive.launches is not None and torch.launches < naive.launches
    assert torch.flops is not None and naive.flops is not None and torch.flops < naive.flops
    assert (own[1].launches is None) is (automatic == "native")


class Off(Delegate):
    """The audio's velocity, a hundredth too large."""

    def video_pass(self, *arguments, **more):
        return self.model.video_pass(*arguments, **more)

    def audio_pass(self, *arguments, **more):
        velocity, heard = self.model.audio_pass(*arguments, **more)
        return 1.01 * velocity, heard


def test_a_wrong_way_shows(engine):
    _, row = step.contest(engine, {"off": Off(engine.components.ddit)}, batch=1, rounds=1)
    assert 5e-3 < row.rel_err < 2e-2
    assert row.launches is None


def test_in_turn():
    told = []
    seconds = step.alternate({"a": lambda: told.append("a"), "b": lambda: told.append("b")}, 3)
    assert told == ["a", "a", "b", "b"] * 5  # two rounds that do not count, and in each the first time
    assert len(seconds["a"]) == len(seconds["b"]) == 3


def test_json(engine, monkeypatch, capsys):
    automatic, _ = without_exports(engine.components.ddit)
    monkeypatch.setattr(
        sys, "argv", ["syncflow", "bench", "step", "--batch", "1", "--rounds", "1", "--runtimes", "auto", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    (takes,), rows = found["takes"], found["rows"]
    assert takes["eight_ms"] == pytest.approx(takes["ratio"] * takes["one_ms"], rel=0.01)
    assert takes["name"] == f"auto ({automatic})" and takes["ratio"] > 1
    assert [row["name"] for row in rows] == ["naive, batch 1", f"auto ({automatic}), batch 1"]
    assert rows[0].keys() == {"name", "ms_p50", "ratio", "rel_err", "launches", "flops", "bytes"}


@pytest.mark.parametrize(("name", "words"), [("tensorflow", "runtime"), ("onnxruntime", "syncflow export")])
def test_a_runtime_that_is_not_there(monkeypatch, capsys, name, words):
    monkeypatch.setattr(sys, "argv", ["syncflow", "bench", "step", "--runtimes", name])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
