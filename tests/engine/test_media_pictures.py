"""Orientation, transparency, tiles and pixel shapes of pictures and videos."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from syncflow.engine.media import load_clip, load_picture, probe

# Colours of the corners: red, green, blue, yellow in reading order.
CORNERS = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 20]]], np.uint8)


def corners(image: np.ndarray) -> str:
    """The colours of the four corners in reading order."""
    height, width, _ = image.shape
    parts = [image[y, x].astype(int) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return "".join("rgby"[int(np.abs(CORNERS.reshape(4, 3).astype(int) - part).sum(axis=1).argmin())] for part in parts)


def cornered(width: int = 64, height: int = 48) -> np.ndarray:
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


# What a picture stored with each EXIF orientation looks like.
UPRIGHT = {1: "rgby", 2: "gryb", 3: "ybgr", 4: "byrg", 5: "rbgy", 6: "bryg", 7: "ygbr", 8: "gyrb"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_upright_in_every_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(cornered()).save(path, exif=exif, quality=95)
    found = load_picture(path).frames[0]
    assert found.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    assert corners(found) == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", [2, 4])
def test_mirrored_video_is_shown_upright(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "mirrored.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.set_display_matrix({
            2: [-65536, 0, 0, 0, 65536, 0, 64 * 65536, 0, 2**30],
            4: [65536, 0, 0, 0, -65536, 0, 0, 48 * 65536, 2**30],
        }[orientation])  # fmt: skip
        container.mux(video.encode(av.VideoFrame.from_ndarray(cornered(), format="rgb24")))
        container.mux(video.encode())
    assert corners(load_clip(path).frames[0]) == UPRIGHT[orientation]


def box(kind: bytes, *parts: bytes) -> bytes:
    payload = b"".join(parts)
    return struct.pack(">I", 8 + len(payload)) + kind + payload


def full_box(kind: bytes, version: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *parts)


def hevc(image: np.ndarray) -> tuple[bytes, bytes]:
    """The configuration of a decoder, as a box, and a coded picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:bframes=0"})
        video.height, video.width, _ = image.shape
        video.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(video.encode(frame))
        container.mux(video.encode())
    data = file.getvalue()
    found = []
    for kind in (b"hvcC", b"mdat"):
        at = data.index(kind) - 4
        found.append(data[at : at + struct.unpack_from(">I", data, at)[0]])
    return found[0], found[1][8:]


def heic(tiles: list[np.ndarray], rows: int, columns: int, size: tuple[int, int], *transforms: bytes) -> bytes:
    """A picture as a camera writes it: tiles, a grid of them, and how it is turned."""
    height, width, _ = tiles[0].shape
    coded, grid = [hevc(tile) for tile in tiles], len(tiles) + 1
    kinds = [b"hvc1"] * len(tiles) + [b"grid"]
    infos = [full_box(b"infe", 2, struct.pack(">HH4sB", k + 1, 0, kind, 0)) for k, kind in enumerate(kinds)]
    shapes = (full_box(b"ispe", 0, struct.pack(">II", *each)) for each in ((width, height), size))
    owned = b"".join(struct.pack(">HBBB", k + 1, 2, 0x81, 2) for k in range(len(tiles)))
    owned += struct.pack(">HB", grid, 1 + len(transforms)) + bytes([3, *(0x84 + k for k in range(len(transforms)))])
    properties = box(
        b"iprp",
        box(b"ipco", coded[0][0], *shapes, *transforms),
        full_box(b"ipma", 0, struct.pack(">I", grid), owned),
    )
    references = box(b"dimg", struct.pack(f">HH{len(tiles)}H", grid, len(tiles), *range(1, grid)))

    def meta(first: int) -> bytes:
        places, at = [], first
        for number, (_, data) in enumerate(coded):
            places.append(struct.pack(">HHHHII", number + 1, 0, 0, 1, at, len(data)))
            at += len(data)
        places.append(struct.pack(">HHHHII", grid, 1, 0, 1, 0, 8))
        return full_box(
            b"meta",
            0,
            full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, struct.pack(">H", grid)),
            full_box(b"iinf", 0, struct.pack(">H", grid), *infos),
            full_box(b"iref", 0, references),
            properties,
            full_box(b"iloc", 1, struct.pack(">BBH", 0x44, 0, grid), *places),
            box(b"idat", struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)),
        )

    start = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", *(data for _, data in coded))


@pytest.mark.parametrize(
    ("transforms", "orientation"),
    [((), 1), ((box(b"imir", b"\1"),), 2), ((box(b"imir", b"\0"),), 4), ((box(b"irot", b"\3"),), 6)],
)
def test_all_tiles_of_a_heic_are_read(transforms: tuple[bytes, ...], orientation: int, tmp_path: Path) -> None:
    whole = cornered(192, 128)
    tiles = [whole[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64, 128)]
    (tmp_path / "photo.heic").write_bytes(heic(tiles, 2, 3, (180, 120), *transforms))
    found = load_picture(tmp_path / "photo.heic").frames[0]
    assert found.shape == ((120, 180, 3) if orientation < 5 else (180, 120, 3))
    assert corners(found) == UPRIGHT[orientation]


