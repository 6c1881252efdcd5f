"""Helpers of the tests of the server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
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


class ServerProcess:
    """``syncflow serve`` on a free port of the loopback."""

    def __init__(self, data: Path, *options: str) -> None:
        self.log = data.with_suffix(".log")
        command = [sys.executable, "-m", "syncflow", "serve", "--data", str(data), "--port", "0"]
        with self.log.open("a") as log:
            begin = log.tell()
            self.process = subprocess.Popen([*command, "--runtime", "torch", *options], stdout=log, stderr=log)
        try:
            self.url = self._address(begin)
            self._wait_until_it_answers()
        except BaseException:
            self.process.kill()
            raise

    def _wait_until_it_answers(self) -> None:
        """The port is known before the server listens, which begins when stored jobs are recovered."""
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=60).close()
            except urllib.error.URLError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.05)
            else:
                return
        raise TimeoutError(self.log.read_text())

    def _address(self, begin: int) -> str:
        for _ in range(1200):
            for line in self.log.read_text()[begin:].splitlines():
                if '"message": "serving"' in line:
                    return f"http://127.0.0.1:{json.loads(line)['port']}"
            assert self.process.poll() is None, self.log.read_text()[begin:]
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text()[begin:])
