"""Published sets of clips as they are distributed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from syncflow.engine.config import SequenceConfig
from syncflow.engine.types import Clip
from syncflow.training.data import ClipFolder
from syncflow.training.data.published import list_published


def write_videos(folder: Path, *names: str) -> None:
    for k, name in enumerate(names):
        frames = np.full((8, 32, 32, 3), 20 * k, np.uint8)
        Clip(frames, np.zeros(8000, np.float32), 16, 16_000).save(folder / name)


def listed(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_vggsound(tmp_path: Path) -> None:
    write_videos(
        tmp_path, "video/-abcdefghij_000030.mp4", "video/kkkkkkkkkkk_000001.mp4", "video/kkkkkkkkkkk_000120.mp4"
    )
    (tmp_path / "vggsound.csv").write_text(
        '-abcdefghij,30,"dog barking, loudly",train\nkkkkkkkkkkk,1,hammering nails,train\n'
        "kkkkkkkkkkk,120,hammering nails,test\nmissing____,5,thunder,test\n"
    )
    found = list_published(tmp_path, "vggsound")
    assert (found.train, found.test, found.missing, found.leaked) == (1, 1, 1, 1)
    assert listed(tmp_path / "train.jsonl") == [
        {"file_name": "video/-abcdefghij_000030.mp4", "text": "dog barking, loudly"}
    ]
    folder = ClipFolder(tmp_path / "test.jsonl", SequenceConfig(seconds=0.5, width=32, height=32))
    (sample,) = folder
    assert (sample["file_name"], sample["caption"]) == ("video/kkkkkkkkkkk_000120.mp4", "hammering nails")
    assert abs(int(sample["frames"][0, 0, 0, 0]) - 40) <= 2
    (tmp_path / "vggsound.csv").write_text("a,b,c\n")
    with pytest.raises(ValueError, match="line 1 is not an id, a start in seconds, a label and train or test"):
        list_published(tmp_path, "vggsound")


def test_greatest_hits(tmp_path: Path) -> None:
    stems = ("2015-02-16-16-49-06", "2015-03-26-02-01-44")
    write_videos(tmp_path / "vis-data", *(f"{stem}_denoised.mp4" for stem in stems))
    for stem, split in zip(stems, ("train", "test"), strict=True):
        (tmp_path / f"{split}.txt").write_text(stem + "\n")
    (tmp_path / "vis-data" / f"{stems[0]}_times.txt").write_text(
        "0.733333 None scratch deform\n1.5 metal hit static\n2.25 wood hit static\n3 metal hit static\nx\n"
    )
    found = list_published(tmp_path, "greatest-hits")
    assert (found.train, found.test, found.missing, found.leaked) == (1, 1, 0, 0)
    (row,) = listed(tmp_path / "train.jsonl")
    assert row["text"] == "a drumstick hits metal and wood"
    assert row["events"][1] == {"time": 1.5, "material": "metal", "motion": "hit"} and len(row["events"]) == 4
    assert listed(tmp_path / "test.jsonl")[0]["text"] == "a drumstick hits things"
    assert ClipFolder(tmp_path / "train.jsonl", SequenceConfig(width=32, height=32)).entries[0].metadata["events"]


def test_avsync15(tmp_path: Path, run) -> None:
    write_videos(tmp_path / "videos", "dog_barking/aaaaaaaaaaa_1.mp4", "dog_barking/bbbbbbbbbbb_1.mp4",
                 "playing_cello/aaaaaaaaaaa_7.mp4")  # fmt: skip
    (tmp_path / "train.txt").write_text("dog_barking/aaaaaaaaaaa_1.mp4\ndog_barking/bbbbbbbbbbb_1.mp4\n")
    (tmp_path / "test.txt").write_text("playing_cello/aaaaaaaaaaa_7.mp4\n")
    code, out, err = run("data", "list", tmp_path, "--set", "avsync15")
    assert code == 0, err
    assert "1 clips to train on and 1 to test with; 0 that the set names are missing, 1 were left out" in out
    assert [row["text"] for row in listed(tmp_path / "train.jsonl")] == ["dog barking"]
    (tmp_path / "test.txt").write_text("cello.mp4\n")
    with pytest.raises(ValueError, match="line 1 is not class/name"):
        list_published(tmp_path, "avsync15")


def test_equal_names_in_two_classes_are_two_clips(tmp_path: Path) -> None:
    names = ("dog_barking/aaaaaaaaaaa_1.mp4", "lions_roaring/aaaaaaaaaaa_1.mp4")
    write_videos(tmp_path / "videos", *names)
    (tmp_path / "train.txt").write_text("".join(f"{name}\n" for name in names))
    (tmp_path / "test.txt").write_text("")
    list_published(tmp_path, "avsync15")
    found = {row["text"]: row["file_name"] for row in listed(tmp_path / "train.jsonl")}
    assert found == {"dog barking": f"videos/{names[0]}", "lions roaring": f"videos/{names[1]}"}
    (tmp_path / "videos" / names[1]).unlink()  # all videos in another folder
    (tmp_path / "videos" / names[0]).rename(tmp_path / "aaaaaaaaaaa_1.mp4")
    list_published(tmp_path, "avsync15")
    assert {row["file_name"] for row in listed(tmp_path / "train.jsonl")} == {"aaaaaaaaaaa_1.mp4"}


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no reader for 'kinetics'; there are vggsound"):
        list_published(tmp_path, "kinetics")
    with pytest.raises(ValueError, match=r"has no vggsound\.csv"):
        list_published(tmp_path, "vggsound")
    with pytest.raises(ValueError, match="is not a folder"):
        list_published(tmp_path / "none", "vggsound")
    (tmp_path / "vggsound.csv").write_text("a,1,b,train\n")
    with pytest.raises(ValueError, match="has none of the 1 videos"):
        list_published(tmp_path, "vggsound")
    assert not (tmp_path / "train.jsonl").exists()
    (tmp_path / "clips.txt").write_text("")
    with pytest.raises(ValueError, match="is no list of clips"):
        ClipFolder(tmp_path / "clips.txt", SequenceConfig())
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match="lists no clips"):
        ClipFolder(tmp_path / "none.jsonl", SequenceConfig())
