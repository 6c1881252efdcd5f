"""The loop as its definition has it, and requests for it: every branch of every request in a forward of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from syncflow.engine.config import DDiTConfig, SequenceConfig
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.guidance import (
    FULL,
    Branch,
    GuidancePlan,
    cfg,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
)
from syncflow.engine.sampling.job import Job, Known, Text
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.engine.sampling.schedule import schedule
from syncflow.engine.types import Latents

CONFIG = DDiTConfig(
    width=16,
    depth=2,
    heads=2,
    audio_heads=2,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
    latent_fps=2.0,
    audio_rate=10.0,
    adaptor_tokens="frame",
)
SEQUENCE = SequenceConfig(seconds=1.0, width=32, height=48, fps=8, sample_rate=8000, audio_hop=800)
VIDEO_SHAPE, AUDIO_SHAPE = (3, 2, 6, 4), (10, 5)
SILENCE = torch.full(AUDIO_SHAPE, 0.5)
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def randomised(config: DDiTConfig = CONFIG) -> DDiT:
    """A model none of whose weights is zero; fresh heads and bridges are silent."""
    model = DDiT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return model.requires_grad_(False)


class Passes:
    """The rows with which every pass enters the video tower and the audio tower."""

    def __init__(self, model: DDiT) -> None:
        self.video: list[int] = []
        self.audio: list[int] = []
        entries = ((model.video.x_embedder, self.video), (model.audio.x_embedder, self.audio))
        self.hooks = [entry.register_forward_pre_hook(self._count(rows)) for entry, rows in entries]

    @staticmethod
    def _count(rows: list[int]) -> Callable[[torch.nn.Module, tuple[Tensor]], None]:
        return lambda _, latents: rows.append(len(latents[0]))

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def job(
    seed: int = 0,
    *,
    steps: int = 3,
    shift: float = 1.0,
    lead: float = 0.0,
    guidance: float | GuidancePlan = 6.0,
    length: int = 4,
    known: bool = False,
    sound: bool = False,
    negative: bool = False,
    clean: bool = False,
    prefix: int = 0,
    start: float = 0.0,
    takes: Sequence[int] = (),
) -> Job:
    """A request. Known are the whole video, ``prefix`` frames and their share of the audio, or the whole ``sound``."""
    generator = torch.Generator().manual_seed(seed)
    states, other = torch.randn(2, CONFIG.text_tokens, CONFIG.text_width, generator=generator)
    video, audio = torch.randn(VIDEO_SHAPE, generator=generator), torch.randn(AUDIO_SHAPE, generator=generator)
    times = schedule(steps, shift=shift, lead=lead)
    plan = guidance if isinstance(guidance, GuidancePlan) else cfg(guidance)
    text, absence = Text(states, length), Text(other, 3) if negative else None
    of_video: Known | None = None
    of_audio: Known | None = None
    if known:
        times, of_video = times.known_video(), Known(video, clean=clean)
    elif start:
        of_video, of_audio = Known(video, start=start), Known(audio, start=start)
    elif prefix:
        frames, sounds = (torch.arange(n) < n * prefix // VIDEO_SHAPE[1] for n in (VIDEO_SHAPE[1], AUDIO_SHAPE[0]))
        of_video, of_audio = Known(video, frames, clean=clean), Known(audio, sounds)
    if sound:
        of_audio = Known(audio, clean=True)
    return Job(SEQUENCE, seed, times, plan, text, absence, of_video, of_audio, SILENCE, tuple(takes))


def held(known: Known | None, z: Tensor, noise: Tensor, t: Tensor | float, axis: int) -> Tensor:
    """Latents with what is known of them put in at time t."""
    if known is None or known.start:
        return z
    t = 1.0 if known.clean else t
    mask = torch.ones(z.shape[axis], dtype=torch.bool) if known.mask is None else known.mask
    mask = mask.reshape([-1 if i == axis else 1 for i in range(z.ndim)])
    return torch.where(mask, (1 - t) * noise + t * known.latents, z)


def velocities(model: DDiT, job: Job, branch: Branch, z_v, z_a, t_v, t_a, still) -> tuple[Tensor, Tensor]:
    """One branch alone: both towers in full."""
    words = job.text if branch.text else job.negative or Text(model.null_text, job.text.length)
    text = model.condition(words.states[None], torch.tensor([words.length]))
    fps, row = torch.tensor([float(SEQUENCE.fps)]), torch.tensor([0])
    if model.config.video_reads_audio and branch.muted:
        z_a, t_a = job.silence, torch.ones(())
    t = t_v.expand(1, z_v.shape[1])
    if job.video is not None and job.video.clean and not job.video.start:
        mask = torch.ones(z_v.shape[1], dtype=torch.bool) if job.video.mask is None else job.video.mask
        t = torch.where(mask, 1.0, t)
    if branch.static:
        z_v, t = still, torch.ones(1, z_v.shape[1])
    reference = None if job.reference is None else job.reference[None]
    bridged = torch.tensor([branch.bridge])
    found = model(z_v[None], z_a[None], t, t_a[None], fps, text, row, bridged, reference)
    return found.video[0], found.audio[0]


def naive(model: DDiT, job: Job, sound: int | None = None, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """Latents of one request, its sound with the seed ``sound``, after its first ``steps`` or all of them."""
    sound, steps = job.sounds[0] if sound is None else sound, len(job.schedule) if steps is None else steps
    z_v = noise_v = torch.from_numpy(normal(job.seed, Stream.VIDEO, VIDEO_SHAPE))
    z_a = noise_a = torch.from_numpy(normal(sound, Stream.AUDIO, AUDIO_SHAPE))
    if job.video is not None and job.video.start:
        z_v = torch.lerp(noise_v, job.video.latents, job.video.start)
        z_a = torch.lerp(noise_a, job.audio.latents, job.audio.start)
    times = [torch.tensor(grid, dtype=torch.float32) for grid in (job.schedule.video, job.schedule.audio)]
    if job.audio is not None and job.audio.clean:
        times[1] = torch.ones_like(times[1])
    expected = torch.zeros_like(z_v)
    differences: list[Tensor | None] = [None, None]  # from the first branch to what guidance gives, `age` steps ago
    age = 0
    for k in range(steps):
        (t_v, next_v), (t_a, next_a) = (grid[k : k + 2] for grid in times)
        z_v, z_a = held(job.video, z_v, noise_v, t_v, 1), held(job.audio, z_a, noise_a, t_a, 0)
        picture = held(job.video and dataclasses.replace(job.video, clean=True), z_v if t_v >= 1 else expected, 0, 1, 1)
        still = picture[:, :1].expand_as(picture)
        weights = [job.plan.at(m, float(job.schedule.__dict__[m][k])) for m in ("video", "audio")]
        found = {
            branch: velocities(model, job, branch, z_v, z_a, t_v, t_a, still)
            for branch in {FULL: None} | weights[0] | weights[1]
        }
        moves = []
        guides = [len(weights[0]) > 1 and next_v > t_v, len(weights[1]) > 1 and next_a > t_a]
        missing = any(guides[i] and differences[i] is None for i in (0, 1))
        renews = any(guides) and (missing or age >= job.plan.branch_interval)
        if renews:
            differences, age = [None, None], 0
        age += 1
        for i, of in enumerate(weights):
            guided = sum(weight * found[branch][i] for branch, weight in of.items())
            first = found[next(iter(of))][i]
            if guides[i] and renews:
                differences[i] = guided - first
            elif guides[i]:
                guided = first + differences[i]
            share = job.plan.rescale
            moves.append(guided * (share * first.std() / guided.std() + 1 - share))
        if next_v > t_v:
            expected = z_v + (1 - t_v) * moves[0]
        z_v, z_a = z_v + (next_v - t_v) * moves[0], z_a + (next_a - t_a) * moves[1]
    return held(job.video, z_v, noise_v, times[0][steps], 1), held(job.audio, z_a, noise_a, times[1][steps], 0)


def assert_plain(model: DDiT, job: Job, latents: Latents, steps: int | None = None) -> None:
    """What has become of a request, video (1, C_v, T, H, W) and audio (takes, A, C_a), is what the plain loop gives."""
    assert len(latents.audio) == len(job.sounds)
    for k, sound in enumerate(job.sounds):
        video, audio = naive(model, job, sound, steps)
        if k == 0:
            torch.testing.assert_close(latents.video[0], video, **TOLERANCE)
        torch.testing.assert_close(latents.audio[k], audio, **TOLERANCE)


PLANS = st.builds(
    lambda text, sync, static, **options: combine(
        [text_guidance(text), sync_guidance(sync), sync_cfg_audio(static)], **options
    ),
    text=st.sampled_from([0.0, 1.0, 4.0]),
    sync=st.sampled_from([0.0, 2.0]),
    static=st.sampled_from([1.0, 2.0]),
    interval=st.sampled_from([(0.0, 1.0), (0.3, 0.7)]),
    rescale=st.sampled_from([0.0, 0.7]),
    branch_interval=st.sampled_from([1, 1, 2, 3]),
)
SEEDS = st.integers(0, 2**31)
JOBS = st.builds(
    job,
    seed=SEEDS,
    steps=st.integers(1, 4),
    shift=st.sampled_from([1.0, 3.0]),
    lead=st.sampled_from([0.0, 0.5, 1.0]),
    guidance=PLANS,
    length=st.integers(1, CONFIG.text_tokens),
    known=st.booleans(),
    negative=st.booleans(),
    clean=st.booleans(),
    prefix=st.integers(0, 1),
    start=st.sampled_from([0.0, 0.4]),
    takes=st.sampled_from([0, 0, 1, 3]).flatmap(lambda n: st.lists(SEEDS, min_size=n, max_size=n)),
)
"""Requests of a model whose video does not read the audio."""

HEARING_JOBS = st.builds(
    job,
    seed=SEEDS,
    steps=st.integers(1, 3),
    lead=st.sampled_from([0.0, 0.5, 1.0]),
    guidance=st.builds(
        lambda text, sync, video, audio, every: combine(
            [text_guidance(text), sync_guidance(sync), sync_cfg_video(video), sync_cfg_audio(audio)],
            branch_interval=every,
        ),
        text=st.sampled_from([1.0, 4.0]),
        sync=st.sampled_from([0.0, 2.0]),
        video=st.sampled_from([1.0, 3.0]),
        audio=st.sampled_from([1.0, 2.0]),
        every=st.sampled_from([1, 1, 2]),
    ),
    sound=st.booleans(),
    prefix=st.integers(0, 1),
    clean=st.booleans(),
    negative=st.booleans(),
)
"""Requests of a model whose video reads the audio."""
