"""Times of a denoising step in several runtimes, measured alternately on this machine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ...config import DDiTConfig, SequenceConfig
from ...model.denoiser import Denoiser

PAUSE = 0.005  # seconds before each round, in which spinning threads of the previous runtime go to sleep
ROUND = 0.05  # seconds of steps in a round of a runtime
BUDGET = 0.25  # seconds of steps of a runtime in all rounds
MIN_ROUNDS = 3
SLOW, VERY_SLOW = 2.0, 8.0  # times the fastest: slower runtimes are dropped after two rounds, or after the first
MAX_EXPECTED = 0.5  # expected seconds of a step on a fast CPU, above which nothing is timed
MAX_FIRST_STEP = 4.0  # seconds of a step in the first runtime, above which no other is timed
FLOPS_PER_THREAD = 100e9  # floating-point operations per second in float32 of a thread of a fast CPU, approximately

Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """The step to be timed: ``start(denoiser)`` prepares a clip of ``sequence`` and returns its step function."""

    sequence: SequenceConfig
    start: Callable[[Denoiser], Step]

    def reason_not_to_time(self, config: DDiTConfig) -> str:
        """The reason why steps of a model of this shape are not timed; empty if they may be timed."""
        flops, threads = step_flops(config, self.sequence), torch.get_num_threads()
        expected = flops / (FLOPS_PER_THREAD * threads)
        if expected <= MAX_EXPECTED:
            return ""
        work = f"a step of {flops / 1e9:,.0f} GFLOP on {threads} threads"
        return f"{work} is expected to take {expected:.1f} s or more, and the limit for timing it is {MAX_EXPECTED:g} s"


@dataclass(frozen=True)
class StepTimes:
    """The least ``seconds`` of a step by runtime.

    ``failures`` has the reason for each runtime that could not be timed; ``stopped`` the reason if only the first was.
    """

    seconds: Mapping[str, float]
    failures: Mapping[str, str] = field(default_factory=dict)
    stopped: str = ""


def time_denoisers(
    factories: Mapping[str, Callable[[], Denoiser]], workload: Workload
) -> tuple[StepTimes, dict[str, Denoiser]]:
    """Create each denoiser, run one step, then time all of them alternately. -> the times, and the denoisers.

    A denoiser that raises is left out with a warning; if every one raises, the last error is raised. If a step of the
    first takes more than ``MAX_FIRST_STEP`` seconds, the others are not timed.
    """
    created: dict[str, Denoiser] = {}
    steps: dict[str, Step] = {}
    failures: dict[str, str] = {}
    for name, create in factories.items():
        try:
            denoiser = create()
            step = workload.start(denoiser)
            first = _seconds(step)
        except Exception as error:  # a library may raise anything for a graph that it cannot compute
            if len(failures) == len(factories) - 1:
                raise
            failures[name] = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(f"{failures[name]}; the runtime {name} is left out", stacklevel=2)
            continue
        created[name] = denoiser
        if not steps and first > MAX_FIRST_STEP and (again := _seconds(step)) > MAX_FIRST_STEP:
            stopped = f"a step in {name} takes {again:.1f} s, and the limit for timing others is {MAX_FIRST_STEP:g} s"
            return StepTimes({name: again}, failures, stopped), created
        steps[name] = step
    return StepTimes(measure(steps), failures), created


def measure(
    steps: Mapping[str, Step],
    *,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, float]:
    """The least seconds of each of several steps, measured alternately: other work on the machine only adds to them.

    A round of a step is several calls, of which the first does not count unless it is the only one. Rounds end when
    each step has had ``MIN_ROUNDS`` of them and ``BUDGET`` seconds; steps that are much slower than the fastest are
    dropped earlier.
    """
    counted: dict[str, list[float]] = {name: [] for name in steps}
    spent = dict.fromkeys(steps, 0.0)
    running, rounds = list(steps), 0
    while running:
        for name in running:
            pause(PAUSE)
            times = _round(steps[name], clock)
            spent[name] += sum(times)
            counted[name] += times[1:] or times
        rounds += 1
        limit = min(min(counted[name]) for name in running) * (SLOW if rounds > 1 else VERY_SLOW)
        running = [name for name in running if min(counted[name]) <= limit]
        if len(running) == 1 or (rounds >= MIN_ROUNDS and min(spent[name] for name in running) >= BUDGET):
            break
    return {name: min(times) for name, times in counted.items()}


def _round(step: Step, clock: Callable[[], float]) -> list[float]:
    times: list[float] = []
    while sum(times) < ROUND:
        began = clock()
        step()
        times.append(clock() - began)
    return times


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def step_flops(config: DDiTConfig, sequence: SequenceConfig, rows: int = 2) -> float:
    """Floating-point operations of the layers of both towers in one step of ``rows`` branches.

    1 multiply-add = 2 operations. Embeddings and last projections, a few percent at most, are left out.
    """
    width, depth, mlp = config.width, config.depth, 2 * config.mlp_ratio
    frames, spatial, audio = sequence.latent_frames, sequence.spatial_tokens, sequence.audio_tokens
    video = frames * spatial

    def projections(tokens: int, matrices: float) -> float:
        return 2 * tokens * matrices * width**2

    def attention(queries: int, keys: int) -> float:
        return 4 * queries * keys * width

    def cross_attention(queries: int, keys: int) -> float:
        """A cross-attention with its four projections."""
        return projections(queries, 2) + projections(keys, 2) + attention(queries, keys)

    block = projections(video, 6 + mlp) + attention(video, config.text_tokens)  # keys of the text are there already
    video_layer = 2 * block + attention(video, spatial) + attention(video, frames)
    prefix = 1 + (config.text_tokens if config.audio_text else 0)
    if not config.has_audio:
        return rows * depth * video_layer
    if config.bridge == "bidirectional":
        bins, times = config.audio_bins, audio // config.audio_patch
        mel = bins * times
        mel_layer = 2 * (projections(mel, 6 + mlp) + attention(mel, config.text_tokens)) + attention(mel, bins + times)
        prior = projections(video + mel, 4 + mlp) + 2 * attention(video + mel, 2 * config.prior_tokens)
        bridge = projections(video + mel, 1.5) + attention(video, mel)  # in half of the heads, both ways
        return rows * depth * (video_layer + mel_layer + prior + bridge)
    audio_layer = projections(audio, 6 + mlp) + projections(prefix, 2) + attention(audio, audio + prefix)
    bridged = depth
    if config.bridge == "adaptor":
        context = frames if config.adaptor_tokens == "frame" else video
        adapted = 0.0 if config.adaptor_tokens == "none" else projections(context, 4) + attention(context, context)
        bridge = adapted + projections(context, 2) + attention(audio, context)
    elif config.bridge == "audio_rope":
        bridged, bridge = depth - config.first_block, cross_attention(video, audio)
    else:
        bridge = cross_attention(video, audio) + cross_attention(audio, video)
    return rows * (depth * (video_layer + audio_layer) + bridged * bridge)
