"""The videos API: create, follow, list, download, delete; what is refused, and with which field."""

from __future__ import annotations

import base64
import io
import json
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from syncflow import Engine, Limits
from syncflow.engine.media import load_audio, load_clip
from syncflow.engine.settings import make_request

from .conftest import open_client
from .helpers import FAST, finished, service_of


@pytest.mark.slow
def test_a_video_is_made_of_a_sentence(client, engine, tmp_path):
    created = client.post("/v1/videos", json=FAST)
    assert created.status_code == 200
    video = created.json()
    assert (video["object"], video["status"], video["task"]) == ("video", "queued", "text-to-audio-video")
    assert (video["seconds"], video["size"], video["num_frames"], video["seed"]) == ("1", "64x64", 16, 7)
    done = finished(client, video["id"])
    assert done["status"] == "completed" and done["progress"] == 100 and done["error"] is None
    content = client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    expected = engine.generate(make_request(FAST["prompt"], {"steps": 2, "seconds": 1, "seed": 7}))
    assert content.content == expected.save(tmp_path / "expected.mp4").read_bytes()


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes_alone_in_a_batch_and_after_a_restart(start):
    def content(client, video_id):
        assert finished(client, video_id)["status"] == "completed"
        return client.get(f"/v1/videos/{video_id}/content").content

    client = start()
    alone = content(client, client.post("/v1/videos", json=FAST).json()["id"])
    together = [client.post("/v1/videos", json=FAST | {"seed": seed}).json()["id"] for seed in (1, 7, 2)]
    assert content(client, together[1]) == alone != content(client, together[0])
    client = start()
    assert content(client, client.post("/v1/videos", json=FAST).json()["id"]) == alone


@pytest.mark.slow
def test_a_server_under_a_budget_of_memory_makes_the_same_video(client, tmp_path):
    with Engine.from_pretrained(memory="60MB", device="cpu", deterministic=True) as engine:
        under = open_client(engine, tmp_path / "data")
        contents = []
        for server in (client, under):
            video_id = server.post("/v1/videos", json=FAST).json()["id"]
            assert finished(server, video_id)["status"] == "completed"
            contents.append(server.get(f"/v1/videos/{video_id}/content").content)
        under.__exit__(None, None, None)
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_without_deterministic_the_others_of_a_batch_change_no_more_than_rounding(tmp_path):
    """Frames by 60 dB of peak signal-to-noise ratio, sounds by a thousandth of full scale."""
    with Engine.from_pretrained(runtime="torch", device="cpu", limits=Limits(batch=4)) as engine:
        client = open_client(engine, tmp_path / "data")
        clips = []
        for seeds in ((7,), (1, 7, 2, 3)):
            ids = [client.post("/v1/videos", json=FAST | {"seed": seed}).json()["id"] for seed in seeds]
            assert {finished(client, video_id)["status"] for video_id in ids} == {"completed"}
            path = tmp_path / f"{len(seeds)}.mp4"
            path.write_bytes(client.get(f"/v1/videos/{ids[seeds.index(7)]}/content").content)
            sound = client.get(f"/v1/videos/{ids[seeds.index(7)]}/content?variant=audio").content
            path.with_suffix(".wav").write_bytes(sound)
            clips.append((load_clip(path).frames.astype(float), load_audio(path.with_suffix(".wav"))))
        client.__exit__(None, None, None)
        assert engine.batcher.stats().steps < engine.batcher.stats().request_steps  # some shared a step
    (frames, sound), (other_frames, other_sound) = clips
    assert ((frames - other_frames) ** 2).mean() <= 255**2 / 10**6
    assert np.abs(sound - other_sound).max() <= 1e-3


@pytest.mark.slow
def test_parameters_that_are_returned_reproduce_the_video(client):
    first = client.post("/v1/videos", json={"prompt": "a ball", "num_inference_steps": 2, "takes": 2}).json()
    again = client.post("/v1/videos", json=first["params"]).json()
    contents = []
    for video in (first, again):
        assert len(finished(client, video["id"])["takes"]) == 2
        contents.append([client.get(f"/v1/videos/{video['id']}/content?take={take}").content for take in (1, 2)])
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[0][1]


