"""Durable jobs: nothing is lost, doubled or half-written, whenever the server ends; limits and retention."""

from __future__ import annotations

import json
import time

import pytest
from sqlalchemy import text

from syncflow.engine.serving.job_queue import JobQueue
from syncflow.engine.serving.keys import EVERYBODY
from syncflow.engine.serving.live import LiveJob
from syncflow.engine.serving.store import NewJob, VideoJob, new_id

from .helpers import FAST, finished, service_of


@pytest.mark.slow
def test_jobs_survive_the_end_of_the_server(start):
    client = start(in_flight=1, drain=0.0)
    requests = [FAST | {"seed": seed, "num_inference_steps": 8} for seed in (1, 2, 3)]
    ids = [client.post("/v1/videos", json=request).json()["id"] for request in requests]
    client = start()
    assert [finished(client, video_id)["status"] for video_id in ids] == ["completed"] * 3
    jobs = service_of(client).store.with_status("completed")
    assert [job.completions for job in jobs] == [1, 1, 1] and {job.attempts for job in jobs} == {1}


def test_the_time_left_follows_from_the_steps_of_the_job_itself():
    live = LiveJob(VideoJob(1, new_id(), "t", "in_progress", 0.0, {"num_inference_steps": 50}, None))
    live.steps, live.step = 100, 1
    live.first_step_at = time.monotonic() - 9
    assert live.seconds_left is None
    live.step = 10
    assert live.seconds_left == pytest.approx(90, rel=0.05)


def _left_in_progress(client, attempts=1):
    """A stored job as a killed server leaves it."""
    service = service_of(client)
    params = service.prepare(_params(), None, None)
    job, _ = service.store.add(NewJob(new_id(), params, None, ""), EVERYBODY, 10)
    for _ in range(attempts):
        service.store.start(job.id)
        service.store.requeue(job.id, counted=True)
    service.store.start(job.id)
    return job.id


def _params():
    from syncflow.engine.serving.schemas import VideoCreateParams

    return VideoCreateParams(**FAST)


def test_a_job_that_was_in_progress_is_made_again(start):
    video_id = _left_in_progress(start())
    assert finished(start(), video_id)["status"] == "completed"


def test_a_job_whose_files_were_written_is_not_made_again(start):
    client = start()
    service, video_id = service_of(client), _left_in_progress(client)
    clips = service.engine.generate(["a ball"], steps=1, seconds=1)
    service.folder.save_result(video_id, clips)
    written = service.folder.result_file(video_id, "1.mp4").read_bytes()
    client = start()
    assert client.get(f"/v1/videos/{video_id}").json()["status"] == "completed"
    assert client.get(f"/v1/videos/{video_id}/content").content == written
    assert service_of(client).store.get(video_id).attempts == 2


def test_a_job_that_ends_the_server_again_and_again_is_given_up(start):
    video_id = _left_in_progress(start(), attempts=3)
    video = start(attempts=4).get(f"/v1/videos/{video_id}").json()
    assert video["status"] == "failed" and "4 times" in video["error"]["message"]


def test_what_was_half_written_is_removed_at_the_start(start):
    folder = service_of(start()).folder
    for name in (".new-video_x", new_id()):
        (folder.results / name).mkdir()
        (folder.results / name / "1.mp4").write_bytes(b"half")
        (folder.uploads / name).mkdir()
    folder = service_of(start()).folder
    assert not list(folder.results.iterdir()) and not list(folder.uploads.iterdir())


def test_one_server_for_a_folder(start, engine):
    from syncflow.engine.serving.service import Service

    settings = service_of(start()).settings
    with pytest.raises(ValueError, match="another server uses the data folder"):
        Service(engine, settings)


def test_an_idempotency_key_creates_one_video(start):
    client = start()
    headers = {"Idempotency-Key": "order 66"}
    first, again = (client.post("/v1/videos", json=FAST, headers=headers).json()["id"] for _ in range(2))
    assert first == again and len(client.get("/v1/videos").json()["data"]) == 1
    other = client.post("/v1/videos", json=FAST | {"seed": 8}, headers=headers)
    assert (other.status_code, other.json()["error"]["param"]) == (422, "Idempotency-Key")
    client = start()
    assert client.post("/v1/videos", json=FAST, headers=headers).json()["id"] == first


def test_a_full_queue_asks_to_come_back(start):
    client = start(queue=2, in_flight=1)
    slow = FAST | {"num_inference_steps": 100}
    responses = [client.post("/v1/videos", json=slow) for _ in range(5)]
    refused = [response for response in responses if response.status_code == 429]
    assert refused and int(refused[0].headers["Retry-After"]) >= 1
    assert refused[0].json()["error"]["code"] == "queue_full"
    for response in responses:
        if response.status_code == 200:
            client.delete(f"/v1/videos/{response.json()['id']}")


@pytest.mark.slow
def test_results_expire_and_the_oldest_go_where_the_disk_is_full(start):
    client = start()
    service = service_of(client)
    ids = [client.post("/v1/videos", json=FAST | {"seed": seed}).json()["id"] for seed in (1, 2)]
    for video_id in ids:
        finished(client, video_id)
    expires = client.get(f"/v1/videos/{ids[0]}").json()["expires_at"]
    assert service.sweep(lambda: expires - 100.0) == 0
    assert service.sweep(lambda: expires + 100.0) == 2
    assert not list(service.folder.results.iterdir()) and not client.get("/v1/videos").json()["data"]


def test_no_prompt_is_in_the_log(start, caplog):
    caplog.set_level("DEBUG")
    client = start()
    secret = "the very secret prompt"
    finished(client, client.post("/v1/videos", json=FAST | {"prompt": secret}).json()["id"])
    client.post("/v1/videos", json=FAST | {"prompt": secret, "size": "1x1"})
    client.post("/v1/videos", json=FAST | {"prompt": secret + "\0"})
    from syncflow.engine.serving.logs import JsonFormatter

    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any(json.loads(line).get("job_id") for line in lines)
    assert not [line for line in lines if "secret" in line]


def test_sqlite_writes_ahead(start):
    with service_of(start()).store._database.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2


def test_the_queue_is_fair_among_tenants():
    queue = JobQueue()
    for number, (name, tenant) in enumerate([("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")]):
        queue.push(name, tenant, number)
    assert [queue.position(name) for name in ("a1", "a2", "a3", "b1")] == [0, 2, 3, 1]
    assert [queue.pop(), queue.pop(), queue.pop()] == ["a1", "b1", "a2"]
    queue.end("b")
    queue.push("b2", "b", 9)
    queue.push("a0", "a", 1)
    assert queue.in_flight == 2 and queue.pop() == "b2"
    assert queue.remove("a3") and not queue.remove("a3") and queue.position("a3") is None
    assert [queue.pop(), queue.pop()] == ["a0", None]
