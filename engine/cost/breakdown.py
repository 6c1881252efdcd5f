"""FLOPs of a model: of its parts, of whole samples, and of a further guidance branch or take in a step.

``syncflow bench flops`` prints them as Markdown. Samples are counted by running the sampling loop itself on the meta
device. The text encoder and the codecs are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..model.bridges import Context
from ..model.denoiser import AudioInputs, Modulation, VideoContextRef, VideoInputs
from ..model.layers import CrossAttention
from ..sampling.guidance import (
    Direction,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
)
from ..sampling.job import Job
from ..sampling.loop import sample
from ..sampling.sequential import batch_of
from ..types import Conditioning
from .counting import CountingDenoiser, meta_model
from .flops import calls, flops
from .jobs import synthetic_job

TAKES = 8


@dataclass(frozen=True)
class FlopBreakdown:
    """FLOPs of the parts and of whole samples of a model with the bridge ``adaptor``.

    Parts: ``text`` per prompt; ``modulation`` (video) and ``audio_time`` per flow time; ``video`` and ``audio`` per row
    and pass; ``video_context_only`` per row that computes a context and no velocity; ``contexts`` per row, from video
    tokens to the context that the audio reads, of which ``context_keys`` are the projections to keys and values.

    Samples are one clip with two branches: both modalities at a shared time, the video half a schedule ahead, or the
    video first; a known video, noised or clean; at a shared time with a third branch, of sync guidance or of SyncCFG
    of the audio; with ``TAKES`` takes of the sound.

    ``calls_batched`` and ``calls_sequential``: operations sent to the device by one forward of two rows, and by two
    forwards of one row.
    """

    text: int
    modulation: int
    audio_time: int
    video: int
    video_context_only: int
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
    calls_batched: int
    calls_sequential: int


@dataclass(frozen=True)
class StepOverhead:
    """FLOPs that one more branch or take adds to a step, as a share of a step with the full branch alone.

    Branches: without the text, without the bridge, with muted audio, with a static video; 0 where the model does not
    read the condition. Both modalities advance.
    """

    no_text: float
    no_bridge: float
    muted: float
    static: float
    take: float


def sample_flops(config: ModelConfig, one: Job) -> int:
    """FLOPs of the sampling loop for one job, without the shortcuts of :class:`CountingDenoiser`."""
    return flops(lambda: sample(meta_model(config.ddit), [one]))


def breakdown(config: ModelConfig, steps: int = 50) -> FlopBreakdown:
    """FLOPs of a model whose bridge is ``adaptor``, and of its samples with so many steps."""
    first, second = (asdict(_count(shallow, steps)) for shallow in _shallow(config))
    return FlopBreakdown(**{name: _extrapolate(config, (first[name], second[name])) for name in first})


def step_overhead(config: ModelConfig) -> StepOverhead:
    """The share of a step that one more branch, or one more take, adds."""
    full, reads_video, reads_audio = step_flops(config), config.ddit.audio_reads_video, config.ddit.video_reads_audio

    def more(*directions: Direction, takes: Sequence[int] = ()) -> float:
        return step_flops(config, directions, takes) / full - 1

    return StepOverhead(
        no_text=more(text_guidance(6.0)),
        no_bridge=more(sync_guidance(2.0)),
        muted=more(sync_cfg_video(2.0)) if reads_audio else 0.0,
        static=more(sync_cfg_audio(2.0)) if reads_video else 0.0,
        take=0.0 if reads_audio else more(takes=range(2)),
    )


def step_flops(config: ModelConfig, directions: Iterable[Direction] = (), takes: Sequence[int] = ()) -> int:
    """FLOPs of a step of both modalities, with the full branch and the branches of ``directions``."""
    plan, counted = combine(directions), []
    for shallow in _shallow(config):
        denoiser = CountingDenoiser(shallow.ddit)
        batch = batch_of(denoiser)
        batch.join([synthetic_job(shallow, 1, plan=plan, takes=takes)])
        before = denoiser.flops
        batch.step()
        counted.append(denoiser.flops - before)
    return _extrapolate(config, counted)


def adaptor_breakdowns(configs: Mapping[str, ModelConfig]) -> dict[str, FlopBreakdown]:
    """Breakdowns of the models with the bridge ``adaptor``."""
    return {name: breakdown(config) for name, config in configs.items() if config.ddit.bridge == "adaptor"}


def to_dict(configs: Mapping[str, ModelConfig]) -> dict[str, Any]:
    """Breakdowns and step overheads by model, ready for ``json.dump``."""
    return {
        "flops": {name: asdict(found) for name, found in adaptor_breakdowns(configs).items()},
        "step_overhead": {name: asdict(step_overhead(config)) for name, config in configs.items()},
    }


def tables(configs: Mapping[str, ModelConfig]) -> str:
    """Breakdowns and step overheads as Markdown tables."""
    breakdowns = adaptor_breakdowns(configs)
    found = [_table("FLOP", breakdowns, _si_number)] if breakdowns else []
    found.append(_table("of a step", {name: step_overhead(config) for name, config in configs.items()}, _percent))
    return "\n\n".join(found)


def _shallow(config: ModelConfig) -> list[ModelConfig]:
    """The model at its least depth, and one layer deeper: FLOPs are linear in the depth."""
    least = config.ddit.first_block + 1
    return [config.replace(ddit=config.ddit.replace(depth=depth)) for depth in (least, least + 1)]


def _extrapolate(config: ModelConfig, shallow: Sequence[int]) -> int:
    """A count at the model's own depth, from the counts of both models of :func:`_shallow`."""
    return shallow[0] + (config.ddit.depth - config.ddit.first_block - 1) * (shallow[1] - shallow[0])


def _count(config: ModelConfig, steps: int) -> FlopBreakdown:
    parts, counting = _Parts(config), CountingDenoiser(config.ddit)

    def whole(*directions: Direction, lead: float = 0.0, known: bool = False, takes: Sequence[int] = ()) -> int:
        before, plan = counting.flops, combine([text_guidance(6.0), *directions])
        sample(counting, [synthetic_job(config, steps, lead=lead, known=known, plan=plan, takes=takes)])
        return counting.flops - before

    return FlopBreakdown(
        text=flops(parts.text),
        modulation=flops(parts.modulation),
        audio_time=flops(parts.audio_time),
        video=flops(parts.video),
        video_context_only=flops(partial(parts.video, num_outputs=0)),
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
        calls_batched=calls(parts.step(2)),
        calls_sequential=2 * calls(parts.step(1)),
    )


class _Parts:
    """The parts of a forward of one row, as functions without arguments, on the meta device."""

    def __init__(self, config: ModelConfig) -> None:
        s, d = config.sequence, config.ddit
        self.model = meta_model(config.ddit)
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


def _si_number(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if value else "-"


def _table(title: str, columns: Mapping[str, Any], write: Callable[[Any], str]) -> str:
    """A Markdown table: a line per field of the dataclasses in ``columns``."""
    names = [field.name for field in fields(next(iter(columns.values())))]
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(write(getattr(c, name)) for c in columns.values())} |" for name in names]
    return "\n".join(lines)
