"""WebDataset shards as a data set: read as the folder that they were written from, whatever is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from syncflow.engine.config import SequenceConfig
from syncflow.engine.engine import bundled_model
from syncflow.engine.types import Clip
from syncflow.training.data import ClipFolder, UnreadableClip, find_clips
from syncflow.training.data.shards import read_shard, shard_files, write_shards

TINY = SequenceConfig(seconds=1.0, width=32, height=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of other brightness and length, the longest 2 s."""
    path = tmp_path_factory.mktemp("folder")
    rows = []
    for i, frames in enumerate((8, 20, 32)):
        pictures = (
            np.full((frames, 32, 32, 3), 60 * (i + 1), np.uint8)
            + np.arange(frames, dtype=np.uint8)[:, None, None, None]
        )
        Clip(pictures, np.linspace(0, 0.2 * (i + 1), frames * 3000, dtype=np.float32), 16, 48_000).save(
            path / f"{i}.mp4"
        )
        rows.append({"file_name": f"{i}.mp4", "text": f"clip {i}", "events": [i]})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def same(first: list, second: list) -> bool:
    return all(
        a["caption"] == b["caption"]
        and np.array_equal(a["frames"], b["frames"])
        and np.array_equal(a["waveform"], b["waveform"])
        for a, b in zip(first, second, strict=True)
    )


def test_shards_are_the_clips_that_they_were_written_from(folder: Path, tmp_path: Path) -> None:
    shards = write_shards(find_clips(folder), tmp_path / "shards", 2)
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar"]
    with tarfile.open(shards[1]) as tar:
        assert tar.getnames() == ["000002.mp4", "000002.txt", "000002.json"]
    expected = list(ClipFolder(folder, TINY, window="random", seed=1, windows=2))
    for source in (tmp_path / "shards", str(tmp_path / "shards" / "{000000..000001}.tar"), shards):
        found = ClipFolder(source, TINY, window="random", seed=1, windows=2)
        assert found.entries[2].metadata == {"events": [2]}
        assert same(list(found), expected)
    assert found[0]["file_name"] == "000000.tar/000000.mp4"
    assert len(find_clips(shards[1])) == 1
    again = write_shards(find_clips(shards), tmp_path / "again", 2)
    assert [shard.read_bytes() for shard in again] == [shard.read_bytes() for shard in shards]


def test_captions_stand_in_text_or_json(folder: Path, tmp_path: Path) -> None:
    video = (folder / "0.mp4").read_bytes()
    members = {
        "a/x.mp4": video,
        "a/x.txt": b" a ball\n",
        "y.json": b'{"caption": "a cup", "source": 3}',
        "y.MP4": video,
        "z.webm": video,
        "z.json": b'{"text": "rain"}',
        "thumbnail.jpg": b"no clip",
        "gone.txt": b"a video that could not be fetched",
    }
    clips, fault = read_shard(write_tar(tmp_path / "s.tar", members), (".mp4", ".webm"))
    assert not fault
    assert [(clip.name, clip.caption) for clip in clips] == [
        ("a/x.mp4", "a ball"),
        ("y.MP4", "a cup"),
        ("z.webm", "rain"),
    ]
    assert clips[1].metadata == {"source": 3}
    assert clips[0].member.read() == video


def test_the_caption_of_a_text_goes_before_that_of_metadata(folder: Path, tmp_path: Path) -> None:
    """In any order, so that shards of a list with such a column have its captions."""
    video, described = (folder / "0.mp4").read_bytes(), b'{"caption": "long", "text": "longer"}'
    members = {
        "a.txt": b"short",
        "a.json": described,
        "a.mp4": video,
        "b.json": described,
        "b.txt": b"\xef\xbb\xbfshort",
    }
    clips, _ = read_shard(write_tar(tmp_path / "s.tar", members | {"b.mp4": video}), (".mp4",))
    assert [clip.caption for clip in clips] == ["short", "short"]
    written = write_shards(find_clips(tmp_path / "s.tar"), tmp_path / "out")
    for entry in find_clips(written):
        assert (entry.caption, entry.metadata) == ("short", {"caption": "long", "text": "longer"})


