"""How long a step of a model takes in each of several runtimes, timed in turn on this machine."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..config import DDiTConfig, SequenceConfig
from ..model.denoiser import Denoiser
from .estimate import step_flops

REST = 0.005  # seconds before each turn, in which threads of the last runtime that wait awake fall asleep
TURN = 0.05  # seconds of steps in a turn
BUDGET = 0.25  # seconds of steps of a runtime, in all its turns
ROUNDS = 3  # turns of a runtime, at least
SLOW, VERY_SLOW = 2.0, 8.0  # times the fastest: a runtime beyond gets no more turns after two of them, or after one
LIMIT = 0.5  # seconds that a step is expected to take on a fast CPU, beyond which nothing is timed
PATIENCE = 4.0  # seconds of a step in the first runtime, beyond which no other is timed: more than a busy machine makes
PEAK = 100e9  # floating-point operations a second, about what one thread of a fast CPU does in float32

Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """The step to be timed: ``start(denoiser)`` prepares a clip of this ``sequence`` and returns what does a step."""

    sequence: SequenceConfig
    start: Callable[[Denoiser], Step]

    def objection(self, config: DDiTConfig) -> str:
        """Why steps of a model of this shape are not timed; nothing if they may be."""
        flops, threads = step_flops(config, self.sequence), torch.get_num_threads()
        least = flops / (PEAK * threads)
        if least <= LIMIT:
            return ""
        work = f"a step of {flops / 1e9:,.0f} GFLOP on {threads} threads"
        return f"{work} is expected to take {least:.1f} s or more, and the limit for timing it is {LIMIT:g} s"


@dataclass(frozen=True)
class Times:
    """``seconds`` of a step, the median, by runtime.

    ``failures`` by runtime, why it could not be timed. ``stopped`` says why only the first was timed, if that is so.
    """

    seconds: Mapping[str, float]
    failures: Mapping[str, str] = field(default_factory=dict)
    stopped: str = ""


def race(makers: Mapping[str, Callable[[], Denoiser]], workload: Workload) -> tuple[Times, dict[str, Denoiser]]:
    """Make each denoiser, let it step once, then time all of them in turn: the times, and the denoisers.

    One that cannot be made or does not step is left out with a warning. Where a step of the first already takes more
    than ``PATIENCE``, that is the result. Raises what the last one raised where none is left.
    """
    made: dict[str, Denoiser] = {}
    steps: dict[str, Step] = {}
    failures: dict[str, str] = {}
    for name, make in makers.items():
        try:
            denoiser = make()
            step = workload.start(denoiser)
            first = _seconds(step)
        except Exception as error:  # whatever a library throws: it does not compute this model
            if len(failures) == len(makers) - 1:
                raise
            failures[name] = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(f"{failures[name]}; the runtime {name} is left out", stacklevel=2)
            continue
        made[name] = denoiser
        if not steps and first > PATIENCE and (again := _seconds(step)) > PATIENCE:
            stopped = f"a step in {name} takes {again:.1f} s, and the limit for timing others is {PATIENCE:g} s"
            return Times({name: again}, failures, stopped), made
        steps[name] = step
    return Times(measure(steps), failures), made


def measure(
    steps: Mapping[str, Step],
    *,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], object] = time.sleep,
) -> dict[str, float]:
    """The median seconds of each of several steps, all of them in turn.

    A turn is some steps in a row, of which the first does not count if it is not the only one. Turns end when each step
    has had ``ROUNDS`` of them and ``BUDGET`` seconds; one that is much slower than the fastest gets no more.
    """
    counted: dict[str, list[float]] = {name: [] for name in steps}
    spent = dict.fromkeys(steps, 0.0)
    racing, rounds = list(steps), 0
    while racing:
        for name in racing:
            rest(REST)
            turn = _turn(steps[name], clock)
            spent[name] += sum(turn)
            counted[name] += turn[1:] or turn
        rounds += 1
        limit = min(min(counted[name]) for name in racing) * (SLOW if rounds > 1 else VERY_SLOW)
        racing = [name for name in racing if min(counted[name]) <= limit]
        if len(racing) == 1 or (rounds >= ROUNDS and min(spent[name] for name in racing) >= BUDGET):
            break
    return {name: statistics.median(times) for name, times in counted.items()}


def _turn(step: Step, clock: Callable[[], float]) -> list[float]:
    taken: list[float] = []
    while sum(taken) < TURN:
        began = clock()
        step()
        taken.append(clock() - began)
    return taken


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
