"""The number of threads: affinity, container quotas and OMP_NUM_THREADS; spinning threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from syncflow.engine.runtime import threads


@pytest.fixture
def container(tmp_path):
    """Control groups of a container, and a function that says how many processors they leave."""
    cgroups, membership = tmp_path / "cgroup", tmp_path / "membership"
    cgroups.mkdir()

    def available(lines, **files):
        membership.write_text(lines)
        for name, text in files.items():
            path = cgroups / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs_", "cpu.cfs_")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return threads.available_cpus(cgroups, membership)

    return available


@pytest.fixture(autouse=True)
def many_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


def test_without_a_quota_it_is_the_affinity(container):
    assert container("0::/\n", cpu_max="max 100000\n") == 64


def test_a_quota_is_rounded_up(container):
    assert container("0::/\n", cpu_max="150000 100000\n") == 2


def test_a_quota_below_one_processor_leaves_one(container):
    assert container("0::/\n", cpu_max="20000 100000\n") == 1


def test_the_smallest_quota_of_all_groups_around_counts(container):
    files = {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "300000 100000\n", "cpu_max": "800000 100000\n"}
    assert container("0::/a/b\n", **files) == 3


def test_the_older_control_groups(container):
    files = {"cpu__a__cfs_quota_us": "400000\n", "cpu__a__cfs_period_us": "100000\n"}
    assert container("3:cpu,cpuacct:/a\n2:memory:/a\n", **files) == 4
    files["cpu__a__cfs_quota_us"] = "-1\n"
    assert container("3:cpu,cpuacct:/a\n", **files) == 64


def test_damaged_files_are_no_quota(container, tmp_path):
    assert container("nonsense\n", cpu_max="words\n") == 64
    assert threads.available_cpus(tmp_path / "nowhere", tmp_path / "nothing") == 64


def test_affinity_is_respected(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert threads.available_cpus(tmp_path, tmp_path / "nothing") == 2


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "expected"), [(None, 1), ("2", 2)])
def test_an_engine_computes_with_what_is_available(variable, expected):
    code = """
import os, torch
os.sched_getaffinity = lambda _: {0}
torch.set_num_threads(2)
from syncflow.engine.runtime.threads import limit_threads
print(limit_threads(), torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if variable is None else {"OMP_NUM_THREADS": variable}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.split() == [str(expected)] * 2


WAITING = "import syncflow, os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.slow
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise():
    def found(code, **variables):
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment | variables)
        return run.stdout.strip()

    assert found(WAITING) == "3000"
    assert found(WAITING, GOMP_SPINCOUNT="7") == "7"
    assert found(WAITING, OMP_WAIT_POLICY="ACTIVE") == "None"
    assert found("import torch, " + WAITING.removeprefix("import ")) == "None"