def test_every_kind_of_file(client, tmp_path):
    video_id = client.post("/v1/videos", json=FAST).json()["id"]
    assert client.get(f"/v1/videos/{video_id}/content").status_code in (200, 409)
    finished(client, video_id)
    files = {
        variant: client.get(f"/v1/videos/{video_id}/content", params={"variant": variant})
        for variant in ("video", "audio", "frames", "thumbnail", "spritesheet")
    }
    assert {file.status_code for file in files.values()} == {200}
    with wave.open(io.BytesIO(files["audio"].content)) as sound:
        assert (sound.getnframes(), sound.getframerate()) == (48_000, 48_000)
    assert len(zipfile.ZipFile(io.BytesIO(files["frames"].content)).namelist()) == 16
    assert files["thumbnail"].content[8:12] == b"WEBP" and files["spritesheet"].content[:2] == b"\xff\xd8"
    whole = files["video"].content
    part = client.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    beyond = client.get(f"/v1/videos/{video_id}/content", headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416
    inspection = client.get(f"/v1/videos/{video_id}/inspection").json()
    assert len(inspection["waveform"]) == 512 and len(inspection["inspection"]["motion"]) == 15
    assert client.get(f"/v1/videos/{video_id}/content?take=2").json()["error"]["param"] == "take"


@pytest.mark.slow
@pytest.mark.parametrize("form", [True, False], ids=["multipart", "data URL"])
def test_a_soundtrack_for_a_video(client, clip_file, tmp_path, form):
    content = clip_file.read_bytes()
    if form:
        values = {"prompt": "", "num_inference_steps": "2", "seed": "3"}
        created = client.post("/v1/videos", data=values, files={"input_reference": ("../../x.mp4", content)})
    else:
        url = "data:video/mp4;base64," + base64.b64encode(content).decode()
        values = {"prompt": "", "num_inference_steps": 2, "seed": 3, "input_reference": {"video_url": url}}
        created = client.post("/v1/videos", json=values)
    assert created.status_code == 200, created.text
    video = created.json()
    assert (video["task"], video["seconds"]) == ("video-to-audio", "1")
    assert finished(client, video["id"])["status"] == "completed"
    (tmp_path / "made.mp4").write_bytes(client.get(f"/v1/videos/{video['id']}/content").content)
    made, given = load_clip(tmp_path / "made.mp4"), load_clip(clip_file)
    assert abs(made.frames.astype(int) - given.frames.astype(int)).mean() < 4
    assert not list(service_of(client).folder.uploads.iterdir())


@pytest.mark.slow
def test_a_picture_and_a_continuation(client, clip_file, tmp_path):
    video_id = client.post("/v1/videos", json=FAST).json()["id"]
    finished(client, video_id)
    picture = client.get(f"/v1/videos/{video_id}/content?variant=thumbnail").content
    for content, more, task in (
        (picture, {}, "image-to-audio-video"),
        (clip_file.read_bytes(), {"task": "continuation", "seconds": "1.5"}, "continuation"),
        (clip_file.read_bytes(), {"strength": "0.5"}, "variation"),
    ):
        values = {"prompt": "a ball", "num_inference_steps": "2", **more}
        video = client.post("/v1/videos", data=values, files={"input_reference": content}).json()
        assert video["task"] == task
        assert finished(client, video["id"])["status"] == "completed"


def test_an_unknown_field_is_named(client):
    error = client.post("/v1/videos", json=FAST | {"steps": 3}).json()["error"]
    assert error["message"] == "a request has no field steps; /openapi.json lists those that it has"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x\0y"}, "prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 500}, "num_inference_steps"),
        ({"guidance_scale": 1e9}, "guidance_scale"),
        ({"seconds": 30}, "seconds"),
        ({"seconds": 1e-9}, "seconds"),
        ({"size": "30x64"}, "width"),
        ({"size": "64"}, "size"),
        ({"size": "64x64", "width": 64}, "size"),
        ({"width": 4096, "height": 4096}, "size"),
        ({"fps": 30}, "fps"),
        ({"num_frames": 5}, "num_frames"),
        ({"takes": 9}, "takes"),
        ({"model": "sora-2"}, "model"),
        ({"task": "text-to-speech"}, "task"),
        ({"task": "video-to-audio"}, "input_reference"),
        ({"strength": 0.5}, "strength"),
        ({"negative_prompt": " "}, "negative_prompt"),
        ({"stepz": 3}, "stepz"),
        ({"input_reference": {"image_url": "http://127.0.0.1/secret.png"}}, "input_reference"),
        ({"input_reference": {"image_url": "file:///etc/passwd"}}, "input_reference"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(client, change, field):
    before = service_of(client).store.ids()
    refused = client.post("/v1/videos", json=FAST | change)
    assert refused.status_code == 422, refused.text
    error = refused.json()["error"]
    assert error["param"] == field and error["message"] and error["type"] == "invalid_request_error"
    assert service_of(client).store.ids() == before


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b'{"prompt": "x", "seed": NaN}', "application/json", 422),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"prompt=x", "text/plain", 415),
        (b"--x\r\n", "multipart/form-data", 422),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n", "multipart/form-data; boundary=x", 422),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 422),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_body_is_refused(client, content, kind, status):
    assert client.post("/v1/videos", content=content, headers={"Content-Type": kind}).status_code == status


