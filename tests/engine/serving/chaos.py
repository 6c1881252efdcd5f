"""Kills a loaded server at random moments, and counts the jobs that are lost, doubled or half-written afterwards.

    python tests/engine/serving/chaos.py --kills 50

Clients on the loopback create videos with idempotency keys, send a request again until it is confirmed, and delete
some. The server gets SIGKILL at random moments, also while it starts. In the end it may finish; then every confirmed
job must be completed once, with files that match their checksums, and nothing else may be on disk. Servers are forked
from this process, which has loaded the model, so that a start takes little time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, select

from syncflow import Engine, Request
from syncflow.engine.serving.app import create_app
from syncflow.engine.serving.server import serve as run_server
from syncflow.engine.serving.settings import ServerSettings
from syncflow.engine.serving.tables import jobs

FORK = multiprocessing.get_context("fork")
REQUEST: dict[str, Any] = {"prompt": "a red rubber ball bounces", "num_inference_steps": 2, "seconds": 0.5}


@dataclass
class Load:
    """Clients and what was confirmed to them."""

    url: str
    most: int
    random: random.Random
    created: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, client: int) -> None:
        """One client: creates videos, one after the other."""
        number = 0
        while not self.ended.is_set() and len(self.created) < self.most:
            key = f"client {client} request {number}"
            video = self.ask("POST", "/v1/videos", {**REQUEST, "seed": number}, {"Idempotency-Key": key})
            if video is None:
                return
            with self.lock:
                self.created[key] = video["id"]
                deletes = self.random.random() < 0.1
            if deletes and self.ask("DELETE", f"/v1/videos/{video['id']}") is not None:
                with self.lock:
                    self.deleted.add(video["id"])
            number += 1
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Any:
        """Send a request again and again until the server answers; None where the run has ended."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, content, {**headers, "Content-Type": "application/json"}, method=method
        )
        while not self.ended.is_set():
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if method == "DELETE" and error.code == 404:
                    return {}  # deleted by the attempt before, whose answer was lost
                assert error.code in (429, 503), (error.code, error.read())
                time.sleep(0.5)
            except (OSError, ValueError):  # the server is gone, perhaps in the middle of a response
                time.sleep(0.1)
        return None


def serve(engine: Engine, data: Path, port: int) -> None:
    """The server, in a forked process."""
    log = os.open(data.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 2)
    settings = ServerSettings(data, attempts=1000, drain=120.0)
    run_server(create_app(engine, settings), "127.0.0.1", port)


def start(engine: Engine, data: Path, port: int) -> ForkProcess:
    process = FORK.Process(target=serve, args=(engine, data, port))
    process.start()
    return process


def wait_ready(url: str, process: ForkProcess) -> None:
    for _ in range(1200):
        assert process.is_alive(), "the server does not start"
        try:
            with urllib.request.urlopen(url + "/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError("the server is not ready")


def check(data: Path, load: Load) -> dict[str, int]:
    """What is wrong in the database and on disk, when the server has finished everything."""
    with create_engine(f"sqlite:///{data / 'jobs.sqlite3'}").connect() as connection:
        rows = {row.id: row for row in connection.execute(select(jobs))}
    confirmed = {video_id for video_id in load.created.values() if video_id not in load.deleted}
    keys = [row.idempotency_key for row in rows.values()]
    half = 0
    for video_id, row in rows.items():
        for number, take in enumerate((row.result or {"takes": []})["takes"], 1):
            for suffix, file in take["files"].items():
                path = data / "results" / video_id / f"{number}.{suffix}"
                whole = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
                half += not whole
    on_disk = {path.name for folder in ("results", "uploads") for path in (data / folder).iterdir()}
    return {
        "lost": sum(video_id not in rows or rows[video_id].status != "completed" for video_id in confirmed),
        "doubled": len(keys) - len(set(keys)) + sum(row.completions > 1 for row in rows.values()),
        "half-written": half + len(on_disk - rows.keys()),
        "back after deletion": len(load.deleted & rows.keys()),
    }


def run(kills: int, most: int, seed: int, data: Path) -> dict[str, int]:
    moments = random.Random(seed)
    engine = Engine.from_pretrained(device="cpu", runtime="torch", deterministic=True)
    first = Request(REQUEST["prompt"], steps=REQUEST["num_inference_steps"], seconds=REQUEST["seconds"])
    for request in (first, Request(first.prompt)):  # estimates that every server would compute anew
        engine.backend.memory(engine.pipeline.prepare(request))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    load = Load(f"http://127.0.0.1:{port}", most, random.Random(seed + 1))
    clients = [threading.Thread(target=load.run, args=(number,), daemon=True) for number in range(4)]
    process = start(engine, data, port)
    for client in clients:
        client.start()
    try:
        for kill in range(kills):
            begin = time.monotonic()
            if moments.random() < 0.8:
                wait_ready(load.url, process)
                time.sleep(moments.uniform(0, 4))
            else:
                time.sleep(moments.uniform(0, 2))
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            took = time.monotonic() - begin
            print(f"kill {kill + 1} after {took:.1f} s, {len(load.created)} confirmed", file=sys.stderr, flush=True)
            process = start(engine, data, port)
        wait_ready(load.url, process)
        load.most = 0
        for client in clients:
            client.join(60)
        stored = {"queued": 1}
        while stored.keys() & {"queued", "in_progress"}:
            time.sleep(0.5)
            stored = load.ask("GET", "/debug/engine")["queue"]["stored"]
    finally:
        load.ended.set()
        process.terminate()
        process.join(60)
    return {"kills": kills, "jobs": len(load.created), "deleted": len(load.deleted), **check(data, load)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=400, help="at most this many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="syncflow-chaos-") as folder:
        found = run(options.kills, options.jobs, options.seed, Path(folder) / "data")
    print(json.dumps(found))
    return int(any(found[name] for name in ("lost", "doubled", "half-written", "back after deletion")))


if __name__ == "__main__":
    sys.exit(main())
