"""Generate a clip, a batch, and a clip with a callback after every step: ``python examples/generate.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

from syncflow import Engine, Request
from syncflow.engine.types import Latents


def main(out: Path) -> None:
    """Write four clips into ``out``."""
    engine = Engine.from_pretrained()

    clip = engine.generate("a large red rubber ball bounces on a wooden floor", seed=7)
    clip.save(out / "red.mp4")
    print(f"{clip.frames.shape} frames, {clip.waveform.shape} samples, made by {dict(clip.provenance)}")

    # Requests of one size and duration share their forward passes; all other settings may differ.
    batch = [
        Request("a small blue glass ball falls on a stone floor", seed=1),
        Request("a medium yellow wooden ball bounces on a metal floor", seed=2, guidance=4.0),
    ]
    for request, result in zip(batch, engine.generate(batch, progress=True), strict=True):
        result.save(out / f"batch_{request.seed}.mp4")

    def show(step: int, steps: int, latents: Latents) -> None:
        if step % 25 == 0 or step == steps:
            print(f"step {step} of {steps}: deviation of the video latent {latents.video.std():.3f}")

    engine.generate("a large green metal ball hits the stone floor", seed=3, on_step=show).save(out / "green.mp4")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
