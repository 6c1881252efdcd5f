"""Uploads: what they are, what is refused before it is decoded, and that nothing of them ends the server."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from syncflow.engine.serving.errors import ApiError
from syncflow.engine.serving.settings import MIB, UploadLimits
from syncflow.engine.serving.uploads import check_upload, from_data_url, kind_of

from .helpers import service_of


def _png(width: int, height: int) -> bytes:
    """A picture whose header promises much, in few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def _small_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "png")
    return file.getvalue()


ID3 = b"ID3\x04\0\0\0\0\0\x05xxxxx"
REFUSED = {
    "empty": b"",
    "text": b"hello",
    "html": b"<script>alert(1)</script>",
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    "playlist behind a tag": ID3 + b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zip": b"PK\3\4" + bytes(100),
    "python": b"\x80\x04cos\nsystem\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_of_files_are_refused(client, name):
    response = client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": REFUSED[name]})
    assert response.status_code == 422 and response.json()["error"]["param"] == "input_reference"
    assert not list(service_of(client).folder.uploads.iterdir())


@pytest.mark.slow
def test_damaged_and_huge_files_are_refused_cleanly(client, clip_file):
    whole = clip_file.read_bytes()
    files = {
        "truncated": whole[: len(whole) // 2],
        "header alone": whole[:64],
        "a bomb": _png(60_000, 60_000),
        "an impossible size": _png(2**31 - 1, 2**31 - 1),
        "noise": whole[:40] + bytes(range(256)) * 20,
    }
    for name, content in files.items():
        response = client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": ("../../etc/x", content)})
        assert response.status_code == 422, (name, response.text)
        message = response.json()["error"]["message"]
        assert message.startswith("input_reference") and "/" not in message.replace("60000x60000", ""), message
    assert not list(service_of(client).folder.uploads.iterdir())
    assert client.get("/health").status_code == 200


def test_limits_hold_before_decoding(tmp_path, clip_file):
    with pytest.raises(ApiError, match=r"has 1 s; at most 0\.5 s"):
        check_upload(clip_file, UploadLimits(seconds=0.5))
    with pytest.raises(ApiError, match="frames of 64x64; at most 1,000 pixels"):
        check_upload(clip_file, UploadLimits(pixels=1000))
    assert check_upload(clip_file, UploadLimits()) == "video"


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
