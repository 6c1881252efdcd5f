"""A server of the bundled model in this process, and one in a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

import uvicorn
from fastapi.testclient import TestClient

from syncflow import Clip, Engine, Limits
from syncflow.benchmarks.load.server import Server
from syncflow.engine.serving.app import create_app
from syncflow.engine.serving.server import configuration
from syncflow.engine.serving.settings import ServerSettings
from syncflow.engine.serving.tracing import Tracing
from syncflow.training.evaluation.inspection import inspect_clip


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained(runtime="torch", device="cpu", deterministic=True, limits=Limits(batch=4)) as made:
        yield made


def open_client(engine: Engine, data: Path, tracing: Tracing | None = None, **settings: Any) -> TestClient:
    given = ServerSettings(**{"data": data, "drain": 20.0, "preview_every": 1, **settings})
    app = create_app(engine, given, inspect=lambda clip: inspect_clip(clip).to_dict(), tracing=tracing)
    return TestClient(app, raise_server_exceptions=False).__enter__()


@pytest.fixture(scope="module")
def client(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server that the tests of a file share."""
    made = open_client(engine, tmp_path_factory.mktemp("server") / "data")
    yield made
    made.__exit__(None, None, None)


@pytest.fixture
def start(engine: Engine, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Starts servers on one data folder, each after the end of the one before."""
    clients: list[TestClient] = []

    def begin(**settings: Any) -> TestClient:
        stop()
        clients.append(open_client(engine, tmp_path / "data", **settings))
        return clients[-1]

    def stop() -> None:
        while clients:
            clients.pop().__exit__(None, None, None)

    yield begin
    stop()


@contextmanager
def running(engine: Engine, data: Path, **settings: Any) -> Iterator[str]:
    """A server on a free port of the loopback, in a thread: its URL."""
    given = ServerSettings(**{"data": data, "drain": 20.0, "preview_every": 2, **settings})
    app = create_app(engine, given, inspect=lambda clip: inspect_clip(clip).to_dict())
    config = configuration(app, "127.0.0.1", 0)
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def live_url(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running server that the tests of a file share."""
    with running(engine, tmp_path_factory.mktemp("live") / "data") as url:
        yield url


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 1 s with a tone."""
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    for index in range(16):
        frames[index, 3 * index : 3 * index + 8, 20:40] = (200, 40, 40)
    tone = 0.3 * np.sin(np.arange(48_000) / 20).astype(np.float32)
    return Clip(frames, tone, 16, 48_000).save(tmp_path_factory.mktemp("media") / "clip.mp4")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of one data folder in processes of their own."""
    servers: list[Server] = []

    def begin(*options: str) -> Server:
        servers.append(Server(tmp_path / "server", "--runtime", "torch", *options))
        return servers[-1]

    yield begin
    for server in servers:
        server.process.kill()
        server.process.wait()
