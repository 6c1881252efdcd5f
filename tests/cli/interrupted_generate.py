"""Ends ``syncflow generate`` by signals at random moments, and checks what is left.

    python tests/cli/interrupted_generate.py FOLDER MOMENTS [SEED]

SIGINT and SIGTERM in turn, from the start of Python to the writing of the file. The exit code is 130 or 143 (or 0 where
the clip was finished before), nothing is a traceback, and the folder holds nothing but complete clips.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from syncflow.engine.media import load_clip

COMMAND = [sys.executable, "-m", "syncflow", "generate", "a red ball bounces", "--steps", "4"]
SECONDS = 60.0


def generate(folder: Path, *, number: signal.Signals | None = None, after: float = 0.0) -> tuple[int, float, bytes]:
    """Generate a clip into an empty folder; the exit code, the seconds it took, and what it said."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, "-o", str(folder / "clip.mp4")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if number is not None:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    said = process.communicate(timeout=SECONDS)[0]
    return process.returncode, time.monotonic() - began, said


def check(folder: Path, number: signal.Signals, after: float) -> str:
    """End one command, and say how it ended."""
    code, seconds, said = generate(folder, number=number, after=after)
    assert code in (0, 128 + number, -number), f"exit code {code}: {said!r}"  # a shell says 128 + n for both
    assert b"Traceback" not in said and b"Error" not in said, said
    left = sorted(path.name for path in folder.iterdir())
    assert left in ([], ["clip.mp4"]), left
    if left:
        assert len(load_clip(folder / "clip.mp4").frames) == 32
    return f"{number.name} after {after:5.2f} s: exit code {code} after {seconds:5.2f} s, left {left}"


def main(folder: Path, moments: int, seed: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell sets to be ignored in the background
    code, seconds, said = generate(folder / "whole")
    assert code == 0, said
    chance = random.Random(seed)
    for i in range(moments):
        number = signal.SIGINT if i % 2 else signal.SIGTERM
        # every third moment near the end, where the file is written
        after = seconds * (chance.uniform(0.85, 1.0) if i % 3 == 2 else chance.uniform(0.05, 1.0))
        print(check(folder / str(i), number, after), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("SYNCFLOW_CALIBRATION", "off")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
