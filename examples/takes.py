"""Generate several sounds for one video, at once and later: ``python examples/takes.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

from syncflow import Engine


def main(out: Path) -> None:
    """Write one video with three sounds, then generate a fourth sound for the saved file."""
    engine = Engine.from_pretrained()

    # The video is generated once; the sounds have the seeds 7, 8 and 9.
    takes = engine.generate("a large red rubber ball bounces on a wooden floor", seed=7, takes=3, progress=True)
    for number, clip in enumerate(takes, 1):
        clip.save(out / f"take_{number}.mp4", latents=True)

    # With the latents saved beside the file, its frames need no encoding.
    other = engine.retake(out / "take_1.mp4", audio_seed=21, sync_guidance=1.0, progress=True)
    other.save(out / "take_4.mp4")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
