"""Who gets which entry, and what happens when workers die: on a stand-in of Ray, and on Ray itself."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow import Request, load_clip
from syncflow.engine.offline import ClusterOptions, EngineSettings, Entry, Outputs, Record, cluster, generate_entries
from syncflow.engine.offline.cluster import MAX_DEATHS, ClipActor, _Driver, _resources

from ..local_ray import local_ray
from .conftest import SETTINGS, entries
from .stand_in_ray import Ray

BATCH = EngineSettings(batch=2)


class Worker:
    """In the place of :class:`ClipActor`: an entry with "kill" in its prompt ends the process."""

    def __init__(self, *arguments: object) -> None:
        self.running = 0

    def load(self) -> str | None:
        return None

    def write(self, entry: Entry) -> Record:
        if entry.request is not None and "kill" in entry.request.prompt:
            raise ProcessLookupError
        if entry.request is not None and "raise" in entry.request.prompt:
            raise MemoryError("too little")
        return Record(entry.id, "done")


def driven(ray: Ray, prompts: list[str], workers: int, kind: type = Worker) -> list[Record]:
    """Records of prompts, in the order in which they end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cluster, "ClipActor", kind)
        driver = _Driver(ray, (BATCH, Outputs(Path()), "", ""), workers, {"num_cpus": 1})
        todo = [Entry(str(i), "", Request(prompt)) for i, prompt in enumerate(prompts)]
        return [*driver.run(todo)]


@given(
    prompts=st.lists(st.sampled_from(["a ball", "a ball", "a ball", "kill", "raise"]), max_size=24),
    workers=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_an_entry_that_kills_its_worker_harms_no_other(prompts, workers, seed):
    logging.disable(logging.WARNING)
    ray = Ray(seed)
    records = driven(ray, prompts, workers)
    logging.disable(logging.NOTSET)
    assert sorted(int(record.id) for record in records) == [*range(len(prompts))]
    for record in records:
        prompt = prompts[int(record.id)]
        assert (record.status == "done") == (prompt == "a ball")
        if prompt == "kill":
            assert record.error == f"its worker died {MAX_DEATHS} times (RayError: the process ended)"
        if prompt == "raise":
            assert record.error == "MemoryError: too little"
    assert len(ray.actors) <= workers + MAX_DEATHS * prompts.count("kill")
    assert ray.most <= workers * BATCH.in_flight
    assert ray.taken == {"num_cpus": 1, "max_concurrency": BATCH.in_flight + 1}


def test_workers_that_cannot_start(caplog):
    class Missing(Worker):
        started = 0

        def load(self) -> str | None:
            Missing.started += 1
            return "the host x does not see the folder"

    with pytest.raises(ValueError, match="no worker can start: the host x does not see the folder"):
        driven(Ray(), ["a"], 4, Missing)
    assert Missing.started == 6  # the four, and two in their place

    class Second(Missing):
        def load(self) -> str | None:
            Second.started += 1
            return super().load() if Second.started % 2 else None

    assert len(driven(Ray(), ["a"] * 9, 3, Second)) == 9
    assert "a worker could not start and is started again: the host x" in caplog.text


def test_what_an_actor_finds_wrong_with_its_host(tmp_path):
    outputs = Outputs(tmp_path / "clips")
    assert "does not see" in ClipActor(BATCH, outputs, "model", "token").load()
    outputs.folder.mkdir()
    (outputs.folder / "token").touch()
    found = ClipActor(EngineSettings(tmp_path / "nowhere"), outputs, "model", "token").load()
    assert f"there is no model folder {tmp_path / 'nowhere'}" in found


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 8}], ClusterOptions(), (1, {"num_cpus": 8})),
        ([{"CPU": 8}, {"CPU": 4}], ClusterOptions(), (2, {"num_cpus": 4})),
        ([{"CPU": 8}], ClusterOptions(3), (3, {"num_cpus": 2})),
        ([{"CPU": 2}], ClusterOptions(4), (4, {"num_cpus": 1})),
        ([{"CPU": 8}], ClusterOptions(2, cpus=3), (2, {"num_cpus": 3})),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], ClusterOptions(), (3, {"num_gpus": 1, "num_cpus": 1})),
        ([{"CPU": 8, "GPU": 8}], ClusterOptions(2, cpus=4), (2, {"num_gpus": 1, "num_cpus": 4})),
        ([{"CPU": 8, "GPU": 8}], ClusterOptions(), (8, {"num_gpus": 1, "num_cpus": 1})),
    ],
)
def test_what_workers_take_of_a_cluster(nodes, options, expected):
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert _resources(ray, options, 100) == expected
    assert _resources(ray, options, 1) == (1, expected[1])
    ray = SimpleNamespace(nodes=lambda: [])
    assert _resources(ray, ClusterOptions(), 5) == (1, {"num_cpus": 1})


def test_options_out_of_range():
    with pytest.raises(ValueError, match="workers is 0; it must be a whole number from 1"):
        ClusterOptions(0)


@pytest.mark.slow
def test_two_workers_make_what_one_process_makes_and_one_of_them_is_killed(run, tmp_path):
    """Latents and sounds bit by bit: every request is stepped alone."""
    psutil = pytest.importorskip("psutil", reason="psutil is not installed")
    here, there = Outputs(tmp_path / "here", latents=True), Outputs(tmp_path / "there", latents=True)
    todo = entries(20)
    run(todo, here)
    found: dict[str, Record] = {}
    with local_ray(cpus=2):
        for record in generate_entries(todo, there, SETTINGS, cluster=ClusterOptions(workers=2)):
            assert record.id not in found and record.status == "done"
            found[record.id] = record
            if len(found) == 4:
                children = psutil.Process().children(recursive=True)
                actors = [child for child in children if any("ClipActor" in part for part in child.cmdline())]
                assert len(actors) == 2
                actors[0].kill()
    assert found.keys() == {entry.id for entry in todo}
    assert all(there.is_intact(record) for record in found.values())
    for entry in todo:
        one, other = (load_clip(outputs.folder / f"{entry.id}.mp4") for outputs in (here, there))
        assert one.provenance == other.provenance
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_array_equal(one.waveform, other.waveform)
