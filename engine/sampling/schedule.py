"""Time grids: the flow times of both modalities at every step (``docs/method.md`` sections 1 and 4).

A shared clock runs from 0 to 1 + lead; the video's time is the clock cut at 1, the audio's is the clock less ``lead``
cut at 0. With lead 0 both share their time (SyncFlow); with lead 1 the video is finished before the audio begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Flow times before every step and after the last: ``video``, ``audio`` (K + 1,) float64; 0 = noise, 1 = data."""

    video: np.ndarray
    audio: np.ndarray

    def __len__(self) -> int:
        return len(self.video) - 1

    def known_video(self) -> Schedule:
        """For a video that is given whole: the steps that only the video would take are left out."""
        keep = np.append(np.diff(self.audio) > 0, True)
        return Schedule(self.video[keep], self.audio[keep])

    def known_audio(self) -> Schedule:
        """For a sound that is given whole: the steps that only the audio would take are left out."""
        keep = np.append(np.diff(self.video) > 0, True)
        return Schedule(self.video[keep], self.audio[keep])

    def without_video(self) -> Schedule:
        """For a sound alone: the audio's steps, beside a video that stands still at 1."""
        keep = np.append(np.diff(self.audio) > 0, True)
        return Schedule(np.ones(int(keep.sum())), self.audio[keep])

    def without_audio(self) -> Schedule:
        """For a video alone: the video's steps, beside a sound that stands still at 1."""
        keep = np.append(np.diff(self.video) > 0, True)
        return Schedule(self.video[keep], np.ones(int(keep.sum())))

    def after(self, start: float) -> Schedule:
        """What is left of the grid from a flow time on, which becomes the first."""
        video, audio = np.maximum(self.video, start), np.maximum(self.audio, start)
        keep = np.append((np.diff(video) > 0) | (np.diff(audio) > 0), True)
        return Schedule(video[keep], audio[keep])


def schedule(steps: int, *, shift: float = 1.0, lead: float = 0.0, single: bool = False) -> Schedule:
    """``steps`` Euler steps for each modality, on a grid bent towards noise by ``shift`` (1 = even).

    t' = t / (t + shift * (1 - t)). The clock takes round(steps * (1 + lead)) steps. ``single`` rounds to single
    precision after every operation in the order of Open-Sora's ``timestep_transform``, whose results depend on it: its
    time runs to 1000, and its network reads the sines of that.
    """
    count = round(steps * (1 + lead))
    ahead = count - steps
    even = np.arange(steps + 1) / steps
    if single:
        noise, ratio = ((1 - even) * 1000).astype(np.float32) / np.float32(1000), np.float32(shift)
        bent = 1 - (ratio * noise / (1 + (ratio - 1) * noise) * 1000).astype(np.float64) / 1000
    else:
        bent = even / (even + shift * (1 - even))
    return Schedule(np.concatenate((bent, np.ones(ahead))), np.concatenate((np.zeros(ahead), bent)))
