"""The latent cache: encoded once, again when its sources change, never half."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from syncflow.engine.config import SequenceConfig
from syncflow.training.data import latents as latents_module
from syncflow.training.data.clips import ClipEntry, UnreadableClip
from syncflow.training.data.latents import cached_latents, open_latents

SEQUENCE = SequenceConfig(seconds=0.5, width=16, height=32, fps=8, sample_rate=8000, audio_hop=800)
SHAPE = (SEQUENCE.frames, SEQUENCE.height, SEQUENCE.width, 3)


@dataclass
class Clips:
    """Stands in for a folder of clips: clip i is of the value i."""

    path: Path
    names: tuple[str, ...] = ("a", "b", "c", "d", "e")
    word: str = "clip"
    window: str = "first"
    windows: int = 1
    seed: int = 0
    sequence: SequenceConfig = SEQUENCE

    @property
    def entries(self):
        return [ClipEntry(self.path / f"{name}.mp4", f"{self.word} {name}") for name in self.names]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        frames, wave = np.full(SHAPE, index, np.uint8), np.full(SEQUENCE.samples, index / 10, np.float32)
        return {"frames": frames, "waveform": wave, "caption": f"{self.word} {self.names[index]}", "file_name": ""}

    def read(self, index):
        name = self.names[index]
        return UnreadableClip(f"{name}.mp4", f"{name}.mp4 is torn") if name.startswith("torn") else self[index]


class Codec(nn.Module):
    """Stands in for both codecs: the first value of a clip times a weight, everywhere."""

    def __init__(self, channels, shape):
        super().__init__()
        self.channels, self.shape = channels, shape
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        first = x.flatten(1)[:, 0].float() * self.weight
        return first.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)


@pytest.fixture
def clips(tmp_path):
    return Clips(tmp_path / "clips")


@pytest.fixture
def codecs():
    return Codec(2, (2, 1, 4, 2)), Codec(3, (SEQUENCE.audio_tokens, 3))


def cached(clips, cache, codecs, sequence=SEQUENCE):
    return cached_latents(replace(clips, sequence=sequence), cache, *codecs, batch=2, threads=1)


def test_latents_are_those_of_the_codecs(clips, tmp_path, codecs):
    latents = cached(clips, tmp_path / "cache", codecs)
    assert len(latents) == 5
    assert latents.video.shape == (5, 2, 1, 4, 2)
    assert latents.audio.shape == (5, SEQUENCE.audio_tokens, 3)
    assert latents.video.dtype == latents.audio.dtype == np.float16
    assert latents.captions == [f"clip {name}" for name in clips.names]
    assert latents.fps == 8
    for i in range(5):
        assert (latents.video[i] == i).all()
        np.testing.assert_allclose(latents.audio[i], i / 10, rtol=1e-3)


def test_a_cache_is_used_again(clips, tmp_path, codecs):
    first = cached(clips, tmp_path / "cache", codecs)
    calls = [codec.calls for codec in codecs]
    second = cached(clips, tmp_path / "cache", codecs)
    opened = open_latents(tmp_path / "cache")
    assert [codec.calls for codec in codecs] == calls
    for other in (second, opened):
        assert np.array_equal(first.video, other.video)
        assert np.array_equal(first.audio, other.audio)
        assert (first.captions, first.fps) == (other.captions, other.fps)


@pytest.mark.parametrize("which", [0, 1], ids=["video codec", "audio codec"])
def test_another_codec_encodes_again(which, clips, tmp_path, codecs):
    cached(clips, tmp_path / "cache", codecs)
    with torch.no_grad():
        codecs[which].weight.fill_(2)
    latents = cached(clips, tmp_path / "cache", codecs)
    value = (latents.video, latents.audio)[which][3]
    np.testing.assert_allclose(value, 2 * (3, 0.3)[which], rtol=1e-3)


def test_other_clips_encode_again(clips, tmp_path, codecs):
    cached(clips, tmp_path / "cache", codecs)
    latents = cached(replace(clips, names=("a", "b", "x")), tmp_path / "cache", codecs)
    assert latents.captions == ["clip a", "clip b", "clip x"]
    assert len(latents.video) == 3


def test_other_captions_of_the_same_clips_are_taken(clips, tmp_path, codecs):
    cached(clips, tmp_path / "cache", codecs)
    latents = cached(replace(clips, word="film"), tmp_path / "cache", codecs)
    assert latents.captions == [f"film {name}" for name in clips.names]


def test_another_file_under_the_same_name_encodes_again(clips, tmp_path, codecs):
    clips.path.mkdir()
    (clips.path / "a.mp4").write_bytes(b"one")
    cached(clips, tmp_path / "cache", codecs)
    calls = codecs[0].calls
    (clips.path / "a.mp4").write_bytes(b"another")
    cached(clips, tmp_path / "cache", codecs)
    assert codecs[0].calls > calls


def test_latents_that_are_not_finite_are_refused(clips, tmp_path, codecs):
    with torch.no_grad():
        codecs[0].weight.fill_(30_000)  # clip c has the value 2, so that its latents have 60 000, and those of d 90 000
    with pytest.raises(ValueError, match=r"the codecs encode .* as latents that are not finite in half precision"):
        cached(clips, tmp_path / "cache", codecs)
    assert not (tmp_path / "cache" / "index.json").exists()


def test_an_interruption_between_two_files_leaves_no_cache(clips, tmp_path, codecs, monkeypatch):
    """The index of the older files does not stand beside a newer one."""
    cache = tmp_path / "cache"
    cached(clips, cache, codecs)
    move = latents_module.os.replace

    def stop(source, target):
        if str(target).endswith("audio.npy"):
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latents_module.os, "replace", stop)
        cached(replace(clips, names=("x",)), cache, codecs)
    assert cached(clips, cache, codecs).captions == [f"clip {name}" for name in clips.names]
    assert len(open_latents(cache).video) == 5


def test_another_sequence_encodes_again(clips, tmp_path, codecs):
    cached(clips, tmp_path / "cache", codecs)
    calls = codecs[0].calls
    cached(clips, tmp_path / "cache", codecs, SEQUENCE.replace(seconds=0.45))
    assert codecs[0].calls > calls


def test_an_interrupted_cache_is_no_cache(clips, tmp_path, codecs, monkeypatch):
    cache = tmp_path / "cache"
    encode = codecs[1].encode

    def stop(x):
        if codecs[1].calls:
            raise KeyboardInterrupt
        return encode(x)

    with monkeypatch.context() as patch:
        patch.setattr(codecs[1], "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            cached(clips, cache, codecs)
    assert not (cache / "index.json").exists()
    assert not (cache / "video.npy").exists()
    latents = cached(clips, cache, codecs)
    assert (latents.video[4] == 4).all()
    assert not list(cache.glob("*.part*"))


@pytest.mark.parametrize("change", [{"window": "random"}, {"windows": 2}, {"seed": 1}], ids=str)
def test_other_windows_are_encoded_anew(clips, tmp_path, codecs, change):
    cached(clips, tmp_path / "cache", codecs)
    calls = codecs[0].calls
    cached(clips, tmp_path / "cache", codecs)
    assert codecs[0].calls == calls
    cached(replace(clips, **change), tmp_path / "cache", codecs)
    assert codecs[0].calls > calls


def test_what_cannot_be_read_is_left_out_said_and_listed(tmp_path, codecs, capsys):
    names = ("torn", "a", "torn too", "b", "c")
    latents = cached_latents(Clips(tmp_path, names), tmp_path / "cache", *codecs, batch=2, threads=1)
    assert latents.captions == ["clip a", "clip b", "clip c"] and len(latents) == 3
    assert latents.video[:, 0, 0, 0, 0].tolist() == [1, 3, 4] and len(latents.audio) == 3
    assert latents.skipped == {"torn.mp4": "torn.mp4 is torn", "torn too.mp4": "torn too.mp4 is torn"}
    assert "2 of 5 videos cannot be read and are left out" in capsys.readouterr().err
    assert open_latents(tmp_path / "cache").skipped == latents.skipped
    with pytest.raises(ValueError, match="none of the 1 videos of"):
        cached_latents(Clips(tmp_path, ("torn",)), tmp_path / "other", *codecs, threads=1)
