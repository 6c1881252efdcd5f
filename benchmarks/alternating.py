"""Time several functions in alternation, and compare them by the ratios of each round.

What disturbs the machine disturbs all functions of a round, so that ratios are steadier than times. On a GPU a call is
timed with events, after the L2 cache was overwritten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

PAUSE = 0.02  # seconds
WARM_UP = 2  # rounds that do not count, of functions that are not long
LONG = 0.5  # seconds from which a call needs no other one before it, and one round to warm up
RESAMPLES = 2000
LEAST_ROUNDS = 5
CONFIDENCE = 95  # percent


def quiet(rounds: Sequence[int], desc: str) -> Iterable[int]:
    """No progress bar: takes the place of ``tqdm``."""
    return rounds


@dataclass(frozen=True)
class Timing:
    """Timed ``rounds``, a ``clock`` in seconds, and ``progress``, called like ``tqdm``.

    After ``most_seconds`` no further round begins, once there are :data:`LEAST_ROUNDS`.

    ``time.perf_counter`` measures latency. ``time.process_time`` adds up the CPU time of all threads, spinning ones
    included: for machines under other load. On a ``device`` with CUDA, events take the place of the clock.
    """

    rounds: int = 20
    clock: Callable[[], float] = time.perf_counter
    progress: Callable[..., Iterable[int]] = quiet
    device: str = "cpu"
    most_seconds: float = math.inf


@dataclass(frozen=True)
class Ratio:
    """``median`` of the ratios of all rounds; ``low`` and ``high`` bound it with 95 % confidence."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def ratio(times: ArrayLike, own: ArrayLike) -> Ratio:
    """How many times as fast ``own`` is, from the times of both in the same rounds."""
    values = np.asarray(times, dtype=float) / np.asarray(own, dtype=float)
    low, high = median_interval(values)
    return Ratio(*(round(float(value), 4) for value in (np.median(values), low, high)))


def median_interval(values: ArrayLike) -> tuple[float, float]:
    """The bootstrap percentile interval of the median."""
    rng, values = np.random.default_rng(0), np.asarray(values, dtype=float)
    medians = np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(medians, (tail, 100 - tail))
    return float(low), float(high)


def alternate(
    functions: Mapping[str, Callable[[], object]], timing: Timing, desc: str = "timing"
) -> dict[str, list[float]]:
    """Seconds of every function in every round, in alternation, after warm-up rounds.

    Each timed call follows a pause, in which the spinning threads of the function before go to sleep, and one untimed
    call, after which threads and caches are as in a running loop; not where a call is long. Every other round goes
    backwards.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    timed = _cuda_seconds if torch.device(timing.device).type == "cuda" else _seconds
    names = list(functions)
    last = {name: timed(functions[name], timing) for name in names}
    first = WARM_UP - 1 if min(last.values()) < LONG else 0
    end = time.perf_counter() + timing.most_seconds
    for k in timing.progress(range(timing.rounds + first), desc=desc):
        for name in names if k % 2 else names[::-1]:
            time.sleep(PAUSE)
            if last[name] < LONG:
                functions[name]()
            last[name] = timed(functions[name], timing)
            if k >= first:
                seconds[name].append(last[name])
        if k - first + 1 >= LEAST_ROUNDS and time.perf_counter() > end:
            break
    return seconds


def _seconds(function: Callable[[], object], timing: Timing) -> float:
    start = timing.clock()
    function()
    return timing.clock() - start


def _cuda_seconds(function: Callable[[], object], timing: Timing) -> float:
    """Seconds between two events around a call that finds nothing in the L2 cache."""
    size = torch.cuda.get_device_properties(timing.device).L2_cache_size
    torch.empty(2 * size, dtype=torch.int8, device=timing.device).zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
