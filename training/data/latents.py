"""Codec latents of a clip folder, encoded once and kept on disk.

A cache is a folder: ``video.npy`` (N, C_v, T, H, W) and ``audio.npy`` (N, A, C_a) in float16 and ``index.json`` with
the captions, what the cache was made from, and the files that could not be read. It is rewritten when the clips, their
captions, the sequence or a codec change. The arrays may have more rows than there are captions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...engine.codecs import AudioCodec, VideoCodec
from ...engine.progress import progress_bar
from ...engine.replacement import replacement
from .clips import ClipFolder, ClipSample, UnreadableClip

SCHEMA = 3  # of the index


@dataclass(frozen=True)
class LatentSet:
    """Memory-mapped latents and their captions; ``frame_times`` (T,) as in ``SequenceConfig``. ``skipped``: files that
    could not be read, and why.
    """

    video: np.ndarray
    audio: np.ndarray
    captions: list[str]
    fps: float
    frame_times: tuple[float, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)


def fingerprint(clips: ClipFolder, *modules: torch.nn.Module) -> str:
    """Changes with the list of clips, their captions, sizes and windows, the sequence and every codec weight."""
    digest = hashlib.sha256(json.dumps({"schema": SCHEMA} | clips.sequence.to_dict(), sort_keys=True).encode())
    listed = [(entry.name(clips.path), entry.caption, entry.size) for entry in clips.entries]
    digest.update(json.dumps(listed).encode())
    digest.update(f"{clips.window} {clips.windows} {clips.seed}".encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _windows(clips: ClipFolder, ahead: int, threads: int) -> Iterator[ClipSample | UnreadableClip]:
    """All windows in order, up to ``ahead`` of them read before they are asked for.

    Threads will do, since other processes read the files; a process that is forked from this one may crash.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[ClipSample | UnreadableClip]] = deque()
        for index in range(len(clips)):
            waiting.append(pool.submit(clips.read, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def cached_latents(
    clips: ClipFolder,
    cache: Path,
    video_codec: VideoCodec,
    audio_codec: AudioCodec,
    *,
    batch: int = 16,
    threads: int = 2,
) -> LatentSet:
    """The latents of all clips of one length, from the cache when it fits, else encoded now with a progress bar.

    Files that cannot be read are left out, said, and listed in ``index.json``. Raises ``ValueError`` where none can,
    and for latents that are not finite.
    """
    sequence = clips.sequence
    index_file = cache / "index.json"
    wanted = fingerprint(clips, video_codec, audio_codec)
    if index_file.is_file() and json.loads(index_file.read_text())["fingerprint"] == wanted:
        return open_latents(cache)
    cache.mkdir(parents=True, exist_ok=True)
    count = len(clips)
    channels = (video_codec.channels, audio_codec.channels)
    shape = (sequence.latent_frames, sequence.latent_height, sequence.latent_width)
    video = _create(cache / "video.part.npy", (count, channels[0], *shape))
    audio = _create(cache / "audio.part.npy", (count, sequence.audio_tokens, channels[1]))
    captions: list[str] = []
    skipped: dict[str, str] = {}
    windows = _windows(clips, batch, threads)
    with (
        torch.inference_mode(),
        progress_bar(total=count, desc=f"encoding clips of {sequence.frames} frames", unit="clip") as bar,
    ):
        while items := list(islice(windows, batch)):
            bar.update(len(items))
            skipped |= {item.file_name: item.reason for item in items if isinstance(item, UnreadableClip)}
            samples = [item for item in items if not isinstance(item, UnreadableClip)]
            if not samples:
                continue
            rows = slice(len(captions), len(captions) + len(samples))
            frames = torch.from_numpy(np.stack([sample["frames"] for sample in samples]))
            waves = torch.from_numpy(np.stack([sample["waveform"] for sample in samples]))
            video[rows] = _half(video_codec.encode(frames), samples)
            audio[rows] = _half(audio_codec.encode(waves), samples)
            captions += [sample["caption"] for sample in samples]
    if skipped:
        first = next(iter(skipped.values()))
        if not captions:
            raise ValueError(f"none of the {len(skipped)} videos of {clips.path} can be read; the first: {first}")
        tqdm.write(
            f"{len(skipped)} of {len(clips.entries)} videos cannot be read and are left out; {index_file} lists them, "
            f"the first: {first}",
            file=sys.stderr,
        )
    index_file.unlink(missing_ok=True)  # which is that of the files that are replaced
    for name, array in (("video", video), ("audio", audio)):
        array.flush()
        os.replace(cache / f"{name}.part.npy", cache / f"{name}.npy")
    index = {"fingerprint": wanted, "fps": sequence.fps, "frame_times": sequence.frame_times}
    with replacement(index_file) as part:
        part.write_text(json.dumps(index | {"captions": captions, "skipped": skipped}))
    return open_latents(cache)


def open_latents(cache: Path) -> LatentSet:
    """A cache that is already there."""
    index = json.loads((cache / "index.json").read_text())
    captions = index["captions"]
    video, audio = (np.load(cache / f"{name}.npy", mmap_mode="r")[: len(captions)] for name in ("video", "audio"))
    return LatentSet(video, audio, captions, index["fps"], tuple(index["frame_times"]), index["skipped"])


def _half(latents: torch.Tensor, samples: Sequence[ClipSample]) -> np.ndarray:
    """Latents of ``samples`` in float16."""
    found = latents.half()
    finite = found.flatten(1).isfinite().all(1).tolist()
    if not all(finite):
        name = samples[finite.index(False)]["file_name"]
        raise ValueError(f"the codecs encode {name} as latents that are not finite in half precision; train them again")
    return found.numpy()


def _create(file: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
