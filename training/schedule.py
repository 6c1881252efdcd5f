"""How far a run is, and the learning rate there."""

from __future__ import annotations

from .config import TrainConfig


def share_done(step: int, seconds: float, steps: int, minutes: float) -> float:
    """Share of a run that is done: of its ``steps`` or its ``minutes`` (0: no limit), whichever end is nearer."""
    return max(step / steps, seconds / (60 * minutes) if minutes else 0.0)


def rate_factor(progress: float, step: int, config: TrainConfig) -> float:
    """Factor of the learning rate: linear warm-up, constant, then linear to zero over the last ``decay`` of the run."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return warm * min(1.0, max(0.0, 1 - progress) / max(config.decay, 1e-9))
