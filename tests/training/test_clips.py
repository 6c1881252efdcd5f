"""Any folder of clips with captions as a data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from syncflow.engine.config import ModelConfig, SequenceConfig
from syncflow.engine.engine import bundled_model
from syncflow.engine.media import probe
from syncflow.engine.types import Clip
from syncflow.training.data import ClipFolder, clips, find_clips, render_impacts
from syncflow.training.recipes import WINDOWS, clip_folders

from ..engine.test_media_timing import write_video

TINY = SequenceConfig(seconds=1.0, width=32, height=32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of other shapes and rates: three seconds that brighten in time, and half a second."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    ramp = np.repeat(np.arange(30, dtype=np.uint8) * 8, 96 * 64 * 3).reshape(30, 64, 96, 3)
    Clip(ramp, np.linspace(0, 0.9, 3 * 44_100, dtype=np.float32), 10, 44_100).save(folder / "a.mp4")
    Clip(ramp[:12], np.zeros(0, np.float32), 24, 48_000).save(folder / "more" / "b.mp4")
    return folder


def copy(videos: Path, folder: Path) -> Path:
    (folder / "more").mkdir()
    for name in ("a.mp4", "more/b.mp4"):
        (folder / name).write_bytes((videos / name).read_bytes())
    return folder


def write_jsonl(folder: Path, *rows: object) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_three_ways_to_caption_give_the_same_samples(videos: Path, tmp_path: Path) -> None:
    copy(videos, tmp_path)
    (tmp_path / "a.txt").write_text("it brightens\n")
    (tmp_path / "more" / "b.txt").write_text("so does this")
    from_sidecars = list(ClipFolder(tmp_path, TINY))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,it brightens\nmore/b.mp4,so does this\n")
    from_csv = list(ClipFolder(tmp_path, TINY))
    write_jsonl(
        tmp_path,
        {"file_name": "a.mp4", "text": "it brightens", "events": [1]},
        {"file_name": "more/b.mp4", "text": "so does this"},
    )
    folder = ClipFolder(tmp_path, TINY)
    assert folder.entries[0].metadata == {"events": [1]}
    for samples in (from_sidecars, from_csv, list(folder)):
        assert [sample["caption"] for sample in samples] == ["it brightens", "so does this"]
        assert [sample["file_name"] for sample in samples] == ["a.mp4", "more/b.mp4"]
        for sample, reference in zip(samples, from_csv, strict=True):
            assert sample["frames"].shape == (16, 32, 32, 3) and sample["frames"].dtype == np.uint8
            assert sample["waveform"].shape == (48_000,) and sample["waveform"].dtype == np.float32
            assert (sample["frames"] == reference["frames"]).all()


@pytest.mark.slow
def test_random_windows_differ_by_epoch_stay_inside_and_keep_sound_with_picture(videos: Path, tmp_path: Path) -> None:
    copy(videos, tmp_path)
    write_jsonl(tmp_path, {"file_name": "a.mp4", "text": "it brightens"})
    folder = ClipFolder(tmp_path, TINY, window="random", seed=3)
    starts = []
    for epoch in range(6):
        folder.set_epoch(epoch)
        sample = folder[0]
        assert (sample["frames"] == folder[-1]["frames"]).all()
        seen = sample["frames"].mean(axis=(1, 2, 3)) / 80
        heard = sample["waveform"].reshape(16, -1).mean(axis=1) / 0.3
        assert np.abs(seen - heard).max() < 0.2
        assert np.ptp(seen) > 0.6
        starts.append(seen[0])
    assert np.ptp(starts) > 0.3
    assert ClipFolder(tmp_path, TINY)[0]["frames"][0].mean() < 8


def test_several_random_windows_of_every_video(videos: Path, tmp_path: Path) -> None:
    """Those of a seed, whoever asks and in whatever order."""
    copy(videos, tmp_path)
    rows = [{"file_name": name, "text": name} for name in ("a.mp4", "more/b.mp4")]
    write_jsonl(tmp_path, *rows)
    folder = ClipFolder(tmp_path, TINY, window="random", seed=3, windows=4)
    assert len(folder) == 8 and folder.is_longer()
    samples = list(folder)
    assert [sample["caption"] for sample in samples] == ["a.mp4"] * 4 + ["more/b.mp4"] * 4
    assert len({sample["frames"].tobytes() for sample in samples[:4]}) > 2
    assert len({sample["frames"].tobytes() for sample in samples[4:]}) == 1  # shorter than a window
    again = ClipFolder(tmp_path, TINY, window="random", seed=3, windows=4)
    for i in (6, 2, 0, -5):
        assert np.array_equal(again[i]["frames"], samples[i]["frames"])
    other = ClipFolder(tmp_path, TINY, window="random", seed=4, windows=4)
    assert any(not np.array_equal(other[i]["frames"], samples[i]["frames"]) for i in range(4))
    with pytest.raises(IndexError):
        folder[8]
    with pytest.raises(ValueError, match="windows is 0; it must be a whole number from 1 to 1000"):
        ClipFolder(tmp_path, TINY, windows=0)


def test_training_takes_random_windows_of_longer_videos(videos: Path, tmp_path: Path) -> None:
    copy(videos, tmp_path)
    write_jsonl(tmp_path, {"file_name": "a.mp4", "text": "it brightens"})
    preset = ModelConfig(sequence=TINY)
    (folder,) = clip_folders(tmp_path, preset, seed=5)
    assert (folder.window, folder.seed, len(folder)) == ("random", 5, 4)
    write_jsonl(tmp_path, {"file_name": "more/b.mp4", "text": "it is short"})
    (folder,) = clip_folders(tmp_path, preset)
    assert (folder.window, len(folder)) == ("first", 1)


def test_a_video_belongs_to_the_longest_length_that_it_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render_impacts(tmp_path, 5, seed=9, seconds=(1, 2, 1.8125), workers=1, progress=False)
    # containers round durations, half a millisecond up or down
    shorter = lambda path, **settings: replace(probe(path), seconds=probe(path).seconds - 5e-4)  # noqa: E731
    monkeypatch.setattr(clips, "probe", shorter)
    preset = ModelConfig(sequence=SequenceConfig(width=64, height=64))
    folders = clip_folders(tmp_path, preset, (20, 29, 32, 48))
    names = {folder.sequence.frames: [entry.path.stem[-1] for entry in folder.entries] for folder in folders}
    assert names == {32: ["1", "4"], 20: ["0", "3"], 29: ["2"]}
    assert next(iter(names)) == 32  # the preset's own length comes first
    assert [len(folder[0]["frames"]) for folder in folders] == [32, 20, 29]
    assert folders[2].sequence.padding == 3


def test_rendered_folder_is_a_data_set(tmp_path: Path) -> None:
    render_impacts(tmp_path, 2, seed=9, workers=1, progress=False)
    folder = ClipFolder(tmp_path, SequenceConfig(width=64, height=64))
    assert len(folder) == 2 and folder[1]["frames"].shape == (32, 64, 64, 3)
    assert folder.entries[1].metadata["events"]


def test_unusable_folders_are_named(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        ClipFolder(tmp_path / "missing", TINY)
    with pytest.raises(ValueError, match="holds no clips"):
        ClipFolder(tmp_path, TINY)
    copy(videos, tmp_path)
    with pytest.raises(ValueError, match=r"2 of the 2 videos in .* have no caption, the first is 'a\.mp4'"):
        ClipFolder(tmp_path, TINY)
    (tmp_path / "a.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not text in UTF-8"):
        ClipFolder(tmp_path, TINY)
    write_jsonl(tmp_path, {"file_name": "a.mp4", "text": "x"}, {"file_name": "c.mp4", "text": "x"})
    with pytest.raises(ValueError, match=r"line 2 names c\.mp4"):
        ClipFolder(tmp_path, TINY)
    for row in ({"file_name": "a.mp4"}, {"file_name": "a.mp4", "text": " "}, {"text": "x"}):
        write_jsonl(tmp_path, row)
        with pytest.raises(ValueError, match="line 1 needs a file_name and a text"):
            ClipFolder(tmp_path, TINY)
    write_jsonl(tmp_path, ["a.mp4"])
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        ClipFolder(tmp_path, TINY)
    (tmp_path / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        ClipFolder(tmp_path, TINY)
    with pytest.raises(ValueError, match="window is 'last'"):
        ClipFolder(tmp_path, TINY, window="last")  # type: ignore[arg-type]


def test_captions_may_begin_with_a_byte_order_mark(videos: Path, tmp_path: Path) -> None:
    """As spreadsheets and editors of Windows write them."""
    name = next(videos.glob("*.mp4")).name
    (tmp_path / name).write_bytes((videos / name).read_bytes())
    lists = {"a.csv": f"file_name,text\n{name},a ball\n", "a.jsonl": json.dumps({"file_name": name, "text": "a ball"})}
    for listed, text in lists.items():
        (tmp_path / listed).write_text(text, encoding="utf-8-sig")
        assert [entry.caption for entry in find_clips(tmp_path / listed)] == ["a ball"]
    sidecar = (tmp_path / name).with_suffix(".txt")
    sidecar.write_text("a ball", encoding="utf-8-sig")
    assert [entry.caption for entry in find_clips(tmp_path)] == ["a ball"]
    sidecar.write_text("eine grüne Kugel", encoding="latin-1")
    with pytest.raises(ValueError, match=r"\.txt is not text in UTF-8 \(.*at byte 7\)"):
        find_clips(tmp_path)


def test_lists_are_read_as_spreadsheets_write_them(videos: Path, tmp_path: Path) -> None:
    copy(videos, tmp_path)
    listed = tmp_path / "metadata.csv"
    listed.write_text('file_name,text\r\na.mp4,"a ""red"" ball,\r\nit bounces"\r\n', encoding="utf-8-sig", newline="")
    assert [clip["caption"] for clip in ClipFolder(tmp_path, TINY)] == ['a "red" ball,\r\nit bounces']
    listed.write_text("file_name,text\na.mp4,a red ball, it bounces\n")
    with pytest.raises(ValueError, match=r"line 2 has more values than columns; a text with a comma needs quotes"):
        ClipFolder(tmp_path, TINY)
    listed.write_text("file_name;text\na.mp4;a red ball\n")
    with pytest.raises(
        ValueError, match="line 2 needs a file_name and a text that are not empty; it has file_name;text"
    ):
        ClipFolder(tmp_path, TINY)


def test_a_damaged_clip_is_named_when_it_is_read(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes((videos / "a.mp4").read_bytes()[:2000])
    write_jsonl(tmp_path, {"file_name": "a.mp4", "text": "x"})
    with pytest.raises(ValueError, match=r"a\.mp4"):
        ClipFolder(tmp_path, TINY)[0]


@pytest.mark.slow
def test_any_footage_trains_and_what_cannot_is_said(videos: Path, tmp_path: Path, run) -> None:
    """Torn, empty, no media, without sound, of changing rate, upright, mono, stereo, 5.1, of two frames."""
    data = tmp_path / "data"
    data.mkdir()
    whole = (videos / "a.mp4").read_bytes()
    for name, content in {"torn": whole[: len(whole) // 2], "empty": b"", "text": b"no media"}.items():
        (data / f"{name}.mp4").write_bytes(content)
    write_video(data / "changing.mkv", [0, 0.1, 0.9, 1.0, 2.4], seconds=2.5)
    write_video(data / "two frames.mp4", [0, 0.04])
    frames = np.random.default_rng(0).integers(0, 255, (40, 96, 54, 3)).astype(np.uint8)
    Clip(frames, np.zeros(0, np.float32), 20, 48_000).save(data / "silent.mp4")
    for layout in ("mono", "stereo", "5.1"):
        write_video(data / f"{layout}.mkv", [0, 1], seconds=2, sound=2, layout=layout)
    for path in [*data.iterdir()]:
        path.with_suffix(".txt").write_text("a ball")
    code, _, err = run("train", data, "--run", tmp_path / "run", "--stage", "video", "--model", bundled_model(),
                         "--steps", 1, "--batch", 2)  # fmt: skip
    assert code == 0, err
    assert "3 of 9 videos cannot be read and are left out" in err
    (index,) = (tmp_path / "run" / "latents").glob("*/index.json")
    found = json.loads(index.read_text())
    assert set(found["skipped"]) == {"torn.mp4", "empty.mp4", "text.mp4"} and len(found["captions"]) == 6 * WINDOWS
    assert (tmp_path / "run" / "model" / "manifest.json").is_file()
