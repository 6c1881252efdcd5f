"""Resident memory, threads and open files of one process through many requests, good and bad.

    python tests/engine/soak.py [SHARE]

100 clips of one prompt, 100 prompts, 60 durations, 50 requests that fail, 50 that are cancelled, and 20 engines that
are made and dropped; SHARE takes fewer of each. Some of each come before, so that libraries, caches and the allocator's
arenas, of which every thread gets one, have reached their size; the cache of texts is kept small. Prints a line for
each kind, and fails where memory grows by more than ``GROWTH`` bytes or a thread or a file is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from syncflow import Cancelled, Engine

SETTINGS = {"steps": 2, "seconds": 0.5}
CACHE_BYTES = 4_000_000
WARM_UP = {"clips": 20, "prompts": 20, "durations": 30, "failing": 10, "cancelled": 10, "engines": 12}
GROWTH = 24 * 2**20  # bytes over all requests of a kind, of which an allocator keeps some
COUNTS = {"clips": 100, "prompts": 100, "durations": 60, "failing": 50, "cancelled": 50, "engines": 20}
SETTLING = 20.0  # seconds until the threads of a dropped engine have ended


def load() -> Engine:
    return Engine.from_pretrained(device="cpu", runtime="torch", cache_bytes=CACHE_BYTES)


def resident() -> int:
    """Bytes of this process that lie in memory, without what the allocator could give back."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def clips(engine: Engine, count: int) -> None:
    for seed in range(count):
        engine.generate("a ball", seed=seed, **SETTINGS)


def prompts(engine: Engine, count: int) -> None:
    for i in range(count):
        engine.generate(f"a ball of {i} kinds in a room of {count}", **SETTINGS)


def durations(engine: Engine, count: int) -> None:
    """From a quarter of a second to four seconds, also where they are few."""
    for i in range(count):
        engine.generate("a ball", steps=2, seconds=(4 + 60 * i // max(1, count - 1)) / 16)


def failing(engine: Engine, count: int) -> None:
    """Requests that are no requests, name media that are none, or have a deadline that has passed."""
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, "damaged.mp4")
        damaged.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
        for i in range(count):
            refused = {"steps": 0} if i % 3 == 0 else {"video": str(damaged)}
            with contextlib.suppress(ValueError):
                if i % 3 < 2:
                    engine.generate("a ball", **refused)
                    raise AssertionError(f"{refused} was not refused")
            if i % 3 == 2:
                assert engine.submit("a ball", deadline=1e-6, **SETTINGS).exception(60) is not None


def cancelled(engine: Engine, count: int) -> None:
    """Requests that are cancelled while they wait or run."""
    for i in range(count):
        handle = engine.submit("a ball", steps=50, seconds=0.5)
        time.sleep(0.02 * (i % 3))
        handle.cancel()
        with contextlib.suppress(Cancelled):
            handle.result(60)


def engines(_: Engine, count: int) -> None:
    """Engines that did some work in the background and are dropped without being closed."""
    for _ in range(count):
        load().submit("a ball", **SETTINGS).result(60)


KINDS: dict[str, Callable[[Engine, int], None]] = {
    "clips": clips,
    "prompts": prompts,
    "durations": durations,
    "failing": failing,
    "cancelled": cancelled,
    "engines": engines,
}


def settled(threads: int) -> int:
    """The number of threads, once those of dropped engines have ended."""
    end = time.monotonic() + SETTLING
    while threading.active_count() > threads and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    return threading.active_count()


def main(share: float) -> None:
    engine = load()
    engine.submit("a ball", **SETTINGS).result(60)
    own = threading.active_count()
    for name, work in KINDS.items():
        work(engine, max(3, round(WARM_UP[name] * share)))
    threads, files, grown = settled(own), open_files(), []
    first = before = resident()
    print(f"after warm-up: {before / 2**20:.1f} MiB, {threads} threads, {files} open files", flush=True)
    for name, work in KINDS.items():
        count = max(2, round(COUNTS[name] * share))
        work(engine, count)
        found, now, opened = settled(threads), resident(), open_files()
        print(
            f"{count:4d} {name:10} {now / 2**20:.1f} MiB ({(now - before) / 2**20:+.1f}), "
            f"{found} threads, {opened} open files",
            flush=True,
        )
        if now - before > GROWTH or found > threads or opened > files:
            grown.append(name)
        before = now
    print(f"over all: {(before - first) / 2**20:+.1f} MiB")
    engine.close()
    if grown or before - first > 2 * GROWTH:
        raise SystemExit(f"grown: {', '.join(grown) or 'over all'}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
