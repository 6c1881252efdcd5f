"""The Euler loop: all branches of all requests in one forward, guidance, step and known latents in one operation.

What does not depend on the step is computed before it: text keys and values once a prompt, modulation rows once a
schedule. A modality that stands still at a step (``Schedule``) costs nothing there; video that stands still keeps its
features. Which rows the towers compute is decided in ``rows.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...kernels import guided_euler_step
from ..model import DDiT
from ..types import Conditioning, Latents, Velocities
from .guidance import Branch
from .job import Job, Text, audio_noise, video_noise
from .rows import JointLayout, Layout, VideoRow, lay_out, lay_out_jointly
from .tracks import Modality, Track

StepCallback = Callable[[int, int, Latents], None]
Velocity = dict[str, Tensor]


@torch.inference_mode()
def sample(model: DDiT, jobs: Sequence[Job], on_step: StepCallback | None = None) -> Latents:
    """Latents at t = 1 of B requests of one latent shape.

    Requests may differ in steps, guidance, shift, lead and task. ``on_step(step, steps, latents)`` is called after
    each.
    """
    batch = (JointBatch if model.config.video_reads_audio else Batch)(model, jobs)
    for k in range(batch.steps):
        batch.step(k)
        if on_step is not None:
            on_step(k + 1, batch.steps, batch.latents)
    return batch.latents


def texts(jobs: Sequence[Job]) -> dict[tuple[int, bool], int]:
    """Request and whether its prompt or what stands for its absence, for every text that a branch reads; its place."""
    branches = [(b, branch.text) for b, job in enumerate(jobs) for branch in job.plan.branches]
    return {key: i for i, key in enumerate(dict.fromkeys(branches))}


def conditions(model: DDiT, jobs: Sequence[Job]) -> Conditioning:
    """Keys and values of :func:`texts`; the null text is cut to the length of the request's own prompt."""
    null = model.video.y_embedder.y_embedding
    found = []
    for b, prompted in texts(jobs):
        job = jobs[b]
        found.append(job.text if prompted else job.negative or Text(null, job.text.length))
    lengths = torch.tensor([text.length for text in found], device=null.device)
    return model.video.condition(torch.stack([text.states.to(null) for text in found]), lengths)


