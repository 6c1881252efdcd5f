"""Whose turn it is: the device's time shared among buckets in proportion to their weights.

Weighted fair queueing: a bucket's account is its device time over its weight, and the least account steps next. A
bucket that comes, or comes back, begins at the account that is being served, so that nobody saves up turns by being
away. Between two turns of a bucket whose step costs s at weight w, another of weight v gets at most v s / w seconds
and one step more.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

B = TypeVar("B", bound=Hashable)


class Turns(Generic[B]):
    """The accounts of all buckets."""

    def __init__(self) -> None:
        self._accounts: dict[B, float] = {}
        self._last: dict[B, int] = {}
        self._level = 0.0
        self._count = 0

    def open(self, bucket: B) -> None:
        """A bucket comes."""
        self._accounts[bucket], self._last[bucket] = self._level, 0

    def close(self, bucket: B) -> None:
        """A bucket goes."""
        del self._accounts[bucket], self._last[bucket]

    def pick(self, able: Collection[B]) -> B:
        """Which of the buckets that can step does; of equal accounts the one that has waited longest."""
        chosen = min(able, key=lambda bucket: (self._accounts[bucket], self._last[bucket]))
        self._level = max(self._level, self._accounts[chosen])
        for away in self._accounts.keys() - set(able):
            self._accounts[away] = max(self._accounts[away], self._level)
        self._count += 1
        self._last[chosen] = self._count
        return chosen

    def charge(self, bucket: B, seconds: float, weight: float) -> None:
        """A step of a bucket took ``seconds`` of the device."""
        self._accounts[bucket] += seconds / weight
