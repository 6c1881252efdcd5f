"""``syncflow serve`` in a process of its own, and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_SECONDS = 300.0


class Server:
    """A server on a free port of the loopback, until the end of the block."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log = folder / "server.log"
        command = [sys.executable, "-m", "syncflow", "serve", "--data", str(folder / "data"), "--port", "0", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.url = self._address()
        self._wait_until_ready()

    def _address(self) -> str:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if '"message": "serving"' in line:
                    return f"http://127.0.0.1:{json.loads(line)['port']}"
            time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"the server did not start: {self.log.read_text()[-500:]}")

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.call("GET", "/ready")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.process.kill()
                    raise RuntimeError(f"the server did not start: {self.log.read_text()[-500:]}") from None
            time.sleep(0.1)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a response, or its text."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=600) as response:
            text = response.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def metric(self, name: str) -> float:
        """A value of ``/metrics``, by its name and labels."""
        lines = self.call("GET", "/metrics").splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    @property
    def resident(self) -> int:
        """Bytes of resident memory."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
