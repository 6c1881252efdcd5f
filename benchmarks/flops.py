"""How much work sampling is, by counting: floating-point operations and calls, the same on every machine.

``python -m syncflow.benchmarks.flops [PRESET...]`` prints them as Markdown. The loop that is counted is the real one,
on the meta device, where tensors have shapes and no values. 1 multiply-add = 2 operations; matrix products,
convolutions and attentions count, elementwise work does not, and neither do text encoder and codecs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import prod

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from syncflow.engine.config import ModelConfig, preset
from syncflow.engine.model import DDiT
from syncflow.engine.model.layers import CrossAttention
from syncflow.engine.sampling.guidance import (
    GuidancePlan,
    cfg,
    combine,
    sync_cfg_audio,
    sync_guidance,
    text_guidance,
)
from syncflow.engine.sampling.job import Job, Known, Text
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.schedule import schedule

Shape = Sequence[int]


def _spatial(qkv: Shape, *_: object, **__: object) -> int:
    rows, frames, tokens, _packed, heads, width = qkv
    return 4 * rows * frames * tokens**2 * heads * width


def _temporal(qkv: Shape, *_: object, **__: object) -> int:
    rows, frames, tokens, _packed, heads, width = qkv
    return 4 * rows * tokens * frames**2 * heads * width


def _cross(q: Shape, k: Shape, *_: object, **__: object) -> int:
    return 4 * prod(q) * k[1]


def _linear(x: Shape, weight: Shape, *_: object, **__: object) -> int:
    return 2 * prod(x) * weight[0]


OPERATIONS = {
    torch.ops.syncflow.spatial_attention: _spatial,
    torch.ops.syncflow.temporal_attention: _temporal,
    torch.ops.syncflow.text_cross_attention: _cross,
    torch.ops.syncflow.rope_cross_attention: _cross,
    torch.ops.syncflow.gated_linear: _linear,
    torch.ops.syncflow.linear_gelu: _linear,
}


class _Calls(TorchDispatchMode):
    """Counts the operations that reach the device; views cost nothing there and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        work()
    return counter.get_total_flops()


def calls(work: Callable[[], object]) -> int:
    """Operations that a call sends to the device."""
    with torch.no_grad(), _Calls() as counter:
        work()
    return counter.count


@dataclass(frozen=True)
class Counts:
    """Floating-point operations of the parts and of whole samples; ``calls_*`` are operations sent to the device.

    ``text`` is once a prompt and ``modulation`` once a flow time; ``video``, ``adaptors`` and ``audio`` are one pass of
    one row; ``context_keys`` is the part of ``audio`` that projects the video tokens. A sample is one clip with two
    branches: both modalities at a shared time or the video first, a known video noised or clean; at a shared time with
    sync guidance, or with SyncCFG of the audio, as a third branch.
    """

    text: int
    modulation: int
    video: int
    adaptors: int
    audio: int
    context_keys: int
    shared_time: int
    video_first: int
    known_noised: int
    known_clean: int
    sync_guided: int
    static_guided: int
    calls_together: int
    calls_apart: int


def count(config: ModelConfig, steps: int = 50) -> Counts:
    """Count a preset.

    Work is a line in the layers and a line in the steps, so that 1 and 2 of each give any number of them.
    """
    shallow, deeper = (_count(config.replace(ddit=config.ddit.replace(depth=depth)), steps) for depth in (1, 2))
    return Counts(**{k: _line(v, getattr(deeper, k), config.ddit.depth) for k, v in asdict(shallow).items()})


def sample_flops(
    config: ModelConfig, steps: int, *, lead: float = 0.0, known: bool = False, plan: GuidancePlan | None = None
) -> int:
    """Count the loop itself, layer by layer and step by step."""
    with torch.device("meta"):
        model = DDiT(config.ddit).eval().requires_grad_(False)
    return flops(lambda: sample(model, [job(config, steps, lead=lead, known=known, plan=plan)]))


