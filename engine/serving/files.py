"""The data folder: uploads and results by job, each written beside its place and renamed.

::

    lock, server         held by the process that uses the folder; the server's id in the database
    uploads/<job>/input
    results/<job>/       result.json (checksums), 1.mp4, 1.wav, 2.mp4, …
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..media.writing import save_clip
from ..types import Clip
from .uploads import too_large

JOB_ID = re.compile(r"video_[0-9a-f]{32}")
TEMPORARY = ".new-"
CHUNK = 1 << 20


class DataFolder:
    """Files of jobs. Raises ``ValueError`` for a folder that another process uses or that cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path, self.uploads, self.results = path, path / "uploads", path / "results"
        try:
            for folder in (self.uploads, self.results):
                folder.mkdir(parents=True, exist_ok=True)
            os.chmod(path, 0o700)
            self._lock = (path / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another server uses the data folder {path}") from error
        except OSError as error:
            raise ValueError(f"the data folder {path} cannot be used ({error.strerror})") from error
        self.server = self._server_id()

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    def upload(self, job_id: str) -> Path:
        """Where the upload of a job lies."""
        return self.uploads / _checked(job_id) / "input"

    def save_upload(self, job_id: str, source: BinaryIO, limit: int) -> str:
        """Store an upload of at most ``limit`` bytes. -> its SHA-256. Raises :class:`ApiError`."""
        target = self.upload(job_id)
        target.parent.mkdir()
        digest = hashlib.sha256()
        with target.open("wb") as file:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
                if file.tell() > limit:
                    raise too_large(limit)
            _sync(file)
        _sync_folder(target.parent)
        return digest.hexdigest()

    def result(self, job_id: str) -> dict[str, Any] | None:
        """The manifest of a job whose results are there."""
        try:
            found: dict[str, Any] = json.loads((self.results / _checked(job_id) / "result.json").read_bytes())
            return found
        except FileNotFoundError:
            return None

    def result_file(self, job_id: str, name: str) -> Path:
        """A file among the results of a job, which may or may not be there."""
        assert "/" not in name and not name.startswith(".")
        return self.results / _checked(job_id) / name

    def save_result(self, job_id: str, clips: Sequence[Clip]) -> dict[str, Any]:
        """Write the takes of a job, all or none of them. -> the manifest.

        Results that are there already stay as they are. Raises ``OSError`` and ``ValueError`` where nothing was
        written.
        """
        beside = self.results / f"{TEMPORARY}{_checked(job_id)}-{secrets.token_hex(4)}"
        beside.mkdir()
        try:
            takes = [_write_take(beside, number, clip) for number, clip in enumerate(clips, 1)]
            manifest = {"takes": takes}
            _write_synced(beside / "result.json", json.dumps(manifest).encode())
            _sync_folder(beside)
            try:
                os.rename(beside, self.results / job_id)
            except OSError:
                there = self.result(job_id)
                if there is None:
                    raise
                return there
            _sync_folder(self.results)
            return manifest
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Remove all files of a job."""
        for folder in (self.results, self.uploads):
            _remove(folder, _checked(job_id))

    def remove_upload(self, job_id: str) -> None:
        """Remove the upload of a job."""
        _remove(self.uploads, _checked(job_id))

    def clean(self, known: Iterable[str]) -> int:
        """At the start: remove what belongs to no known job, and what was being written. -> how many folders."""
        kept, removed = set(known), 0
        for folder in (self.results, self.uploads):
            for found in folder.iterdir():
                if found.name not in kept:
                    shutil.rmtree(found, ignore_errors=True)
                    removed += 1
        return removed

    def size(self) -> int:
        """Bytes of uploads and results."""
        return sum(folder_size(folder) for folder in (self.uploads, self.results))

    def _server_id(self) -> str:
        path = self.path / "server"
        if not path.exists():
            part = path.with_name(".server")
            _write_synced(part, secrets.token_hex(16).encode())
            os.replace(part, path)
        return path.read_text()


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder; those that vanish meanwhile do not count."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return size


def _checked(job_id: str) -> str:
    assert JOB_ID.fullmatch(job_id), "ids are made by this server"
    return job_id


def _write_take(folder: Path, number: int, clip: Clip) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for suffix in ("mp4", "wav") if len(clip.frames) else ("wav",):
        path = save_clip(clip, folder / f"{number}.{suffix}")
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[suffix] = {"sha256": digest, "bytes": path.stat().st_size}
    count, height, width, _ = clip.frames.shape
    seeds = {"seed": clip.provenance.get("seed"), "audio_seed": clip.provenance.get("audio_seed")}
    size = {"frames": count, "width": width, "height": height, "fps": clip.fps, "seconds": clip.seconds}
    return {"files": files, **size, **{name: seed for name, seed in seeds.items() if seed is not None}}


def _remove(folder: Path, name: str) -> None:
    """Remove a folder at once: it is renamed first, so nobody sees a part of it."""
    gone = folder / f"{TEMPORARY}gone-{name}-{secrets.token_hex(4)}"
    try:
        os.rename(folder / name, gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
