"""Runs in one process: what is made, skipped, made again; interruptions; shards; the order of work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from syncflow import Clip, Engine, Request, load_clip
from syncflow.engine.offline import Entry, Outputs, Shard, generate_entries
from syncflow.engine.offline.manifest import read_records
from syncflow.engine.offline.plan import make_plan
from syncflow.engine.presets import preset

from .conftest import SETTINGS, SMALL, entries


@pytest.mark.slow
def test_clips_are_those_of_generate(run, tmp_path):
    """Also with takes and latents; a failed row does not harm the others."""
    outputs = Outputs(tmp_path, latents=True)
    todo = [
        *entries(3),
        Entry("bad", "line 4", None, "steps is 0"),
        Entry("gone", "line 5", Request("gone", video=tmp_path / "gone.mp4")),
    ]
    records = {record.id: record for record in run(todo, outputs)}
    assert {name: record.status for name, record in records.items()} == {
        **dict.fromkeys(("clip-0", "clip-1", "clip-2"), "done"),
        **dict.fromkeys(("bad", "gone"), "failed"),
    }
    assert records["bad"].error == "steps is 0" and "does not exist" in records["gone"].error
    assert [file.name for file in records["clip-1"].files] == ["clip-1.mp4", "clip-1.latents.safetensors"]
    assert records["clip-1"].request == {"prompt": "ball 1", "seed": 1, **SMALL}
    plain = Engine.from_pretrained(runtime="torch", device="cpu").generate(todo[1].request)
    saved = load_clip(tmp_path / "clip-1.mp4")
    assert saved.provenance == json.loads(json.dumps(dict(plain.provenance)))
    np.testing.assert_array_equal(saved.latents, plain.latents)
    assert [*read_records(tmp_path)] == [*records.values()]
    assert {record.id for record in run(todo, outputs)} == {"bad", "gone"}


def test_the_files_of_takes(run, noise, tmp_path):
    (record,) = run([Entry("x", "", Request("a", takes=2))], Outputs(tmp_path))
    assert [file.name for file in record.files] == ["x-1.mp4", "x-2.mp4"]
    (record,) = run([Entry("y", "", Request("a", sound_only=True))], Outputs(tmp_path))
    assert [file.name for file in record.files] == ["y.wav"]


def test_what_is_not_intact_or_changed_is_made_again(run, noise, outputs):
    todo = entries(5)
    first = {record.id: record for record in run(todo, outputs)}
    assert run(todo, outputs) == []
    (outputs.folder / "clip-0.wav").unlink()
    damaged = outputs.folder / "clip-1.wav"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    todo[2] = replace(todo[2], request=replace(todo[2].request, seed=99))
    again = {record.id: record for record in run(todo, outputs)}
    assert again.keys() == {"clip-0", "clip-1", "clip-2"}
    assert [again[name].files == first[name].files for name in sorted(again)] == [True, True, False]
    assert run(todo, outputs) == []
    assert len(run(entries(5)[2:3], outputs)) == 1  # the former seed, whose file has been replaced


def test_known_media_count_by_their_content(tmp_path):
    outputs, file = Outputs(tmp_path), tmp_path / "a.wav"
    request = Request("a", video=file)
    missing = outputs.digest(request, "model")
    file.write_bytes(b"one")
    one = outputs.digest(request, "model")
    file.write_bytes(b"two")
    digests = {missing, one, outputs.digest(request, "model")}
    file.write_bytes(b"one")
    assert len(digests) == 3 and outputs.digest(request, "model") == one != outputs.digest(request, "other")
    (tmp_path / "b.wav").write_bytes(b"one")
    assert outputs.digest(Request("a", video=tmp_path / "b.wav"), "model") == one


def test_shards_share_the_rows(run, noise, outputs):
    todo = entries(5)
    shards = [Shard.parse(f"{i}/2") for i in (1, 2)]
    found = [{record.id for record in run(todo, outputs, shard=shard)} for shard in shards]
    assert found == [{"clip-0", "clip-2", "clip-4"}, {"clip-1", "clip-3"}]
    assert sorted(path.name for path in outputs.folder.glob("*.jsonl")) == [
        *("manifest-1-of-2.jsonl", "manifest-2-of-2.jsonl")
    ]
    assert run(todo, outputs) == []


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "-1/2", "1/x", "1/2/3"])
def test_shards_that_are_none(text):
    with pytest.raises(ValueError, match="it must be I/N with I from 1 to N"):
        Shard.parse(text)


def test_equal_shapes_are_next_to_each_other_and_the_largest_first(tmp_path):
    config = preset("syncflow-tiny")
    sizes = [{"seconds": 1.0}, {}, {"seconds": 0.25, "width": 128}, {"seconds": 1.0, "steps": 3}, {"width": 64}]
    todo = [Entry(str(i), "", Request("a", **size)) for i, size in enumerate(sizes)]
    plan = make_plan(todo, Outputs(tmp_path), config, "model")
    assert [item.entry.id for item in plan.items] == ["1", "4", "0", "3", "2"]
    assert plan.items[2].work / plan.items[3].work == config.sampling.steps / 3


def test_the_length_of_a_video_is_that_of_its_clip(tmp_path):
    clip = Clip(np.zeros((16, 32, 32, 3), np.uint8), np.zeros(48_000, np.float32), 16.0, 48_000)
    clip.save(tmp_path / "second.mp4")
    todo = [Entry(name, "", Request("", video=tmp_path / f"{name}.mp4")) for name in ("missing", "second")]
    plan = make_plan(todo, Outputs(tmp_path / "out"), preset("syncflow-tiny"), "model")
    ids, work = zip(*((item.entry.id, item.work) for item in plan.items), strict=True)
    assert ids == ("missing", "second") and work[0] == 2 * work[1]


def test_two_entries_of_one_name(tmp_path):
    todo = [Entry("a", "line 1", Request("a", takes=2)), Entry("A-2", "line 2", Request("b"))]
    with pytest.raises(ValueError, match=r"line 2 and line 1 would both be saved as A-2\.mp4; change an id"):
        make_plan(todo, Outputs(tmp_path), preset("syncflow-tiny"), "model")


def test_a_run_that_is_left_cancels_the_rest(noise, outputs):
    todo = [*entries(3), *(Entry(f"wait-{i}", "", Request("wait", **SMALL)) for i in range(40))]
    records = generate_entries(todo, outputs, SETTINGS)
    found = {next(records).id for _ in range(3)}
    records.close()
    assert found == {record.id for record in read_records(outputs.folder)} == {"clip-0", "clip-1", "clip-2"}


def test_a_full_disk_ends_the_run(noise, outputs, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        next(generate_entries(entries(3), outputs, SETTINGS))


def test_temporary_files_of_killed_runs_are_removed(tmp_path):
    outputs = Outputs(tmp_path)
    old, new = tmp_path / ".syncflow-old.mp4", tmp_path / ".syncflow-new.mp4"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    outputs.remove_stale()
    assert [*tmp_path.iterdir()] == [new]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_loses_no_clip_that_it_had_recorded(run, tmp_path):
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "clips"
    prompts.write_text("".join(json.dumps({"prompt": f"ball {i}", "seed": i, **SMALL}) + "\n" for i in range(20)))
    command = [*(sys.executable, "-m", "syncflow", "batch", str(prompts), "-o", str(folder), "--format", "wav")]
    command += ["--runtime", "torch", "--deterministic"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while len([*read_records(folder)]) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    recorded = {record.id: record for record in read_records(folder)}
    assert 3 <= len(recorded) < 20
    assert all(Outputs(folder).is_intact(record) for record in recorded.values())
    todo = [Entry(str(i + 1), "", Request(f"ball {i}", seed=i, **SMALL)) for i in range(20)]
    again = run(todo, Outputs(folder, "wav"))
    assert sorted([*recorded, *(record.id for record in again)], key=int) == [entry.id for entry in todo]
