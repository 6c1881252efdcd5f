"""Hostile uploads to a server: ``python -m tests.engine.serving.fuzz_uploads COUNT [SEED]``.

COUNT damaged media files of all kinds, then crafted files and damaged bodies, are sent to a server in a process of its
own. Every response must be a refusal (4xx); a damaged file that can still be read may be accepted, and is deleted. In
the end the server must answer, hold no upload, and have kept its memory. Prints the counts by status.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from syncflow.benchmarks.load.server import Server

from ..fuzz_media import damage, write_samples

GROWTH = 32 * 2**20  # bytes that the server may grow by in the second half of the files
TIMEOUT = 300.0  # seconds for a response; a file is read twice, with 60 s each
TOGETHER = 64  # files between two lines of progress
BOUNDARY = "a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
FIELDS = {"prompt": "a ball", "num_inference_steps": "1", "seed": "1"}
Post = Callable[[str, bytes], tuple[int, bytes]]  # content type, body -> status, content


def form(content: bytes, name: str = "clip.mp4", fields: dict[str, str] = FIELDS) -> bytes:
    """The body of a form with a file."""
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    head = b"".join((part % (key, "")).encode() + value.encode() + b"\r\n" for key, value in fields.items())
    file = (part % ("input_reference", f'; filename="{name}"')).encode() + content
    return head + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A picture whose header promises this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _atom(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(content) if size is None else size) + kind + content


def crafted(sample: bytes) -> dict[str, bytes]:
    """Files that are refused, by what they try; ``sample`` is an mp4."""
    nested = b""
    for _ in range(3000):
        nested = _atom(b"moov", nested)
    ftyp = _atom(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
    wave = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 65_535, 2**32 - 1, 2**32 - 1, 65_535, 64)
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": sample[: len(sample) // 2],
        "header alone": sample[:64],
        "noise": sample[:40] + bytes(range(256)) * 20,
        "a bomb": png(60_000, 60_000, zlib.compress(bytes(10_000_000))),
        "an impossible size": png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0" * 1000)),
        "pixels that end early": png(64, 64, zlib.compress(b"\0" * 100)),
        "atoms within atoms": ftyp + nested,
        "an atom of 2^63 bytes": ftyp + _atom(b"moov", struct.pack(">Q", 2**63 - 1), size=1),
        "an atom of 4 GiB": ftyp + _atom(b"moov", b"", size=2**32 - 1),
        "a wave of 4 GiB": wave + b"data\xff\xff\xff\xff" + bytes(64),
        "EBML without end": b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 7 + b"\xff" * 64,
        "gif without frames": b"GIF89a\xff\xff\xff\xff\xf7\0\0" + b"\xff" * 200,
        "sync words": b"\xff\xfb\x90\x00" * 64,
        "a transport stream of nothing": (b"\x47" + bytes(187)) * 8,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        "playlist behind a tag": b"ID3\x04\0\0\0\0\0\x05xxxxx#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "tag of 256 MiB": b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
        "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "session description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 1 RTP/AVP 0\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "zip": b"PK\3\4" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + zlib.compress(bytes(1_000_000)),
        "pickle": b"\x80\x04cos\nsystem\n",
    }


def bodies(sample: bytes) -> dict[str, tuple[str, bytes]]:
    """Damaged bodies: the content type and the bytes."""
    whole = form(sample)
    many = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="field{i}"\r\n\r\nx\r\n'.encode() for i in range(2000)
    )
    long = f'--{BOUNDARY}\r\nX-Padding: {"x" * 300_000}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    return {
        "form cut off": (FORM, whole[: len(whole) // 2]),
        "no end": (FORM, whole[:-8]),
        "no boundary": ("multipart/form-data", whole),
        "another boundary": ("multipart/form-data; boundary=x", whole),
        "a boundary of 10 kB": (f"multipart/form-data; boundary={'b' * 10_000}", whole),
        "2000 fields": (FORM, many + whole),
        "a header of 300 kB": (FORM, long.encode() + whole),
        "two files": (FORM, whole[: -len(f"--{BOUNDARY}--\r\n")] + whole),
        "a file as a field": (FORM, form(sample, fields={"input_reference": "x"})),
        "a field of 1 MB": (FORM, form(sample, fields={"prompt": "x" * 1_000_000})),
        "no bytes": (FORM, b""),
        "bytes": (FORM, os.urandom(5000)),
        "another kind of body": ("video/mp4", sample),
        "base64 of nothing": ("application/json", b'{"prompt": "x", "input_reference": {"video_url": "data:"}}'),
        "deep JSON": ("application/json", b'{"prompt":' * 50_000),
        "JSON cut off": ("application/json", b'{"prompt": "x", "input_reference": {"video_url": "data:video/mp4;bas'),
    }


def damaged(samples: list[bytes], random: np.random.Generator) -> Iterator[bytes]:
    """Without end: the samples, damaged in many ways."""
    while True:
        yield from (damage(sample, random) for sample in samples)


def refuses(post: Post, kind: str, body: bytes, name: str) -> int:
    """Send what must be refused. -> the status."""
    status, content = post(kind, body)
    assert 400 <= status < 500, (name, status, content[:300])
    error = json.loads(content)["error"]
    assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"], (name, error)
    return status


def client_of(url: str) -> tuple[Post, Callable[[str], int]]:
    """Functions that post a body and that delete a video; an accepted video is deleted."""
    address = urlsplit(url).netloc

    def call(method: str, path: str, kind: str = "", body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    return (lambda kind, body: call("POST", "/v1/videos", kind, body)), (
        lambda video: call("DELETE", f"/v1/videos/{video}")[0]
    )


def raw(url: str, content: bytes) -> bytes:
    """The first bytes that a server answers to what need be no HTTP; none where it closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(64)
        except TimeoutError:
            raise
        except OSError:  # of several kinds: the server closed the connection first
            return b""


