"""The comparison with another revision: its statistics, its two processes, and what it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from syncflow.benchmarks import alternating, compare

ROOT = Path(__file__).parents[2]


class Stub:
    """A worker that takes these seconds in turn, and makes the same frames every time."""

    def __init__(self, seconds, digest="frames"):
        self.seconds, self.digest, self.asked = iter(seconds), digest, []

    def run(self, workload):
        self.asked.append(workload.name)
        return next(self.seconds), self.digest


def git_checkout():
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("this is not a git checkout")
    return found.stdout.strip()


def test_a_ratio_is_the_median_of_the_rounds_after_the_first():
    base, own = Stub([9.0, 2.0, 2.2, 1.8]), Stub([9.9, 1.0, 1.0, 1.0])
    (row,) = compare.compare(base, own, compare.workloads([1], clip=False), rounds=3)
    assert (row.workload, row.ratio, row.rounds, row.same_bits) == ("step, batch 1", 2.0, 3, True)
    assert row.low == 1.8 and row.high == 2.2 and row.base_ms == 2000 and row.own_ms == 1000


def test_every_workload_is_run_in_every_round():
    base, own = Stub([1.0] * 9), Stub([1.0] * 9, digest="others")
    rows = compare.compare(base, own, compare.workloads([1, 8], clip=True), rounds=2)
    assert base.asked == own.asked == ["step, batch 1", "step, batch 8", "clip"] * 3
    assert not any(row.same_bits for row in rows)


def test_only_a_certain_slow_down_is_a_fault():
    def row(low, high):
        return compare.Comparison("clip", 1.0, 1.0, (low + high) / 2, low, high, 20, same_bits=True)

    rows = [row(0.90, 0.94), row(0.90, 0.96), row(1.1, 1.2)]
    (fault,) = compare.faults(rows, 0.95)
    assert fault == "clip: 0.920 times as fast as the revision, at most 0.940; the least is 0.95"


def test_the_interval_holds_the_median_and_narrows_with_more_rounds():
    rng = np.random.default_rng(1)
    few, many = 1 + 0.1 * rng.standard_normal(8), 1 + 0.1 * rng.standard_normal(400)
    for values in (few, many):
        low, high = alternating.median_interval(values)
        assert low <= np.median(values) <= high
    assert np.ptp(alternating.median_interval(many)) < np.ptp(alternating.median_interval(few)) / 2
    assert alternating.median_interval(np.full(5, 1.25)) == (1.25, 1.25)


def test_an_unknown_revision_is_refused():
    git_checkout()
    with pytest.raises(ValueError, match="knows no revision 'no-such-revision'"):
        compare.revision("no-such-revision")


def test_a_folder_without_git_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="needs a git checkout"):
        compare.revision("HEAD")


def test_a_worker_that_ends_is_a_sentence(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text('import json, sys\nprint(json.dumps({"runtime": "none"}), flush=True)\nsys.stdin.readline()\n')
    monkeypatch.setattr(compare, "WORKER", worker)
    with (
        compare.Worker(tmp_path, model=None, runtime="auto") as started,
        pytest.raises(ValueError, match="ended with exit code 0"),
    ):
        started.run(compare.Workload("clip", "clip"))


@pytest.mark.slow
def test_a_planted_slow_down_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(compare, "STEPS", 3)
    commit = git_checkout()
    found = compare.compare_revision(commit, compare.workloads([1], clip=False), 2, runtime="torch", slow_down=3.0)
    (row,) = found["rows"]
    assert found["revision"] == commit and found["runtimes"] == {"base": "torch", "own": "torch"}
    assert row.ratio < 0.6 and row.rounds == 2
    assert commit[:12] in compare.table(found)
    assert list(tmp_path.iterdir()) == []
