"""Counts rounded up to few, so that few shapes are captured or compiled."""

from __future__ import annotations


def round_up(count: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, …: at most half as much again."""
    power = 1 << max(0, count - 1).bit_length()
    if count == 0:
        return 0
    return 3 * power // 4 if power > 2 and count <= 3 * power // 4 else power
