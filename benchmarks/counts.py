"""How much work sampling is: what its parts cost, what a sample does, what a further branch or take adds to a step.

``python -m syncflow.benchmarks.flops [PRESET...]`` prints all three as Markdown. The loop that is counted is the real
one. Text encoder and codecs do not count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from syncflow.engine.config import ModelConfig, preset
from syncflow.engine.model import DDiT
from syncflow.engine.model.bridges import Context
from syncflow.engine.model.denoiser import AudioInputs, Modulation, VideoContextRef, VideoInputs
from syncflow.engine.model.layers import CrossAttention
from syncflow.engine.presets import PRESETS
from syncflow.engine.sampling.guidance import (
    Direction,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
)
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Conditioning

from .counter import CountingDenoiser
from .flops import calls, flops
from .jobs import job

TAKES = 8


@dataclass(frozen=True)
class Counts:
    """Floating-point operations of the parts and of whole samples of a SyncFlow model; ``calls_*`` are operations sent
    to the device by a forward of two rows, and by one of each.

    ``text`` is once a prompt; ``modulation`` (of the video) and ``audio_time`` once a flow time; ``video`` and
    ``audio`` a row and pass, ``seen_video`` a row that is only seen; ``contexts`` what makes the audio see a row of
    the video, of which ``context_keys`` are its keys and values. A sample is one clip with two branches: both
    modalities at a shared time, the video half a clip ahead, or the video first; a known video noised or clean; at a
    shared time with sync guidance, or with SyncCFG of the audio, as a third branch; with several takes of the sound.
    """

    text: int
    modulation: int
    audio_time: int
    video: int
    seen_video: int
    contexts: int
    context_keys: int
    audio: int
    shared_time: int
    half_lead: int
    video_first: int
    known_noised: int
    known_clean: int
    sync_guided: int
    static_guided: int
    takes_shared_time: int
    takes_video_first: int
    calls_together: int
    calls_apart: int


@dataclass(frozen=True)
class Shares:
    """What more a step computes with one more branch, or with a further take of the sound, as a share of the step with
    the full branch alone; both modalities move.

    A branch without the text, with the bridge skipped, with muted audio, with a static video; 0 where it makes no
    difference to the model.
    """

    no_text: float
    no_bridge: float
    muted: float
    static: float
    take: float


def sample_flops(config: ModelConfig, one: Job) -> int:
    """Count the loop itself, step by step."""
    return flops(lambda: sample(_meta(config), [one]))


def count(config: ModelConfig, steps: int = 50) -> Counts:
    """Count a preset whose bridge is ``adaptor``."""
    each = [asdict(_count(one, steps)) for one in _shallow(config)]
    return Counts(**{name: _line(config, [counts[name] for counts in each]) for name in each[0]})


def shares(config: ModelConfig) -> Shares:
    """What a step costs with one branch more, or one take."""
    full, reads_video, reads_audio = step_flops(config), config.ddit.audio_reads_video, config.ddit.video_reads_audio

    def more(*directions: Direction, takes: Sequence[int] = ()) -> float:
        return step_flops(config, directions, takes) / full - 1

    return Shares(
        no_text=more(text_guidance(6.0)),
        no_bridge=more(sync_guidance(2.0)),
        muted=more(sync_cfg_video(2.0)) if reads_audio else 0.0,
        static=more(sync_cfg_audio(2.0)) if reads_video else 0.0,
        take=0.0 if reads_audio else more(takes=range(2)),
    )


def step_flops(config: ModelConfig, directions: Iterable[Direction] = (), takes: Sequence[int] = ()) -> int:
    """One step of both modalities, with the full branch and any directions."""
    plan, found = combine(directions), []
    for one in _shallow(config):
        model = CountingDenoiser(one.ddit)
        batch = batch_of(model)
        batch.join([job(one, 1, plan=plan, takes=takes)])
        before = model.flops
        batch.step()
        found.append(model.flops - before)
    return _line(config, found)


def _shallow(config: ModelConfig) -> list[ModelConfig]:
    """The model with as few layers as it can have, and with one more: work is a line in the layers."""
    least = config.ddit.first_block + 1
    return [config.replace(ddit=config.ddit.replace(depth=depth)) for depth in (least, least + 1)]


def _line(config: ModelConfig, shallow: Sequence[int]) -> int:
    """What the model has, given what the two of :func:`_shallow` have."""
    return shallow[0] + (config.ddit.depth - config.ddit.first_block - 1) * (shallow[1] - shallow[0])


def _count(config: ModelConfig, steps: int) -> Counts:
    parts, counting = _Parts(config), CountingDenoiser(config.ddit)

    def whole(*directions: Direction, lead: float = 0.0, known: bool = False, takes: Sequence[int] = ()) -> int:
        before, plan = counting.flops, combine([text_guidance(6.0), *directions])
        sample(counting, [job(config, steps, lead=lead, known=known, plan=plan, takes=takes)])
        return counting.flops - before

    return Counts(
        text=flops(parts.text),
        modulation=flops(parts.modulation),
        audio_time=flops(parts.audio_time),
        video=flops(parts.video),
        seen_video=flops(partial(parts.video, num_outputs=0)),
        contexts=flops(partial(parts.video, context_rows=parts.row)) - flops(parts.video),
        context_keys=parts.context_keys(),
        audio=flops(parts.audio),
        shared_time=whole(),
        half_lead=whole(lead=0.5),
        video_first=whole(lead=1.0),
        known_noised=whole(known=True),
        known_clean=whole(lead=1.0, known=True),
        sync_guided=whole(sync_guidance(2.0)),
        static_guided=whole(sync_cfg_audio(2.0)),
        takes_shared_time=whole(takes=range(TAKES)),
        takes_video_first=whole(lead=1.0, takes=range(TAKES)),
        calls_together=calls(parts.step(2)),
        calls_apart=2 * calls(parts.step(1)),
    )


class _Parts:
    """The pieces of a forward for one row, ready to be called."""

    def __init__(self, config: ModelConfig) -> None:
        s, d = config.sequence, config.ddit
        self.model = _meta(config)
        with torch.device("meta"), torch.no_grad():
            self.states = torch.zeros(1, d.text_tokens, d.text_width)
            self.lengths, self.row = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
            self.z_v = torch.zeros(1, d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
            self.z_a = torch.zeros(1, s.audio_tokens, d.audio_channels)
            self.t, self.fps = torch.zeros(1), torch.zeros(1)
            self.words, self.times = self.text(), self.modulation()
            self.time = self.audio_time()
            self.features = self.model.video(self.z_v, self.times, self.words, self.row, keep=lambda _, x: x)[1]
            self.context = self.video(context_rows=self.row)[1]
            times = torch.tensor(s.frame_times)
            self.context_ref = VideoContextRef(self.model.video_token_positions(times, s.spatial_tokens))

    def text(self) -> Conditioning:
        return self.model.condition(self.states, self.lengths)

    def modulation(self) -> Modulation:
        return self.model.modulation(self.t[:, None], self.fps)

    def audio_time(self) -> Tensor:
        return self.model.audio_time(self.t)

    def video(self, **asked: Any) -> tuple[Tensor, Context]:
        return self.model.video_pass(VideoInputs(self.z_v, self.times, self.words, self.row, **asked))

    def audio(self) -> tuple[Tensor, Context]:
        rows = self.z_a, self.time, self.words, self.row
        return self.model.audio_pass(AudioInputs(*rows, video_context=self.context, video_context_ref=self.context_ref))

    def context_keys(self) -> int:
        """Keys and values of the video tokens in every audio layer."""
        tokens = self.model.audio.pool(self.features[0])
        attentions = (layer.get_submodule("cross_attn") for layer in self.model.audio.layers)
        return sum(flops(partial(a.pack, tokens)) for a in attentions if isinstance(a, CrossAttention))

    def step(self, rows: int) -> Callable[[], object]:
        """A forward of both towers over ``rows`` branches."""

        def forward() -> object:
            tensors = (self.z_v, self.z_a, self.t, self.t, self.fps)
            z_v, z_a, t_v, t_a, fps = (x.expand(rows, *x.shape[1:]) for x in tensors)
            return self.model(z_v, z_a, t_v, t_a, fps, self.words, self.row.expand(rows))

        return forward


def _meta(config: ModelConfig) -> DDiT:
    with torch.device("meta"):
        return DDiT(config.ddit).eval().requires_grad_(False)


def _number(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if value else "-"


def _table(title: str, columns: Mapping[str, Any], write: Callable[[Any], str]) -> str:
    """Fields of the columns' values, one to a line, as Markdown."""
    names = [field.name for field in fields(next(iter(columns.values())))]
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(write(getattr(c, name)) for c in columns.values())} |" for name in names]
    return "\n".join(lines)


def main() -> None:
    """Print the counts of SyncFlow presets and the shares of all."""
    configs = {name: preset(name) for name in (sys.argv[1:] or PRESETS)}
    one_way = {name: count(config) for name, config in configs.items() if config.ddit.bridge == "adaptor"}
    if one_way:
        print(_table("FLOP", one_way, _number), end="\n\n")
    print(_table("of a step", {name: shares(config) for name, config in configs.items()}, _percent))
