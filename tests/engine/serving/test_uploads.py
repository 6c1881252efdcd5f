"""Uploads: what they are, what is refused before it is decoded, and that nothing of them ends the server."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from syncflow.engine.media import isolated
from syncflow.engine.media.fork_server import ForkServer
from syncflow.engine.serving.errors import ApiError
from syncflow.engine.serving.settings import MIB, UploadLimits
from syncflow.engine.serving.uploads import check_upload, from_data_url, kind_of

from .fuzz_uploads import FORM, answers, attack_raw, bodies, crafted, damaged, form, refuses
from .helpers import service_of


def _small_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "png")
    return file.getvalue()


ID3 = b"ID3\x04\0\0\0\0\0\x05xxxxx"
READ = ("truncated", "a bomb", "an impossible size", "atoms within atoms", "a wave of 4 GiB")  # by a reader's process


@pytest.fixture
def post(client):
    """Posts a body, after which no upload may be left."""

    def call(kind: str, body: bytes) -> tuple[int, bytes]:
        response = client.post("/v1/videos", content=body, headers={"Content-Type": kind})
        assert response.status_code == 200 or not list(service_of(client).folder.uploads.iterdir())
        return response.status_code, response.content

    return call


@pytest.mark.slow
def test_hostile_files_are_refused(client, post, clip_file, tmp_path):
    """The bounded form of ``python -m tests.engine.serving.fuzz_uploads``."""
    sample, path = clip_file.read_bytes(), tmp_path / "file"
    for name, content in crafted(sample).items():
        path.write_bytes(content)
        if name in READ or kind_of(path) is None:
            refuses(post, FORM, form(content, "../../etc/x"), name)
    files = damaged([sample], np.random.default_rng(0))
    for _ in range(3):
        status, content = post(FORM, form(next(files)))
        assert status in (200, 422), content
        if status == 200:
            client.delete(f"/v1/videos/{json.loads(content)['id']}")
    assert client.get("/health").status_code == 200


def test_damaged_bodies_are_refused(post, clip_file):
    for name, (kind, body) in bodies(clip_file.read_bytes()).items():
        refuses(post, kind, body, name)


def test_what_is_no_http_is_refused(live_url):
    attack_raw(live_url)
    assert answers(live_url)


@pytest.mark.skipif(sys.platform != "linux", reason="readers are forked on Linux")
@pytest.mark.parametrize("ended_by", [signal.SIGSEGV, signal.SIGKILL])
def test_a_file_that_ends_its_reader(client, post, clip_file, monkeypatch, ended_by):
    script = "import os, sys; from syncflow.engine.media.fork_server import serve; "
    script += "serve(lambda *_: os.kill(os.getpid(), int(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(int(ended_by))]
    server = ForkServer(lambda calls: subprocess.Popen(command, stdin=calls.fileno()))
    with monkeypatch.context() as patched:
        patched.setattr(isolated, "_fork_server", server)
        status, content = post(FORM, form(clip_file.read_bytes()))
    server.close()
    error = json.loads(content)["error"]
    assert (status, error["param"]) == (422, "input_reference") and "its reader crashed (ended by signal" in error[
        "message"
    ]
    assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_limits_hold_before_decoding(tmp_path, clip_file):
    with pytest.raises(ApiError, match=r"has 1 s; at most 0\.5 s"):
        check_upload(clip_file, UploadLimits(seconds=0.5))
    with pytest.raises(ApiError, match="frames of 64x64; at most 1,000 pixels"):
        check_upload(clip_file, UploadLimits(pixels=1000))


def test_too_many_bytes_are_refused_as_they_arrive(start):
    client = start(uploads=UploadLimits(bytes=100_000))
    large = _small_png() + bytes(2 * MIB)
    assert client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": large}).status_code == 413

    def chunks():
        for _ in range(64):
            yield bytes(64 * 1024)

    streamed = client.post("/v1/videos", content=chunks(), headers={"Content-Type": "application/json"})
    assert streamed.status_code == 413
    wrong = client.post("/v1/videos", content=b"", headers={"Content-Length": "-1", "Content-Type": "application/json"})
    assert wrong.status_code in (400, 413, 422)
    slightly = _small_png() + bytes(200_000)
    refused = client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": slightly})
    assert refused.status_code == 413


@given(st.binary(max_size=64))
def test_any_bytes_have_a_kind_or_none(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    assert kind_of(path) in ("video", "image", "audio", None)


def test_kinds(tmp_path, clip_file):
    (tmp_path / "a.png").write_bytes(_small_png())
    (tmp_path / "a.mp3").write_bytes(ID3 + b"\xff\xfb\x90\x00")
    kinds = [kind_of(path) for path in (clip_file, tmp_path / "a.png", tmp_path / "a.mp3")]
    assert kinds == ["video", "image", "audio"]


@pytest.mark.parametrize(
    "url", ["http://x/y.mp4", "data:text/html;base64,AAAA", "data:video/mp4,AAAA", "data:", "/etc/passwd"]
)
def test_only_data_urls_are_read(url):
    with pytest.raises(ApiError, match="others are not fetched"):
        from_data_url(url, 100)


def test_a_data_url_has_a_limit():
    assert from_data_url("data:image/png;base64,AAAA", 3) == b"\0\0\0"
    with pytest.raises(ApiError, match="too large"):
        from_data_url("data:image/png;base64," + "AAAA" * 100, 100)
    with pytest.raises(ApiError, match="damaged"):
        from_data_url("data:image/png;base64,A!!A", 100)
