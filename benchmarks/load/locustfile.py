"""Clients of ``syncflow serve`` for locust: videos of several tasks from beginning to end, and bad requests.

A status of 429 with ``Retry-After`` is back-pressure, and the client comes again; every status of 500 and more is a
failure, and so is a bad request that is not refused. ``SYNCFLOW_LOAD_MEDIA`` is the folder of ``clip.mp4`` and
``picture.png``.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from locust import HttpUser, between, task

SMALL = {"prompt": "a red ball bounces", "seconds": 0.5, "size": "32x32", "num_inference_steps": 2}
BAD: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("no steps", {"json": {**SMALL, "num_inference_steps": 0}}, 422),
    ("unknown field", {"json": {**SMALL, "stepps": 3}}, 422),
    ("a large picture", {"json": {**SMALL, "size": "99999x99999"}}, 422),
    ("no JSON", {"data": b"{", "headers": {"Content-Type": "application/json"}}, 422),
    ("another type", {"data": b"x", "headers": {"Content-Type": "text/plain"}}, 415),
    ("no media", {"data": {"prompt": ""}, "files": {"input_reference": ("x.mp4", b"no film")}}, 422),
)
LONGEST_WAIT = 5.0  # seconds between two attempts, whatever Retry-After says


class Client(HttpUser):
    """One client: it waits for each of its videos."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Read the media once."""
        folder = Path(os.environ["SYNCFLOW_LOAD_MEDIA"])
        self.clip, self.picture = (folder / "clip.mp4").read_bytes(), (folder / "picture.png").read_bytes()

    @task(6)
    def text(self) -> None:
        """A video from a sentence, downloaded."""
        self._follow("text", json={**SMALL, "seed": random.randrange(1000)})

    @task(2)
    def soundtrack(self) -> None:
        """The sound of an uploaded video."""
        fields = {"prompt": "", "num_inference_steps": "2"}
        self._follow("soundtrack", data=fields, files={"input_reference": ("clip.mp4", self.clip)})

    @task(2)
    def picture_first(self) -> None:
        """A video that begins with a picture."""
        fields = {name: str(value) for name, value in SMALL.items()}
        self._follow("picture", data=fields, files={"input_reference": ("picture.png", self.picture)})

    @task(1)
    def cancelled(self) -> None:
        """A long video that is deleted while it waits or runs."""
        video = self._create("cancelled", json={**SMALL, "num_inference_steps": 100})
        if video is not None:
            time.sleep(random.random())
            self._expect("DELETE", f"/v1/videos/{video}", "delete", 200)

    @task(3)
    def bad(self) -> None:
        """A request that is refused."""
        name, body, status = random.choice(BAD)
        self._expect("POST", "/v1/videos", f"bad: {name}", status, **body)
        self._expect("GET", "/v1/videos/video_0", "bad: unknown id", 404)
        self._expect("GET", "/v1/videos?limit=0", "bad: limit", 422)

    def _follow(self, name: str, **body: Any) -> None:
        video = self._create(name, **body)
        while video is not None:
            time.sleep(0.5)
            content = self._expect("GET", f"/v1/videos/{video}", "poll", 200)
            status = json.loads(content)["status"] if content else "failed"
            if status == "completed":
                self._expect("GET", f"/v1/videos/{video}/content", "download", 200)
            if status in ("completed", "failed"):
                return

    def _create(self, name: str, **body: Any) -> str | None:
        content = self._expect("POST", "/v1/videos", f"create: {name}", 200, **body)
        return json.loads(content)["id"] if content else None

    def _expect(self, method: str, path: str, name: str, status: int, **body: Any) -> bytes | None:
        """The content of a response of this status; None for back-pressure, after the wait, and for a failure."""
        with self.client.request(method, path, name=name, catch_response=True, **body) as response:
            wait = response.headers.get("Retry-After") if response.headers else None
            if response.status_code == status:
                response.success()
                return response.content
            if response.status_code == 429 and wait:
                response.success()
                self.environment.events.request.fire(
                    request_type="-", name="429", response_time=0, response_length=0, exception=None, context={}
                )
                time.sleep(min(float(wait), LONGEST_WAIT))
                return None
            response.failure(f"status {response.status_code}, expected {status}")
            return None
