"""The sound of a scene by modal synthesis: every impact rings damped modes of the object and of what it strikes.

Pitch falls with the size of the object, loudness grows with the speed of the impact, the onset is exact to the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .looks import SIZES
from .scene import BALL, Event, Scene

FULL_SPEED = 190.0
PEAK = 0.9
BURST_SECONDS = 0.005
REFERENCE_RADIUS = SIZES["medium"]


@dataclass(frozen=True)
class Modes:
    """Resonances: fundamental (Hz), ratios and gains of the modes, time (s) in which the first decays by 60 dB, upper
    ones faster.
    """

    pitch: float
    ratios: tuple[float, ...]
    gains: tuple[float, ...]
    decay: float


OBJECTS = {
    "rubber": Modes(150.0, (1.0, 1.6, 2.3, 3.1), (1.0, 0.5, 0.3, 0.15), 0.14),
    "wood": Modes(480.0, (1.0, 2.57, 4.0, 5.8), (1.0, 0.6, 0.35, 0.2), 0.12),
    "metal": Modes(1150.0, (1.0, 1.58, 2.41, 3.24, 4.47), (0.8, 1.0, 0.7, 0.5, 0.3), 0.35),
    "glass": Modes(2600.0, (1.0, 1.72, 2.6, 3.5), (1.0, 0.7, 0.4, 0.25), 0.26),
}
FLOORS: dict[str, tuple[Modes, float]] = {
    "stone": (Modes(700.0, (1.0, 2.3), (0.25, 0.2), 0.04), 9000.0),
    "metal": (Modes(420.0, (1.0, 2.76, 5.4), (0.35, 0.3, 0.2), 0.20), 6000.0),
    "wood": (Modes(110.0, (1.0, 1.9), (0.6, 0.4), 0.12), 2500.0),
}
SECOND_PITCH = 1.12  # of a second ball, which is not made quite like the first
SECOND_CUTOFF = 9000.0


def render_sound(scene: Scene) -> np.ndarray:
    """Waveform float32 (M,), silent but for the impacts, peak below 0.95."""
    samples = round(round(scene.seconds * scene.fps) / scene.fps * scene.sample_rate)
    sound = np.zeros(samples)
    rng = np.random.default_rng(scene.noise_seed)
    for event in scene.events():
        onset = round(event.time * scene.sample_rate)
        strike = _strike(scene, event, rng)[: samples - onset]
        sound[onset : onset + len(strike)] += strike
    return (PEAK * np.tanh(sound)).astype(np.float32)


def _strike(scene: Scene, event: Event, rng: np.random.Generator) -> np.ndarray:
    """One impact from its first sample on: ringing, and a burst of noise through the one-pole low-pass of
    what is struck."""
    from scipy.signal import lfilter

    modes = OBJECTS[scene.look.material]
    pitch = modes.pitch * REFERENCE_RADIUS / scene.radius
    if event.surface == BALL:
        struck, struck_pitch, cutoff = modes, pitch * SECOND_PITCH, SECOND_CUTOFF
    else:
        struck, cutoff = FLOORS[event.surface]
        struck_pitch = struck.pitch
    t = np.arange(int(1.1 * max(modes.decay, struck.decay) * scene.sample_rate)) / scene.sample_rate
    ring = _ring(modes, pitch, t) + 0.7 * _ring(struck, struck_pitch, t)
    smoothing = np.exp(-2 * np.pi * cutoff / scene.sample_rate)
    burst = rng.standard_normal(len(t)) * np.exp(-t / BURST_SECONDS)
    attack = lfilter([1 - smoothing], [1, -smoothing], burst)
    attack /= np.abs(attack).max()
    return (event.speed / FULL_SPEED) * (0.8 * ring + 0.5 * attack)


def _ring(modes: Modes, pitch: float, t: np.ndarray) -> np.ndarray:
    """Sum of damped sines, gains adding up to 1."""
    total = np.zeros_like(t)
    for ratio, gain in zip(modes.ratios, modes.gains, strict=True):
        decay = modes.decay / (1 + 0.3 * (ratio - 1))
        total += gain * np.exp(-6.91 * t / decay) * np.sin(2 * np.pi * pitch * ratio * t)
    return total / sum(modes.gains)
