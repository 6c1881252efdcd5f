"""The picture of a HEIF file (HEIC of a camera, AVIF): which items it is made of (ISO/IEC 23008-12), decoded by FFmpeg.

FFmpeg gives each tile as a stream, and PyAV not how they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .limits import check_pixels
from .opening import opened
from .pictures import SQUARE, picture

MAX_HEADER = 64 * 2**20  # bytes; an index of items takes some kilobytes


@dataclass(frozen=True)
class Grid:
    """Tiles (item numbers, row by row) that make a picture of ``width`` and ``height``, and how it is turned then."""

    rows: int
    columns: int
    width: int
    height: int
    tiles: tuple[int, ...]
    transforms: tuple[tuple[bytes, int], ...]


def read_grid(path: Path) -> np.ndarray | None:
    """The picture of a file whose main item is a grid of tiles, uint8 (H, W, 3); ``None`` for other files."""
    try:
        grid = _find_grid(path)
    except (struct.error, IndexError, KeyError, StopIteration):
        return None
    if grid is None:
        return None
    check_pixels(str(path), grid.width, grid.height)
    tiles: dict[int, np.ndarray] = {}
    with opened(path) as container:
        streams = [stream for stream in container.streams.video if stream.id in grid.tiles]
        for packet in container.demux(*streams) if streams else ():
            for frame in packet.decode():
                tiles[packet.stream.id] = picture(frame, None, SQUARE, oriented=False)  # type: ignore[arg-type]
    if set(tiles) != set(grid.tiles) or len({tile.shape for tile in tiles.values()}) > 1:
        raise ValueError(f"{path} is damaged: {len(set(grid.tiles) - set(tiles))} of its tiles are missing")
    height, width, _ = tiles[grid.tiles[0]].shape
    if grid.width > grid.columns * width or grid.height > grid.rows * height:
        raise ValueError(f"{path} is damaged: its tiles are smaller than its picture")
    rows = [
        np.concatenate([tiles[number] for number in grid.tiles[row * grid.columns : (row + 1) * grid.columns]], axis=1)
        for row in range(grid.rows)
    ]
    image = np.concatenate(rows)[: grid.height, : grid.width]
    for kind, value in grid.transforms:
        image = np.rot90(image, value) if kind == b"irot" else np.flip(image, axis=value)
    return np.ascontiguousarray(image)


def _find_grid(path: Path) -> Grid | None:
    with path.open("rb") as file:
        data = file.read(MAX_HEADER)
    if data[4:8] != b"ftyp":
        return None
    meta = next((body for kind, body in _boxes(data) if kind == b"meta"), None)
    if meta is None:
        return None
    parts = dict(_boxes(meta[4:]))
    main = _number(parts[b"pitm"], 4, wide=parts[b"pitm"][0] > 0)[0]
    if _item_kinds(parts[b"iinf"]).get(main) != b"grid":
        return None
    properties = dict(_boxes(parts[b"iprp"]))
    listed = list(_boxes(properties[b"ipco"]))
    transforms = []
    for index in _properties_of(properties[b"ipma"], main):
        kind, body = listed[index - 1]
        if kind in (b"irot", b"imir"):
            transforms.append((kind, body[0] & (3 if kind == b"irot" else 1)))
    tiles = _references(parts[b"iref"], main)
    version, flags, rows, columns = struct.unpack_from(">4B", layout := _item_data(data, parts, main))
    width, height = struct.unpack_from(">II" if flags & 1 else ">HH", layout, 4)
    if version or len(tiles) != (rows + 1) * (columns + 1) or not width or not height:
        return None
    return Grid(rows + 1, columns + 1, width, height, tiles, tuple(transforms))


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        end = len(data) if size == 0 else at + size
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end


def _number(data: bytes, at: int, *, wide: bool) -> tuple[int, int]:
    """A number of two or four bytes, and where the next one is."""
    return struct.unpack_from(">I" if wide else ">H", data, at)[0], at + (4 if wide else 2)


def _item_kinds(iinf: bytes) -> dict[int, bytes]:
    _, at = _number(iinf, 4, wide=iinf[0] > 0)
    kinds = {}
    for _, entry in _boxes(iinf[at:]):
        if entry[0] >= 2:
            number, after = _number(entry, 4, wide=entry[0] > 2)
            kinds[number] = entry[after + 2 : after + 6]
    return kinds


def _references(iref: bytes, main: int) -> tuple[int, ...]:
    """The items that a picture is derived from, in order."""
    wide = iref[0] > 0
    for kind, body in _boxes(iref[4:]):
        source, at = _number(body, 0, wide=wide)
        if kind == b"dimg" and source == main:
            count, at = _number(body, at, wide=False)
            return struct.unpack_from(f">{count}{'I' if wide else 'H'}", body, at)
    return ()


def _properties_of(ipma: bytes, main: int) -> list[int]:
    """Which properties (counted from 1) an item has, in order."""
    version, large = ipma[0], ipma[3] & 1
    (entries,), at = struct.unpack_from(">I", ipma, 4), 8
    for _ in range(entries):
        number, at = _number(ipma, at, wide=version > 0)
        count, at = ipma[at], at + 1
        size = 2 if large else 1
        found = [int.from_bytes(ipma[at + size * k : at + size * (k + 1)]) for k in range(count)]
        at += size * count
        if number == main:
            return [value & (0x7FFF if large else 0x7F) for value in found]
    return []


def _item_data(data: bytes, parts: dict[bytes, bytes], main: int) -> bytes:
    """The bytes of an item, from the file or from the box ``idat``."""
    iloc = parts[b"iloc"]
    version, (sizes, more) = iloc[0], iloc[4:6]
    offset_size, length_size, base_size, index_size = sizes >> 4, sizes & 15, more >> 4, more & 15 if version else 0
    items, at = _number(iloc, 6, wide=version > 1)
    for _ in range(items):
        number, at = _number(iloc, at, wide=version > 1)
        method = iloc[at + 1] & 15 if version else 0
        at += 4 if version else 2
        base, at = int.from_bytes(iloc[at : at + base_size]), at + base_size
        extents, at = _number(iloc, at, wide=False)
        found = b""
        for _ in range(extents):
            at += index_size
            offset, at = int.from_bytes(iloc[at : at + offset_size]), at + offset_size
            length, at = int.from_bytes(iloc[at : at + length_size]), at + length_size
            source = parts[b"idat"] if method == 1 else data
            found += source[base + offset : base + offset + length]
        if number == main:
            return found
    return b""