class Batch:
    """B requests on their way from noise to data."""

    def __init__(self, model: DDiT, jobs: Sequence[Job]) -> None:
        self.model, self.jobs = model, jobs
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        config = model.config
        noise_v = torch.stack([video_noise(job, config.video_channels) for job in jobs]).to(self.device)
        noise_a = torch.stack([audio_noise(job, config.audio_channels) for job in jobs]).to(self.device)
        self.video = Track(jobs, "video", noise_v, self.dtype)
        self.audio = Track(jobs, "audio", noise_a, self.dtype)
        self.steps, self.frames = len(self.video.moves), noise_v.shape[2]
        self.text_rows, self.text = texts(jobs), conditions(model, jobs)
        self.context: list[Tensor] = []
        self.context_rows: tuple[VideoRow, ...] = ()
        self.estimate = torch.zeros_like(noise_v)  # of the clean video; the mean of normalised latents before step 0
        self._layouts: dict[tuple[object, ...], tuple[Layout, dict[str, Tensor]]] = {}

    @property
    def latents(self) -> Latents:
        """Where both modalities are now."""
        return Latents(self.video.latents, self.audio.latents)

    def step(self, k: int) -> None:
        """Both towers where their modality moves, then one Euler step of all that moves."""
        layout, index = self._layout(k)
        velocities: dict[Modality, Tensor] = {}
        if layout.video:
            velocity, features = self._video_pass(k, layout, index)
            if layout.sources:
                self._keep(layout, features)
            if self.video.moves[k]:
                velocities["video"] = velocity
        if self.audio.moves[k]:
            velocities["audio"] = self._audio_pass(k, layout, index)
        self._euler(k, velocities, index)
        if "video" in velocities:
            self.context_rows = ()

    # What a step reads

    def _layout(self, k: int) -> tuple[Layout, dict[str, Tensor]]:
        """Rows of step k and their indices on the device; the same object as long as nothing changes."""
        weights = self._weights_at(k)
        key = tuple(None if of is None else tuple(tuple(one.items()) for one in of) for of in weights.values())
        audio_text = self.model.config.audio_text
        if (key, self.context_rows) not in self._layouts:
            layout = lay_out(weights["video"], weights["audio"], audio_text=audio_text)
            if not self.video.moves[k] and set(layout.sources) <= set(self.context_rows):
                layout = lay_out(None, weights["audio"], audio_text=audio_text, features_kept=True)
            self._layouts[key, self.context_rows] = layout, self._indices(layout)
        return self._layouts[key, self.context_rows]

    def _weights_at(self, k: int) -> dict[Modality, list[dict[Branch, float]] | None]:
        """Weights of every request's branches at step k; None for a modality that does not move."""
        return {
            track.modality: [job.plan.at(track.modality, t) for job, t in zip(self.jobs, track.grid[k], strict=True)]
            if track.moves[k]
            else None
            for track in (self.video, self.audio)
        }

    def _indices(self, layout: Layout) -> dict[str, Tensor]:
        return {
            "video_request": self._tensor([row.request for row in layout.video]),
            "video_text": self._tensor([self.text_rows[row.request, row.text] for row in layout.video]),
            "static": self._tensor([row.static for row in layout.video]),
            "audio_request": self._tensor([row.request for row in layout.audio]),
            "audio_text": self._tensor([self.text_rows.get((row.request, row.text), 0) for row in layout.audio]),
            **self._weights("video", layout.video_weights),
            **self._weights("audio", layout.audio_weights),
        }

    def _weights(self, name: Modality, weights: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Tensor]:
        """Rows and weights (B, G); a request with fewer branches repeats its first row with weight 0."""
        most = max(map(len, weights), default=0)
        padded = [(*pairs, *[(pairs[0][0], 0.0)] * (most - len(pairs))) for pairs in weights]
        return {
            f"{name}_rows": self._tensor([[row for row, _ in pairs] for pairs in padded]),
            f"{name}_weights": self._tensor([[weight for _, weight in pairs] for pairs in padded]),
        }

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self.device)

    @cached_property
    def _fps(self) -> Tensor:
        return torch.tensor([float(job.sequence.fps) for job in self.jobs], device=self.device)

    @cached_property
    def _modulation(self) -> tuple[Tensor, Tensor]:
        """Rows (K, B, 6, D) and embedding (K, B, D) of all steps."""
        times = self.video.times[: self.steps].reshape(-1, 1)
        rows, embedded = self.model.video.modulation(times, self._fps.repeat(self.steps))
        return rows[:, 0].unflatten(0, (self.steps, -1)), embedded[:, 0].unflatten(0, (self.steps, -1))

    @cached_property
    def _modulation_of_clean(self) -> tuple[Tensor, Tensor]:
        """The same at time 1: (B, 6, D) and (B, D)."""
        rows, embedded = self.model.video.modulation(torch.ones_like(self._fps)[:, None], self._fps)
        return rows[:, 0], embedded[:, 0]

    def _modulation_at(self, k: int, layout: Layout, index: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Modulation of the rows at step k: (R, 1 or T, 6, D) and (R, 1 or T, D); clean frames stand at time 1."""
        request = index["video_request"]
        rows, embedded = (part[k, request][:, None] for part in self._modulation)
        clean = index["static"][:, None] if any(row.static for row in layout.video) else None
        held = self.video
        if (
            held.holds is not None
            and held.clean is not None
            and any(job.video and job.video.clean for job in self.jobs)
        ):
            frames = (held.holds[:, 0, :, 0, 0] & held.clean[:, None])[request]
            clean = frames if clean is None else frames | clean
        if clean is None:
            return rows, embedded
        at_1, embedded_at_1 = (part[request][:, None] for part in self._modulation_of_clean)
        return torch.where(clean[..., None, None], at_1, rows), torch.where(clean[..., None], embedded_at_1, embedded)

    # Passes

    def _video_pass(self, k: int, layout: Layout, index: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        request = index["video_request"]
        z = self.video.reads[request]
        if any(row.static for row in layout.video):
            still = self._still(k)[request].to(z)
            z = torch.where(index["static"][:, None, None, None, None], still, z)
        return self.model.video(z, *self._modulation_at(k, layout, index), self.text, index["video_text"])

    def _keep(self, layout: Layout, features: list[Tensor]) -> None:
        """Adapt the features that the audio reads."""
        sources = layout.sources
        if sources != layout.video:
            places = torch.tensor([layout.video.index(row) for row in sources], device=self.device)
            features = [feature[places] for feature in features]
        self.context, self.context_rows = self.model.audio.adapt(features), sources

    def _audio_pass(self, k: int, layout: Layout, index: dict[str, Tensor]) -> Tensor:
        """Rows that read the video, then rows that do not."""
        bridged = sum(row.source is not None for row in layout.audio)
        request, words = index["audio_request"], index["audio_text"]
        z, t = self.audio.reads[request], self.audio.times[k, request]
        velocities = []
        if bridged:
            wanted = tuple(row.source for row in layout.audio[:bridged])
            context = self.context
            if wanted != self.context_rows:
                places = torch.tensor([self.context_rows.index(row) for row in wanted if row], device=self.device)
                context = [tokens[places] for tokens in context]
            rows = slice(None, bridged)
            velocities.append(self.model.audio_velocity(z[rows], t[rows], context, self.frames, self.text, words[rows]))
        if bridged < len(layout.audio):
            rows = slice(bridged, None)
            velocities.append(self.model.audio_velocity(z[rows], t[rows], None, self.frames, self.text, words[rows]))
        return velocities[0] if len(velocities) == 1 else torch.cat(velocities)

    # Static video

    def _still(self, k: int) -> Tensor:
        """The first frame of what is known, drawn or expected of the video, repeated: (B, C_v, T, H, W)."""
        drawn = self.video.times[k][:, None, None, None, None] >= 1
        picture = torch.where(drawn, self.video.latents, self.estimate)
        if self.video.holds is not None and self.video.known is not None:
            picture = torch.where(self.video.holds, self.video.known, picture)
        return picture[:, :, :1].expand_as(picture)

    def _look_ahead(self, k: int, stepped: Tensor) -> None:
        """The clean video as step k expects it: z + (1 - t) v, where v is what moved z."""
        t, dt = self.video.times[k], self.video.times[k + 1] - self.video.times[k]
        reach = ((1 - t) / dt.clamp_min(1e-6))[:, None, None, None, None]
        ahead = self.video.latents + reach * (stepped - self.video.latents)
        self.estimate = torch.where(dt[:, None, None, None, None] > 0, ahead, self.estimate)

    # Steps

    def _euler(self, k: int, velocities: dict[Modality, Tensor], index: dict[str, Tensor]) -> None:
        """Step what has a velocity."""
        if not velocities:
            return
        tracks = [self.video if modality == "video" else self.audio for modality in velocities]
        entries = [self._entry(track, k, velocities[track.modality], index) for track in tracks]
        copies = self.dtype if self.dtype != self.video.noise.dtype else None
        stepped = guided_euler_step(*map(list, zip(*entries, strict=True)), copies)
        if "video" in velocities and any(branch.static for job in self.jobs for branch in job.plan.branches):
            self._look_ahead(k, stepped[0])
        for track, latents, read in zip(tracks, stepped, stepped[-len(tracks) :], strict=False):
            track.latents, track.reads = latents, read

    def _entry(self, track: Track, k: int, velocity: Tensor, index: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        """Arguments of the Euler step of one modality."""
        rows, weights = index[f"{track.modality}_rows"], index[f"{track.modality}_weights"]
        dt = track.times[k + 1] - track.times[k]
        if any(job.plan.rescale for job in self.jobs):
            dt = dt * self._rescaled(velocity, rows, weights)
        return track.latents, velocity, rows, weights, dt, *track.held(k)

    def _rescaled(self, velocity: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """By how much each guided velocity is drawn back to the deviation of its full branch. -> (B,)."""
        branches = velocity[rows].flatten(2).float()
        guided = (weights[..., None] * branches).sum(1)
        ratio = branches[:, 0].std(-1) / guided.std(-1).clamp_min(1e-12)
        share = torch.tensor([job.plan.rescale for job in self.jobs], device=self.device)
        return share * ratio + (1 - share)


class JointBatch(Batch):
    """Requests of a model whose video reads the audio: every branch is a row of one forward through both towers."""

    def step(self, k: int) -> None:
        """One forward, then one Euler step of what moves."""
        weights = self._weights_at(k)
        layout = lay_out_jointly(weights["video"], weights["audio"])
        if not layout.rows:
            return
        index = self._weights("video", layout.video_weights) | self._weights("audio", layout.audio_weights)
        found = self._forward(k, layout)
        moving = (("video", self.video, found.video), ("audio", self.audio, found.audio))
        self._euler(k, {m: v for m, track, v in moving if track.moves[k] and v is not None}, index)  # type: ignore[misc]

    def _forward(self, k: int, layout: JointLayout) -> Velocities:
        branches = [row.branch for row in layout.rows]
        request = self._tensor([row.request for row in layout.rows])
        words = self._tensor([self.text_rows[row.request, row.branch.text] for row in layout.rows])
        z_v, z_a = self.video.reads[request], self.audio.reads[request]
        t_v, t_a = self.video.times[k, request], self.audio.times[k, request]
        if self.video.any_clean and self.video.holds is not None and self.video.clean is not None:
            clean = (self.video.holds[:, 0, :, 0, 0] & self.video.clean[:, None])[request]
            t_v = torch.where(clean, 1.0, t_v[:, None])
        if any(branch.static for branch in branches):
            static = self._tensor([branch.static for branch in branches])
            z_v = torch.where(static[:, None, None, None, None], self._still(k)[request].to(z_v), z_v)
            t_v = torch.where(static if t_v.ndim == 1 else static[:, None], 1.0, t_v)
        if any(branch.muted for branch in branches):
            muted = self._tensor([branch.muted for branch in branches])
            z_a = torch.where(muted[:, None, None], self._silence[request].to(z_a), z_a)
            t_a = torch.where(muted, 1.0, t_a)
        bridged = None if all(b.bridge for b in branches) else self._tensor([b.bridge for b in branches])
        return self.model(z_v, z_a, t_v, t_a, self._fps[request], self.text, words, bridged)

    @cached_property
    def _silence(self) -> Tensor:
        zeros = torch.zeros_like(self.audio.noise)
        return torch.stack([z if job.silence is None else job.silence.to(z) for job, z in zip(self.jobs, zeros)])  # noqa: B905
