"""The example of an HTTP service in C++, which the CTest ``installed_examples`` builds against an installation."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest

from syncflow.engine.media import load_clip

from .parity import ROOT, built

BUNDLED = ROOT / "engine" / "pretrained" / "syncflow-tiny"
SERVICE = built("installed/examples/http_service/http_service")
WAV_HEADER, SAMPLES = 44, 96_000  # bytes before the samples; samples of 16 bits in two seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        SERVICE is None, reason="the example is not built; `make native-test` builds it where cpp-httplib is there"
    ),
]


@pytest.fixture(scope="module")
def connection() -> Iterator[HTTPConnection]:
    with subprocess.Popen([SERVICE, BUNDLED, "0"], stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            host, _, port = service.stdout.readline().strip().removeprefix("http://").partition(":")
            yield HTTPConnection(host, int(port), timeout=60)
        finally:
            service.terminate()


def ask(connection: HTTPConnection, method: str, path: str, **form: object) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    connection.request(method, path, urlencode(form) if form else None, headers)
    response = connection.getresponse()
    return response.status, response.read()


def outcome(connection: HTTPConnection, path: str) -> tuple[int, bytes]:
    """The answer for the file of a clip, once its request has ended."""
    for _ in range(1200):
        status, content = ask(connection, "GET", f"{path}/clip.mp4")
        if status != HTTPStatus.CONFLICT:
            return status, content
        time.sleep(0.05)
    pytest.fail(f"{path} does not end")


def test_a_sentence_becomes_a_clip(connection, tmp_path: Path):
    status, location = ask(connection, "POST", "/clips", prompt="a large red rubber ball bounces", seed=7, steps=2)
    assert status == HTTPStatus.ACCEPTED
    path = location.decode().strip()
    status, content = outcome(connection, path)
    assert status == HTTPStatus.OK, content
    (tmp_path / "clip.mp4").write_bytes(content)
    clip = load_clip(tmp_path / "clip.mp4")
    assert clip.frames.shape[0] > 1
    assert clip.waveform.any()
    state = json.loads(ask(connection, "GET", path)[1])
    assert (state["state"], state["status"], state["step"]) == ("finished", "SYNCFLOW_OK", state["num_steps"])
    status, sound = ask(connection, "GET", f"{path}/clip.wav")
    assert status == HTTPStatus.OK
    assert sound[:4] == b"RIFF"
    assert len(sound) == WAV_HEADER + 2 * SAMPLES
    assert ask(connection, "DELETE", path)[0] == HTTPStatus.NO_CONTENT
    assert ask(connection, "GET", path)[0] == HTTPStatus.NOT_FOUND


def test_mistakes_are_answered_with_a_sentence(connection):
    status, answer = ask(connection, "POST", "/clips", seed="x")
    assert (status, answer) == (HTTPStatus.UNPROCESSABLE_ENTITY, b"seed, steps and priority must be whole numbers\n")
    _, location = ask(connection, "POST", "/clips", prompt="a ball", steps=100_000)
    status, answer = outcome(connection, location.decode().strip())
    assert status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert b"steps is 100000" in answer


def test_a_request_is_cancelled_while_it_runs(connection):
    path = ask(connection, "POST", "/clips", prompt="a ball bounces", steps=1000)[1].decode().strip()
    assert ask(connection, "GET", f"{path}/clip.wav")[0] == HTTPStatus.CONFLICT
    assert ask(connection, "DELETE", path)[0] == HTTPStatus.NO_CONTENT
    assert ask(connection, "GET", path)[0] == HTTPStatus.NOT_FOUND
