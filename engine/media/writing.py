"""Clips to files: videos with sound, wav, gif, numbered pictures. A file is written beside its target, then renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..types import Clip
from .checking import check_clip
from .destinations import destination, temporary
from .encoding import CONTAINERS, STREAMED, encode_gif, encode_video, encode_wav

PICTURE_NAME = "frame_%05d.png"
SUFFIXES = (*CONTAINERS, ".gif", ".wav")


def save_clip(clip: Clip, path: str | Path, *, latents: bool = False) -> Path:
    """Write a clip; the name says how.

    ``x.mp4``, ``x.mov`` and ``x.mkv`` are H.264 (yuv420p) with AAC, ``x.webm`` is VP9 with Opus, each with the
    provenance as JSON in the comment; ``x.gif`` is the pictures alone and ``x.wav`` the sound alone (16 bit);
    ``x_%04d.png`` and a name without suffix (a new or empty folder) are the frames. Missing parent folders are made; a
    link is followed, and a pipe takes the whole file. A waveform of integer PCM is scaled by its full scale.
    ``latents`` are written beside an mp4, as ``x.latents.safetensors`` with the checksum of the mp4. Raises
    ``ValueError`` for a clip that cannot be encoded and an output that cannot be written.
    """
    import av

    path = Path(path)
    suffix = path.suffix.lower()
    _check(clip, silent=suffix == ".wav")
    if latents and suffix != ".mp4":
        raise ValueError(f"latents are kept beside an mp4, and {path.name} is none")
    if latents and clip.latents is None:
        raise ValueError("the clip has no latents to keep; only a generated one has")
    if suffix in SUFFIXES:
        write = _write_file
    elif suffix == ".png" and "%" in path.name:
        write = _write_pattern
    elif not suffix:
        write = _write_folder
    else:
        raise ValueError(
            f"cannot write {path.name}: the name must end in {', '.join(SUFFIXES)} or %d.png, or name a folder"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(clip, path)
        if latents:
            _write_latents(clip, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot write {path}: the encoder refuses it ({error})") from error
    return path


def stream_clip(clip: Clip, file: BinaryIO) -> None:
    """Write a clip to a file that cannot seek, such as standard output: fragmented mp4, H.264 with AAC.

    Raises ``ValueError`` for a clip that cannot be encoded and a file that cannot be written.
    """
    import av

    _check(clip, silent=False)
    try:
        encode_video(clip, file, STREAMED, "mp4")
        file.flush()
    except OSError as error:
        raise ValueError(f"cannot write the stream: {error.strerror or error}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot write the stream: the encoder refuses it ({error})") from error


def latents_path(path: Path) -> Path:
    """Where the latents of a saved clip lie."""
    return path.with_suffix(".latents.safetensors")


def latents_notes(path: Path, shape: tuple[int, ...], fps: float) -> dict[str, str]:
    """What is written with the latents of a clip, by which a reader knows whether they are those of its frames."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "frames": " ".join(map(str, shape)), "fps": f"{fps:g}"}


def _write_latents(clip: Clip, path: Path) -> None:
    from safetensors.numpy import save_file

    assert clip.latents is not None
    with destination(latents_path(path)) as target:
        save_file({"video": clip.latents}, target, latents_notes(path, clip.frames.shape, clip.fps))


def _check(clip: Clip, *, silent: bool) -> None:
    check_clip(clip)
    if not len(clip.frames) and not silent:
        if len(clip.waveform):
            raise ValueError("the clip is a sound alone; save it as .wav")
        raise ValueError("the clip has neither frames nor sound")


def _write_file(clip: Clip, path: Path) -> None:
    suffix = path.suffix.lower()
    with destination(path) as target:
        if suffix == ".wav":
            encode_wav(clip, target)
        elif suffix == ".gif":
            encode_gif(clip, target, path.name)
        else:
            encode_video(clip, target, CONTAINERS[suffix], path.name)


def _write_pattern(clip: Clip, path: Path) -> None:
    try:
        names = [path.name % index for index in range(len(clip.frames))]
    except (TypeError, ValueError):
        names = []
    if len(set(names)) < len(clip.frames):
        raise ValueError(f"cannot write {path.name}: the pattern must hold one number such as %04d")
    with temporary(path.parent) as beside:
        beside.mkdir()
        for source in _write_pictures(clip, beside, names):
            os.replace(source, path.parent / source.name)


def _write_folder(clip: Clip, path: Path) -> None:
    path = Path(os.path.realpath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"cannot write frames to {path}: it exists and is not an empty folder")
    with temporary(path.parent) as pictures:
        pictures.mkdir()
        _write_pictures(clip, pictures, [PICTURE_NAME % index for index in range(len(clip.frames))])
        os.replace(pictures, path)


def _write_pictures(clip: Clip, folder: Path, names: list[str]) -> list[Path]:
    import av

    paths = [folder / name for name in names]
    for image, path in zip(clip.frames, paths, strict=True):
        av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").save(str(path))
    return paths
