"""How much of a file is read at most: a damaged header may promise anything."""

from __future__ import annotations

import os

MAX_PIXELS = 178_956_970  # of one picture; Pillow's own limit, 512 MiB of RGB
MAX_CHANNELS = 64  # libswresample's own limit
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 100, 1_000_000  # of a file, in samples per second
MIN_FPS, MAX_FPS = 0.01, 1000.0
MAX_BYTES = 32 * 2**30  # of decoded frames or samples
LIBRARY_BYTES = 2 * 2**30  # of address space, for libraries and threads beside what is read


def memory_limit() -> int:
    """Bytes that the decoded frames or samples of one file may take, at most 32 GiB.

    That is half of the machine's memory. Where the address space of the process is limited (``ulimit -v``), it is half
    of what libraries leave of that. ``SYNCFLOW_MEDIA_BYTES`` lowers it.
    """
    asked = os.environ.get("SYNCFLOW_MEDIA_BYTES", "")
    most = min(MAX_BYTES, int(asked)) if asked.isdecimal() else MAX_BYTES
    try:
        most = min(most, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
        import resource

        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        return most if space == resource.RLIM_INFINITY else min(most, max(0, space - LIBRARY_BYTES) // 2)
    except (ImportError, AttributeError, OSError, ValueError):  # not on Windows
        return most


def check_memory(what: str, count: int, bytes_each: int) -> None:
    """Raise ``ValueError`` where ``count`` frames or samples take more memory than the limit."""
    if count * bytes_each > (limit := memory_limit()):
        raise ValueError(
            f"{what}: {count:,} of them take {count * bytes_each / 2**30:,.1f} GiB and at most "
            f"{limit / 2**30:,.1f} GiB are read; ask for fewer seconds, a lower rate or a smaller size, "
            "unless the file is damaged"
        )


def check_pixels(what: str, width: int, height: int) -> None:
    """Raise ``ValueError`` for a picture above the limit."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{what} has pictures of {width}x{height}; at most {MAX_PIXELS:,} pixels are read")
