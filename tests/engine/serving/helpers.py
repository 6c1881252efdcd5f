"""Helpers of the tests of the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncflow.engine.serving.service import Service

FAST = {"prompt": "a red rubber ball bounces", "num_inference_steps": 2, "seconds": 1, "seed": 7}


def service_of(client: Any) -> Service:
    return client.app.state.service


def finished(client: Any, video_id: str, seconds: float = 60, **options: object) -> dict:
    """The video, once it has ended."""
    end = time.monotonic() + seconds
    while True:
        video = client.get(f"/v1/videos/{video_id}", **options).json()
        if video["status"] in ("completed", "failed"):
            return video
        assert time.monotonic() < end, video
        time.sleep(0.02)