HEADERS_LONG = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nX-Padding: " + b"x" * 4_000_000 + b"\r\n\r\n"
HEADERS_MANY = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: x\r\n" % i for i in range(50_000)) + b"\r\n"
RAW = {
    "a header of 4 MB": HEADERS_LONG,
    "50000 headers": HEADERS_MANY,
    "a length that is none": b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    "two lengths": b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a chunk that ends early": b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffffff\r\nx",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
}


def attack_raw(url: str) -> None:
    """Send what is no request, or half of one; each is refused, or its connection closed."""
    for name, content in RAW.items():
        answered = raw(url, content)
        assert not answered or answered.startswith(b"HTTP/1.1 4"), (name, answered)


class Sender:
    """Sends damaged files to a server and counts the statuses; what it answers badly, or not at all, is kept."""

    def __init__(self, url: str) -> None:
        self.post, self.delete = client_of(url)
        self.statuses = Counter[str]()

    def send(self, content: bytes) -> None:
        try:
            status, answer = self.post(FORM, form(content))
            assert status == 200 or 400 <= status < 500, f"status {status}: {answer[:300]!r}"
            if status == 200:
                deleted = self.delete(json.loads(answer)["id"])
                assert deleted == 200, f"status {deleted} for the deletion"
        except (AssertionError, OSError) as error:
            with tempfile.NamedTemporaryFile(prefix="syncflow-fuzz-", delete=False) as found:
                found.write(content)
            raise AssertionError(f"{found.name}, of {len(content)} bytes: {error!r}") from error
        self.statuses["accepted and deleted" if status == 200 else str(status)] += 1

    def send_all(self, files: list[bytes]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.send, files))


def main(count: int, seed: int) -> int:
    import psutil

    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name, Server(Path(name), "--runtime", "torch") as server:
        samples = samples_in(Path(name) / "samples")
        process, sender = psutil.Process(server.process.pid), Sender(server.url)
        files, statuses = damaged([*samples.values()], random), sender.statuses
        resident = []  # bytes
        for begin in range(0, count, TOGETHER):
            sender.send_all([next(files) for _ in range(min(TOGETHER, count - begin))])
            resident.append(process.memory_info().rss)
            print(f"{statuses.total()} files: {dict(sorted(statuses.items()))}", file=sys.stderr, flush=True)
        for what, content in crafted(samples["file.mp4"]).items():
            statuses[f"crafted {refuses(sender.post, FORM, form(content), what)}"] += 1
        for what, (kind, body) in bodies(samples["file.mp4"]).items():
            statuses[f"body {refuses(sender.post, kind, body, what)}"] += 1
        attack_raw(server.url)
        grown = process.memory_info().rss - resident[len(resident) // 2]
        left = [*(server.data / "uploads").iterdir()]
        assert answers(server.url) and server.process.poll() is None, "the server has ended"
        print(json.dumps(dict(sorted(statuses.items()))))
        sizes = ", ".join(f"{size / 2**20:.0f}" for size in resident[:: max(1, len(resident) // 8)])
        print(f"{count} damaged files; uploads left {len(left)}; resident memory {sizes} MiB")
        print(f"{grown / 2**20:+.1f} MiB since half of them")
        return int(grown > GROWTH or bool(left) or "Traceback" in server.log.read_text())


def samples_in(folder: Path) -> dict[str, bytes]:
    """A short file of every kind, by its name."""
    folder.mkdir()
    write_samples(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def answers(url: str) -> bool:
    """Whether the server answers."""
    return raw(url, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
