"""Generate sound for an existing video: ``python examples/video_to_audio.py VIDEO OUT.mp4 [PROMPT]``."""

from __future__ import annotations

import sys
from pathlib import Path

from syncflow import Engine, Request


def main(video: Path, out: Path, prompt: str = "") -> None:
    """Write ``video`` with two soundtracks that differ in their seed.

    Any ordinary file works: it is cut around its centre to the model's shape and converted to its frame rate. A prompt
    may describe the video; without one the model uses the frames alone.
    """
    engine = Engine.from_pretrained()
    first, second = engine.generate([Request(prompt, seed=seed, video=video) for seed in (1, 2)], progress=True)
    first.save(out)
    second.save(out.with_name(f"{out.stem}_second_take.mp4"))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), " ".join(sys.argv[3:]))
