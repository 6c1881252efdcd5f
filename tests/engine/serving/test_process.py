"""The server in a process of its own: SIGTERM and SIGKILL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers import FAST


@pytest.mark.slow
def test_sigterm_drains_and_the_rest_is_made_after_the_next_start(serve):
    server = serve("--in-flight", "1", "--drain", "60")
    slow = FAST | {"num_inference_steps": 30}
    ids = [server.call("POST", "/v1/videos", slow | {"seed": seed})["id"] for seed in (1, 2)]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    assert "Traceback" not in server.log.read_text()
    server = serve()
    videos = [server.call("GET", f"/v1/videos/{video_id}") for video_id in ids]
    assert videos[0]["status"] == "completed"
    while videos[1]["status"] != "completed":
        assert videos[1]["status"] != "failed"
        videos[1] = server.call("GET", f"/v1/videos/{ids[1]}")


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_doubles_and_halves_no_job():
    command = [sys.executable, str(Path(__file__).with_name("chaos.py")), "--kills", "3", "--jobs", "12"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:] + finished.stdout
    found = json.loads(finished.stdout)
    assert (found["lost"], found["doubled"], found["half-written"]) == (0, 0, 0) and found["kills"] == 3
