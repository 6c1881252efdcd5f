"""Damaged media files, read in one process: ``python tests/engine/fuzz_media.py FOLDER MUTATIONS [SEED]``.

Every file of the folder is damaged in many ways and read. What is not read is one ``ValueError``. The mutation at hand
is in FOLDER/now, so that a crash can be repeated. Prints how many were read and how many refused.
"""

from __future__ import annotations

import resource
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType

import numpy as np

from syncflow.engine.media import load_audio, load_clip, load_picture, probe

SECONDS = 20  # of the processor, for one file
MEMORY = 6 * 2**30  # bytes of address space


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, a range removed, repeated or zeroed, the end cut off."""
    found = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(found)))
        if random.random() < 0.5:  # headers decide most
            at %= min(len(found), 1024)
        length = int(random.integers(1, 64))
        kind = random.integers(6)
        if kind < 2:
            found[at] = int(random.integers(256))
        elif kind == 2:
            found[at : at + 4] = random.choice([b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length]
        else:
            del found[max(1, at) :]
    return bytes(found)


def read(path: Path) -> bool:
    """Read a file in every way. Whether one of them gave an answer."""
    answered = False
    readers = (
        probe,
        load_audio,
        load_picture,
        lambda path: load_clip(path, size=16, seconds=1.0),
        lambda path: load_clip(path, size=16, fps=5, start=0.3, seconds=0.4),
    )
    for reader in readers:
        try:
            reader(path)
            answered = True
        except ValueError as error:
            assert str(error).strip() and "\n" not in str(error), error
    return answered


def hung(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a file took more than {SECONDS} s of the processor")


def main(folder: Path, mutations: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, hung)
    warnings.simplefilter("ignore")
    files = sorted(path for path in folder.iterdir() if path.suffix)
    random, read_files = np.random.default_rng(seed), 0
    for number in range(mutations):
        source = files[number % len(files)]
        damaged = folder / "now" / f"{seed}-{number}{source.suffix}"
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_bytes(damage(source.read_bytes(), random))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        read_files += read(damaged)
        signal.setitimer(signal.ITIMER_PROF, 0)
        damaged.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{mutations} damaged files: {read_files} read, {mutations - read_files} refused, {peak} MiB at most")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
