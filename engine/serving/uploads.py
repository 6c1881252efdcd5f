"""Uploaded media: what they are by their first bytes, and whether they may be decoded at all.

Only containers that hold their own data are accepted. FFmpeg also reads playlists, which name other files of this
machine.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..media import probe
from ..media.isolated import reading_isolated
from .errors import ApiError, wrong_value
from .settings import UploadLimits

MediaKind = Literal["video", "image", "audio"]
FIELD = "input_reference"
HEAD = 4096
DATA_URL = re.compile(r"data:(?:video|audio|image)/[\w.+-]+(?:;[\w=.\"+-]+)*;base64,")
ACCEPTED = "mp4, mov, mkv, webm, avi, ts, gif, wav, flac, ogg, mp3, aac, png, jpeg, webp, bmp, avif or heic"
PICTURE_BRANDS = (b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1")
Test = Callable[[bytes], bool]


def _starts(*signatures: bytes) -> Test:
    return lambda head: head.startswith(signatures)


def _riff(kind: bytes) -> Test:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == kind


def _frame_sync(head: bytes, at: int = 0) -> bool:
    """The beginning of a frame of MPEG audio or of AAC in ADTS."""
    return len(head) > at + 1 and head[at] == 0xFF and head[at + 1] & 0xE0 == 0xE0


def _transport_stream(head: bytes) -> bool:
    return len(head) > 376 and all(head[at] == 0x47 for at in (0, 188, 376))


SIGNATURES: tuple[tuple[MediaKind, Test], ...] = (
    ("image", _starts(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")),
    ("image", _riff(b"WEBP")),
    ("image", lambda head: head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS),
    ("video", _starts(b"GIF87a", b"GIF89a", b"\x1a\x45\xdf\xa3")),
    ("video", lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    ("video", _riff(b"AVI ")),
    ("video", _transport_stream),
    ("audio", _starts(b"OggS", b"fLaC")),
    ("audio", _riff(b"WAVE")),
    ("audio", _frame_sync),
)


def kind_of(path: Path) -> MediaKind | None:
    """What a file is by its first bytes; containers of both count as videos. None for what is not accepted."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if head[:3] == b"ID3" and len(head) >= 10:  # a tag before MPEG audio, of a length in 7-bit bytes
            length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + length)
            return "audio" if _frame_sync(file.read(2)) else None
    return next((kind for kind, matches in SIGNATURES if matches(head)), None)


def check_upload(path: Path, limits: UploadLimits) -> MediaKind:
    """What an uploaded file holds, by its header, which another process reads.

    Raises :class:`ApiError` for another kind of file, a damaged one, and one that is too long or too large.
    """
    kind = kind_of(path)
    if kind is None:
        raise wrong_value(FIELD, f"{FIELD} is no file of a kind that is read; it must be {ACCEPTED}")
    try:
        with reading_isolated(limits.reading):
            info = probe(path)
    except ValueError as error:
        raise wrong_value(FIELD, says(error, path)) from error
    if info.width * info.height > limits.pixels:
        raise wrong_value(
            FIELD, f"{FIELD} has frames of {info.width}x{info.height}; at most {limits.pixels:,} pixels are read"
        )
    if kind == "image":
        return kind
    if info.seconds > limits.seconds:
        raise wrong_value(FIELD, f"{FIELD} has {info.seconds:g} s; at most {limits.seconds:g} s are read")
    return "video" if info.width else "audio"


def says(error: Exception, path: Path) -> str:
    """The sentence of an error about a file, with the name of the field in place of the path."""
    return str(error).replace(str(path.absolute()), FIELD).replace(str(path), FIELD)


def from_data_url(url: str, limit: int) -> bytes:
    """The bytes of a ``data:`` URL. Raises :class:`ApiError` for any other URL: nothing is fetched."""
    matched = DATA_URL.match(url)
    if matched is None:
        raise wrong_value(FIELD, f"{FIELD} is no data: URL in base64, and others are not fetched; upload the file")
    if (len(url) - matched.end()) * 3 // 4 > limit:
        raise too_large(limit)
    try:
        return base64.b64decode(url[matched.end() :], validate=True)
    except binascii.Error:
        raise wrong_value(FIELD, f"{FIELD} is no data: URL in base64: it is damaged") from None


def too_large(limit: int) -> ApiError:
    """413: more bytes than are read."""
    return ApiError(413, f"the request is too large; {FIELD} may have {limit:,} bytes", "too_large", param=FIELD)