def test_shards_are_not_mixed_with_others(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_shards(find_clips(folder), out, 1)
    assert write_shards(find_clips(folder), out, 1) == written
    with pytest.raises(ValueError, match=r"out holds other shards \(000001.tar\); choose another folder"):
        write_shards(find_clips(folder), out, 1000)
    with pytest.raises(ValueError, match=r"out holds other shards \(000000.tar\); choose another folder"):
        write_shards(find_clips(out), out, 1)  # the shards that are read
    assert len(find_clips(out)) == len(written)


def test_a_clip_without_a_caption_is_counted_and_left_out(folder: Path, tmp_path: Path) -> None:
    video = (folder / "0.mp4").read_bytes()
    members = {"a.mp4": video, "b.mp4": video, "b.json": b"{not JSON", "c.mp4": video, "c.txt": b"a ball"}
    clips = ClipFolder(write_tar(tmp_path / "s.tar", members), TINY)
    first, second, third = (clips.read(i) for i in range(3))
    assert isinstance(first, UnreadableClip) and first.file_name == "s.tar/a.mp4"
    assert isinstance(second, UnreadableClip) and second.reason.endswith("b.mp4 has no caption")
    assert not isinstance(third, UnreadableClip)


def test_damage_is_of_the_clip_or_of_what_follows(folder: Path, tmp_path: Path) -> None:
    video = (folder / "2.mp4").read_bytes()
    members = {f"{i}{suffix}": content for i in range(3) for suffix, content in ((".txt", b"a ball"), (".mp4", video))}
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        places = {info.name: info.offset_data for info in tar}
    torn = bytearray(whole)
    torn[places["1.mp4"] : places["1.mp4"] + 3000] = bytes(3000)
    (tmp_path / "torn.tar").write_bytes(torn)
    (tmp_path / "cut.tar").write_bytes(whole[: places["1.mp4"] + 2000])
    header = bytearray(whole)
    header[places["1.txt"] - 512 : places["1.txt"] - 200] = b"\xff" * 312
    (tmp_path / "header.tar").write_bytes(header)
    (tmp_path / "no tar.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "empty.tar").write_bytes(b"")
    read = {}
    for name in ("torn", "cut", "header"):
        clips = ClipFolder([tmp_path / f"{name}.tar"], TINY)
        read[name] = [clips.read(i) for i in range(len(clips))]
    reasons = {name: [getattr(one, "reason", "") for one in found] for name, found in read.items()}
    assert [bool(reason) for reason in reasons["torn"]] == [False, True, False]
    assert "torn.tar/1.mp4" in reasons["torn"][1] and "syncflow-clip-" not in reasons["torn"][1]
    assert [bool(reason) for reason in reasons["cut"]] == [False, True, True]
    assert "cut.tar is damaged, and clips of it are missing" in reasons["cut"][2]
    assert reasons["header"][0] == "" and len(reasons["header"]) == 2
    assert f"header.tar is damaged at byte {places['1.txt'] - 512}" in reasons["header"][1]
    for name in ("no tar", "empty"):
        with pytest.raises(ValueError, match=f"{name}.tar hold no captioned clips; the first: .*{name}.tar is damaged"):
            find_clips(tmp_path / f"{name}.tar")


def test_ranges_and_what_is_missing(tmp_path: Path) -> None:
    for name in ("08", "09", "10", "a1-2"):
        write_tar(tmp_path / f"{name}.tar", {})
    names = lambda pattern: [file.name for file in shard_files(tmp_path / pattern)]  # noqa: E731
    assert names("{08..10}.tar") == ["08.tar", "09.tar", "10.tar"]
    assert names("a{1..1}-{2..2}.tar") == ["a1-2.tar"]
    assert names("") == ["08.tar", "09.tar", "10.tar", "a1-2.tar"]
    assert names("clips.jsonl") == []
    with pytest.raises(ValueError, match=r"11\.tar is not a file; it should be a shard of clips"):
        names("{08..11}.tar")
    with pytest.raises(ValueError, match="one folder, one list, or shards"):
        find_clips([tmp_path, tmp_path / "08.tar"])
    with pytest.raises(ValueError, match="hold no captioned clips"):
        find_clips(tmp_path)


@pytest.mark.slow
def test_shards_train(folder: Path, tmp_path: Path, run) -> None:
    code, out, err = run("data", "shards", folder, tmp_path / "shards", "--clips-per-shard", 2)
    assert code == 0, err
    assert "3 clips in 2 shards" in out
    cut = (tmp_path / "shards" / "000001.tar").read_bytes()[:2000]
    (tmp_path / "shards" / "000001.tar").write_bytes(cut)
    shards = [tmp_path / "shards" / f"00000{i}.tar" for i in range(2)]
    code, _, err = run("train", *shards, "--run", tmp_path / "run", "--stage", "video", "--model", bundled_model(),
                       "--steps", 1, "--batch", 2)  # fmt: skip
    assert code == 0, err
    assert "videos cannot be read and are left out" in err
    (index,) = (tmp_path / "run" / "latents").glob("*/index.json")
    found = json.loads(index.read_text())
    assert set(found["captions"]) == {"clip 0", "clip 1"} and "000001.tar" in found["skipped"]
