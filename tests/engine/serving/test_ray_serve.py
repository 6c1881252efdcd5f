"""Replicas on Ray Serve: what they serve, and what becomes of a request whose client goes away."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from syncflow.engine.serving import ray_serve
from syncflow.engine.serving.ray_serve import ReplicaSettings, build

from ..local_ray import local_ray
from .helpers import service_of

pytestmark = pytest.mark.slow
SMALL = {"prompt": "a ball", "seconds": 0.5, "size": "32x32", "num_inference_steps": 2, "seed": 1}


def test_a_replica_serves_what_is_answered_at_once(engine, monkeypatch):
    """And a task that is cancelled, which is how Ray Serve says that a client went away, cancels its video."""
    monkeypatch.setattr(ray_serve.Engine, "from_pretrained", lambda *_, **__: engine)
    app = ray_serve.replica_app(ReplicaSettings(batch=2))
    with TestClient(app) as client:
        made = client.post("/v1/videos/sync", json=SMALL)
        assert (made.status_code, made.headers["content-type"]) == (200, "video/mp4")
        wrong = client.post("/v1/videos/sync", json={**SMALL, "num_inference_steps": 0})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "num_inference_steps")
        assert client.get("/v1/models").json()["data"][0]["id"] == "syncflow-tiny"
        for path in ("/", "/v1/videos", "/v1/videos/video_1", "/debug/engine"):
            assert client.get(path).json()["error"]["code"] == "not_found", path
        service = service_of(client)
        assert asyncio.run(_cancelled(app, service))
        _wait_until(lambda: service.runner.counts() == (0, 0) and not service.engine.batcher.stats().running)


async def _cancelled(app: Callable[..., object], service: object) -> bool:
    """Call the application and cancel its task while the video is made."""
    content = json.dumps({**SMALL, "num_inference_steps": 200, "seconds": 2}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/videos/sync", "raw_path": b"/v1/videos/sync"}
    scope |= {"headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": ""}
    messages = iter([{"type": "http.request", "body": content}])

    async def receive() -> dict[str, object]:
        try:
            return next(messages)
        except StopIteration:
            await asyncio.sleep(3600)
            raise

    async def send(_: object) -> None:
        pass

    task = asyncio.ensure_future(app(scope, receive, send))
    while service.runner.counts() != (0, 1):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


def test_settings_out_of_range():
    with pytest.raises(ValidationError, match="max_replicas"):
        ReplicaSettings(max_replicas=0)
    with pytest.raises(ValidationError, match="modle"):
        ReplicaSettings(modle="x")


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """A replica of the bundled model, or two, on a local Ray."""
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'syncflow[cluster]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ReplicaSettings(runtime="torch", batch=1, max_replicas=2, upscale_delay=0.5)
    with local_ray(cpus=2):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(build(settings), name="syncflow")
        yield "127.0.0.1", port
        serve.shutdown()


def _get(address: tuple[str, int], path: str) -> str:
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}{path}", timeout=60) as response:
        return response.read().decode()


def _in_flight(address: tuple[str, int]) -> float:
    lines = _get(address, "/metrics").splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith("syncflow_num_in_flight_reqs ")))


def _open(address: tuple[str, int], **settings: object) -> socket.socket:
    content = json.dumps(SMALL | settings).encode()
    lines = ["POST /v1/videos/sync HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""])
    client = socket.create_connection(address)
    client.sendall(head.encode() + content)
    return client


def _wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.1)


def test_replicas_follow_the_load_and_a_client_that_goes_away_frees_its_place(address):
    body = json.dumps(SMALL).encode()
    request = urllib.request.Request(
        f"http://{address[0]}:{address[1]}/v1/videos/sync", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.headers["content-type"] == "video/mp4" and b"ftyp" in response.read()[:16]
    client = _open(address, num_inference_steps=200, seconds=10)
    _wait_until(lambda: _in_flight(address) == 1)
    client.close()
    _wait_until(lambda: _in_flight(address) == 0)
    clients = [_open(address, num_inference_steps=200, seconds=10, seed=seed) for seed in range(4)]
    try:
        _wait_until(lambda: sum(_replicas().values()) == 2)
    finally:
        for client in clients:
            client.close()


def _replicas() -> dict[object, int]:
    from ray import serve

    return dict(serve.status().applications["syncflow"].deployments["syncflow"].replica_states)
