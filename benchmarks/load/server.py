"""``syncflow serve`` in a process of its own, and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

START_SECONDS = 300.0
T = TypeVar("T")


class Server:
    """A server of the data in a folder, on a free port of the loopback, until the end of the block.

    It answers when it is made; another one may follow it in the folder. Raises ``RuntimeError`` with the end of its log
    where it does not start.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.data, self.log = folder / "data", folder / "server.log"
        command = [sys.executable, "-m", "syncflow", "serve", "--data", str(self.data), "--port", "0", *options]
        with self.log.open("a") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self.url = self._wait_for(self._address)
            self._wait_for(self._answers)  # the port is known before the server listens
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_for(self, look: Callable[[], T | None]) -> T:
        end = time.monotonic() + START_SECONDS
        while (found := look()) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {self.log.read_text()[self._begin :][-2000:]}")
            time.sleep(0.05)
        return found

    def _address(self) -> str | None:
        for line in self.log.read_text()[self._begin :].splitlines():
            if '"message": "serving"' in line:
                return f"http://127.0.0.1:{json.loads(line)['port']}"
        return None

    def _answers(self) -> bool | None:
        try:
            self.call("GET", "/ready")
        except OSError:
            return None
        return True

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