def test_a_tile_that_is_missing_is_refused(tmp_path: Path) -> None:
    data = heic([cornered(64, 64)] * 4, 2, 2, (128, 128))
    (tmp_path / "photo.heic").write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"photo\.heic"):
        load_picture(tmp_path / "photo.heic")


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "avif"])
def test_transparent_parts_are_white(suffix: str, tmp_path: Path) -> None:
    image = np.zeros((48, 64, 4), np.uint8)
    image[:, :32] = (200, 0, 0, 255)
    image[:, 32:] = (0, 0, 0, 0)
    Image.fromarray(image).save(tmp_path / f"half.{suffix}")
    found = load_picture(tmp_path / f"half.{suffix}").frames[0].astype(int)
    assert np.abs(found[24, 8] - (200, 0, 0)).max() < 12 and found[24, 56].min() > 240


def test_half_transparent_colours_are_mixed_with_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 4), (100, 0, 0, 128), np.uint8)).save(tmp_path / "half.png")
    assert load_picture(tmp_path / "half.png").frames[0, 0, 0].tolist() == [177, 127, 127]


@pytest.mark.parametrize("suffix", ["webp", "png", "gif", "avif"])
def test_animations_are_videos(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"moving.{suffix}"
    pictures = [Image.fromarray(np.full((48, 64, 3), level, np.uint8)) for level in (40, 120, 200)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 300, 200])
    found, info = load_clip(path), probe(path)
    assert (found.fps, found.seconds, info.seconds, info.fps) == (10, 0.6, pytest.approx(0.6), 10)
    assert np.rint(found.frames.mean(axis=(1, 2, 3)) / 40).astype(int).tolist() == [1, 3, 3, 3, 5, 5]
    assert load_clip(path, fps=10, start=0.3, seconds=0.2).frames.mean(axis=(1, 2, 3)) == pytest.approx(
        [120, 200], abs=4
    )
    assert abs(load_picture(path).frames.mean() - 40) < 4


@pytest.mark.parametrize("suffix", ["webp", "png", "avif"])
def test_a_still_picture_is_no_video(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(cornered()).save(tmp_path / f"still.{suffix}")
    with pytest.raises(ValueError, match=rf"still\.{suffix} is not a video"):
        load_clip(tmp_path / f"still.{suffix}")


def test_a_large_picture_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 90_000), np.uint8)).save(tmp_path / "wide.png")
    assert load_picture(tmp_path / "wide.png").frames.shape == (1, 2, 90_000, 3)
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "huge.png")
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    (tmp_path / "huge.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"huge\.png"):
        load_picture(tmp_path / "huge.png")


def test_pixels_that_are_not_square_are_shown_as_they_look(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(2)
        container.mux(video.encode(av.VideoFrame.from_ndarray(cornered(), format="rgb24")))
        container.mux(video.encode())
    found = load_clip(path)
    assert found.frames.shape == (1, 48, 128, 3) and corners(found.frames[0]) == "rgby"
    square = load_clip(path, size=32).frames[0]
    assert square.shape == (32, 32, 3) and corners(square) == "rgby"


def test_a_size_that_changes_within_a_file_becomes_that_of_the_first_picture(tmp_path: Path) -> None:
    data = b""
    for width, height in ((64, 48), (96, 96)):
        with av.open(str(tmp_path / "part.h264"), "w", format="h264") as container:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            for _ in range(5):
                container.mux(video.encode(av.VideoFrame.from_ndarray(cornered(width, height), format="rgb24")))
            container.mux(video.encode())
        data += (tmp_path / "part.h264").read_bytes()
    (tmp_path / "both.h264").write_bytes(data)
    found = load_clip(tmp_path / "both.h264")
    assert found.frames.shape == (10, 48, 64, 3) and {corners(frame) for frame in found.frames} == {"rgby"}


@pytest.mark.parametrize(
    ("suffix", "settings", "size"),
    [
        ("jpg", {"dpi": (72, 144)}, (128, 48)),  # dots per inch: a pixel is twice as wide as high
        ("png", {"dpi": (72, 144)}, (128, 48)),
        ("jpg", {"dpi": (300, 300)}, (64, 48)),
        ("jpg", {"dpi": (72, 144), "orientation": 6}, (24, 64)),
        ("png", {"dpi": (1, 1000)}, (64, 48)),  # nobody has such pixels
    ],
)
def test_a_picture_whose_density_differs_has_square_pixels(
    suffix: str, settings: dict[str, object], size: tuple[int, int], tmp_path: Path
) -> None:
    path, exif = tmp_path / f"picture.{suffix}", Image.Exif()
    exif[0x0112] = settings.get("orientation", 1)
    Image.fromarray(cornered()).save(path, dpi=settings["dpi"], exif=exif, quality=95)
    found = load_picture(path).frames[0]
    assert found.shape == (size[1], size[0], 3)
    assert corners(found) == UPRIGHT[exif[0x0112]]


def test_a_picture_of_ffmpeg_keeps_the_aspect_that_it_was_written_with(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(cornered(), format="rgb24")))
        container.mux(stream.encode())
    assert load_picture(path).frames[0].shape == (48, 128, 3)