@pytest.mark.slow
def test_pages(start):
    client = start()
    ids = [client.post("/v1/videos", json=FAST | {"seed": seed}).json()["id"] for seed in range(5)]
    page = client.get("/v1/videos", params={"limit": 2, "order": "asc"}).json()
    assert [video["id"] for video in page["data"]] == ids[:2] and page["has_more"]
    page = client.get("/v1/videos", params={"limit": 3, "order": "asc", "after": page["last_id"]}).json()
    assert [video["id"] for video in page["data"]] == ids[2:] and not page["has_more"]
    newest = client.get("/v1/videos", params={"limit": 1}).json()
    assert newest["data"][0]["id"] == ids[-1]
    assert client.get("/v1/videos", params={"after": "video_" + "0" * 32}).json()["error"]["param"] == "after"


def test_events_end_with_the_video(client):
    video_id = client.post("/v1/videos", json=FAST | {"num_inference_steps": 6}).json()["id"]
    with client.stream("GET", f"/v1/videos/{video_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    found = [
        (block.partition("\n")[0].removeprefix("event: "), json.loads(block.partition("data: ")[2]))
        for block in text.split("\n\n")
        if block.startswith("event")
    ]
    assert found[-1][0] == "completed" and found[-1][1]["id"] == video_id
    assert {"progress", "preview"} <= {name for name, _ in found}
    preview = next(values for name, values in found if name == "preview")
    assert base64.b64decode(preview["image"].partition(",")[2])[1:4] == b"PNG" and preview["frames"] == 4
    steps = [values["step"] for name, values in found if name == "progress"]
    assert steps == sorted(steps)
    with client.stream("GET", f"/v1/videos/{video_id}/events") as response:
        assert response.read().decode().startswith("event: completed")


def test_deleting_cancels_within_a_step(start):
    client = start()
    service = service_of(client)
    video_id = client.post("/v1/videos", json=FAST | {"num_inference_steps": 200, "seconds": 2}).json()["id"]
    while (live := service.runner.live(video_id)) is not None and live.step < 2:
        pass
    assert client.delete(f"/v1/videos/{video_id}").json() == {
        "id": video_id,
        "object": "video.deleted",
        "deleted": True,
    }
    seen = live.step
    while service.runner.counts() != (0, 0):
        pass
    assert live.step <= seen + 2
    assert client.get(f"/v1/videos/{video_id}").status_code == 404
    assert client.delete(f"/v1/videos/{video_id}").status_code == 404
    assert not list(service.folder.results.iterdir())


def test_sync_returns_the_file(client):
    response = client.post("/v1/videos/sync", json=FAST)
    assert response.status_code == 200 and response.content[4:8] == b"ftyp"


def test_a_failed_video_says_why(client, monkeypatch):
    def fail(*_):
        raise ArithmeticError("secret prompt")

    monkeypatch.setattr(service_of(client).engine.backend, "encode", fail)
    video = finished(client, client.post("/v1/videos", json=FAST).json()["id"])
    assert video["status"] == "failed" and video["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(video["error"])
    assert client.get(f"/v1/videos/{video['id']}/content").json()["error"]["code"] == "video_failed"


def test_what_the_server_says_of_itself(start):
    client = start()
    model = client.get("/v1/models").json()["data"][0]
    assert model["id"] == "syncflow-tiny" and "video-to-audio" in model["tasks"]
    assert "audio-to-video" not in model["tasks"]
    assert client.get("/health").json() == {"status": "ok"} and client.get("/ready").status_code == 200
    finished(client, client.post("/v1/videos", json=FAST).json()["id"])
    metrics = client.get("/metrics").text
    assert 'syncflow_num_requests_total{status="completed"} 1.0' in metrics
    assert "syncflow_num_running_reqs 0.0" in metrics
    state = client.get("/debug/engine").json()
    assert state["queue"]["stored"] == {"completed": 1} and state["engine"]["model"] == "syncflow-tiny"


@pytest.mark.slow
def test_previews_are_close_to_the_frames(engine):
    import torch

    from syncflow.engine.serving.previews import LatentProjection

    projection = LatentProjection.fit(engine.components.video, engine.config.sequence, engine.device)
    clip = engine.generate("a large red rubber ball bounces on a wooden floor", steps=8, seed=7)
    shown = projection.project(torch.from_numpy(clip.latents)).astype(float)
    pooled = clip.frames[3::4].reshape(8, 8, 8, 8, 8, 3).mean((2, 4))
    assert shown.shape == pooled.shape == (8, 8, 8, 3)
    assert np.abs(shown - pooled).mean() < 20


def test_the_folder_of_the_page_is_the_only_one_that_is_served(client):
    for path in ("/../pyproject.toml", "/%2e%2e/%2e%2e/pyproject.toml", "/..%2f..%2fapp.py", "//etc/passwd"):
        assert client.get(path).status_code == 404
    for video_id in ("video_%00", "video_" + "g" * 32, "server", "x" * 129):
        for tail in ("", "/content", "/events", "/inspection"):
            assert client.get(f"/v1/videos/{video_id}{tail}").status_code in (404, 422)
    assert Path(service_of(client).settings.data).is_dir()