def _count(config: ModelConfig, steps: int) -> Counts:
    with torch.device("meta"):
        parts = _Parts(DDiT(config.ddit).eval().requires_grad_(False), config)

    def whole(*, lead: float, known: bool = False, plan: GuidancePlan | None = None) -> int:
        one, two = (sample_flops(config, n, lead=lead, known=known, plan=plan) for n in (1, 2))
        return _line(one, two, steps)

    return Counts(
        text=flops(parts.text),
        modulation=flops(parts.modulation),
        video=flops(parts.video),
        adaptors=flops(parts.adaptors),
        audio=flops(parts.audio),
        context_keys=_context_keys(parts),
        shared_time=whole(lead=0.0),
        video_first=whole(lead=1.0),
        known_noised=whole(lead=0.0, known=True),
        known_clean=whole(lead=1.0, known=True),
        sync_guided=whole(lead=0.0, plan=combine([text_guidance(6.0), sync_guidance(2.0)])),
        static_guided=whole(lead=0.0, plan=combine([text_guidance(6.0), sync_cfg_audio(2.0)])),
        calls_together=calls(parts.step(2)),
        calls_apart=2 * calls(parts.step(1)),
    )


def _line(at_one: int, at_two: int, x: int) -> int:
    return at_one + (x - 1) * (at_two - at_one)


def job(config: ModelConfig, steps: int, *, lead: float, known: bool = False, plan: GuidancePlan | None = None) -> Job:
    """One clip of the preset's own sequence, with classifier-free guidance alone by default; ``known``: its video."""
    s, d = config.sequence, config.ddit
    times = schedule(steps, shift=config.sampling.shift, lead=lead)
    states = torch.zeros(d.text_tokens, d.text_width, device="meta")
    video = torch.zeros(d.video_channels, s.latent_frames, s.latent_height, s.latent_width, device="meta")
    if known:
        times = times.known_video()
    return Job(s, 0, times, plan or cfg(6.0), Text(states, d.text_tokens), video=Known(video) if known else None)


class _Parts:
    """The pieces of a forward for one row, ready to be called."""

    def __init__(self, model: DDiT, config: ModelConfig) -> None:
        self.model, self.config = model, config
        s, d = config.sequence, config.ddit
        self.frames = s.latent_frames
        self.states = torch.zeros(1, d.text_tokens, d.text_width)
        self.lengths = torch.full((1,), d.text_tokens)
        self.z_v = torch.zeros(1, d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
        self.z_a = torch.zeros(1, s.audio_tokens, d.audio_channels)
        self.t, self.fps, self.row = torch.zeros(1), torch.full((1,), float(s.fps)), torch.zeros(1, dtype=torch.long)
        self.conditioning = model.video.condition(self.states, self.lengths)
        self.times = model.video.modulation(self.t[:, None], self.fps)
        _, self.features = self.video()
        self.context = self.adaptors()

    def text(self) -> object:
        return self.model.video.condition(self.states, self.lengths)

    def modulation(self) -> object:
        return self.model.video.modulation(self.t[:, None], self.fps)

    def video(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.model.video(self.z_v, *self.times, self.conditioning, self.row)

    def adaptors(self) -> list[torch.Tensor]:
        return self.model.audio.adapt(self.features)

    def audio(self) -> object:
        return self.model.audio_velocity(self.z_a, self.t, self.context, self.frames, self.conditioning, self.row)

    def step(self, rows: int) -> Callable[[], object]:
        """A forward of both towers over ``rows`` branches."""

        def forward() -> object:
            tensors = (self.z_v, self.z_a, self.t, self.t, self.fps)
            z_v, z_a, t_v, t_a, fps = (x.expand(rows, *x.shape[1:]) for x in tensors)
            return self.model(z_v, z_a, t_v, t_a, fps, self.conditioning, self.row.expand(rows))

        return forward


def _context_keys(parts: _Parts) -> int:
    """Keys and values of the video tokens in every audio layer."""
    total = 0
    for layer, tokens in zip(parts.model.audio.layers, parts.context, strict=True):
        attention = layer.get_submodule("cross_attn")
        assert isinstance(attention, CrossAttention)
        total += flops(partial(attention.keys_values, tokens))
    return total


def _number(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f}"


def main() -> None:
    """Print the counts of both presets as Markdown."""
    found = {name: count(preset(name)) for name in (sys.argv[1:] or ("syncflow-tiny", "syncflow-xl"))}
    print(f"| FLOP | {' | '.join(found)} |\n|---|{'--:|' * len(found)}")
    for name in Counts.__dataclass_fields__:
        print(f"| {name} | {' | '.join(_number(getattr(c, name)) for c in found.values())} |")


if __name__ == "__main__":
    main()
