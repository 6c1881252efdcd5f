"""Random arguments of every operation at the sizes of a preset.

On the meta device arguments have shapes and no values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.presets import preset
from ...kernels.reference_ops import rope_table

BRANCHES = 2
EPS = 1e-6
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Sizes:
    """Lengths and widths of a batch of clips.

    ``context`` is what the audio reads: all video tokens or one a frame; ``ragged``: prompts of different lengths, and
    audio that reads a shared video or none.
    """

    name: str
    batch: int
    frames: int
    height: int
    width: int
    audio: int
    text: int
    channels: int
    heads: int
    audio_heads: int
    hidden: int
    video_channels: int
    audio_channels: int
    context: str
    ragged: bool = False

    @classmethod
    def of(cls, name: str, batch: int, scale: int) -> Sizes:
        """``batch`` clips of a preset at ``scale`` times its side."""
        config = preset(name)
        s, d = config.sequence, config.ddit
        s = s.replace(width=s.width * scale, height=s.height * scale)
        return cls(
            f"{name.removeprefix('syncflow-')} {s.width}x{s.height} batch {batch}",
            batch,
            s.latent_frames,
            s.latent_height,
            s.latent_width,
            s.audio_tokens,
            d.text_tokens,
            d.width,
            d.heads,
            d.audio_heads,
            int(d.width * d.mlp_ratio),
            d.video_channels,
            d.audio_channels,
            d.adaptor_tokens,
        )

    @property
    def rows(self) -> int:
        """R, the branches of all requests."""
        return BRANCHES * self.batch

    @property
    def tokens(self) -> int:
        """S, of one latent frame."""
        return (self.height // 2) * (self.width // 2)

    @property
    def context_tokens(self) -> int:
        """Video tokens that an audio layer reads."""
        return self.frames if self.context == "frame" else self.frames * self.tokens


MICRO = Sizes("micro 32x32 batch 1", 1, 2, 4, 4, 5, 3, 32, 2, 2, 64, 2, 3, "all")
ODD = (
    Sizes("odd 144", 1, 5, 2, 14, 13, 11, 144, 2, 2, 304, 3, 5, "all", True),
    Sizes("odd 96", 2, 3, 10, 26, 101, 70, 96, 3, 2, 200, 2, 7, "frame", True),
    Sizes("odd 160", 1, 70, 2, 6, 129, 33, 160, 2, 4, 328, 1, 1, "all", True),
)


class RandomTensors:
    """Random tensors on ``device``, in ``dtype`` by default; the same for the same ``seed``."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.generator = None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normally distributed, with standard deviation ``scale``."""
        dtype = dtype or self.dtype
        if self.generator is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        x = torch.randn(shape, device=self.device, generator=self.generator, dtype=dtype)
        return x if scale == 1 else x.mul_(scale)

    def near_one(self, *shape: int) -> Tensor:
        """Weights of a norm: 1 plus noise."""
        return self.normal(*shape, scale=0.2) + 1

    def quantised(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Rows in e4m3 and a scale for each row."""
        x = self.normal(*shape, dtype=torch.float32)
        scales = x.abs().amax(-1) / 448
        return (x / scales[..., None]).to(torch.float8_e4m3fn), scales

    def indices(self, values: Sequence[Any]) -> Tensor:
        """int64 values."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _spatial(n: RandomTensors, s: Sizes) -> Arguments:
    width = s.channels // s.heads
    return (n.normal(s.rows, s.frames, s.tokens, 3, s.heads, width), n.near_one(width), n.near_one(width), EPS)


def _temporal(frames: Callable[[Sizes], int], tokens: Callable[[Sizes], int], audio: bool) -> Factory:
    def make(n: RandomTensors, s: Sizes) -> Arguments:
        heads, length = s.audio_heads if audio else s.heads, frames(s)
        width = s.channels // heads
        qkv = n.normal(s.rows, length, tokens(s), 3, heads, width)
        rope = rope_table(n.normal(length, width // 2, dtype=torch.float32, scale=10))
        return (qkv, n.near_one(width), n.near_one(width), rope, EPS)

    return make


def _text(n: RandomTensors, s: Sizes) -> Arguments:
    width = s.channels // s.heads
    queries = n.normal(s.rows, s.frames * s.tokens, s.heads, width)
    keys, values = (n.normal(s.rows, s.text, s.heads, width) for _ in range(2))
    lengths = [max(1, s.text - 5 * row) if s.ragged else s.text for row in range(s.rows)]
    return (queries, keys, values, n.indices(lengths), n.indices(range(s.rows)))


def _rope(n: RandomTensors, s: Sizes) -> Arguments:
    heads, width = s.audio_heads, s.channels // s.audio_heads
    contexts = s.batch if s.ragged else s.rows
    queries = n.normal(s.rows, s.audio, heads, width)
    keys, values = n.normal(contexts, s.context_tokens, 2, heads, width).unbind(2)
    q_positions, k_positions = (n.normal(m, dtype=torch.float32, scale=30) for m in (s.audio, s.context_tokens))
    frequencies = n.normal(width // 2, dtype=torch.float32)
    # ragged: the branches of a request share a video, which the last one does not read, within a window
    shared = [row // BRANCHES for row in range(s.rows - 1)] + [-1]
    rows = n.indices(shared if s.ragged else range(s.rows))
    time = n.normal(s.rows, 1, 2, heads, width).unbind(2)
    return (queries, keys, values, q_positions, k_positions, frequencies, 30.0 if s.ragged else -1.0, rows, *time)


def _rope_window(n: RandomTensors, s: Sizes) -> Arguments:
    """Video tokens that read the audio within one latent frame, each row its own."""
    width = s.channels // s.heads
    queries = n.normal(s.rows, s.frames * s.tokens, s.heads, width)
    keys, values = n.normal(s.rows, s.audio, 2, s.heads, width).unbind(2)
    frames, tokens = (torch.arange(m, device=n.device, dtype=torch.float32) for m in (s.frames, s.audio))
    q_positions, k_positions = frames[:, None].expand(-1, s.tokens).flatten(), tokens * (s.frames / s.audio)
    return (queries, keys, values, q_positions, k_positions, n.normal(width // 2, dtype=torch.float32), 1.0)


def _norm(part: int) -> Factory:
    def make(n: RandomTensors, s: Sizes) -> Arguments:
        x = n.normal(s.rows, s.frames, s.tokens, s.channels)
        return (x, *_modulation(n, s), part, EPS)

    return make


def _final_norm(n: RandomTensors, s: Sizes) -> Arguments:
    x = n.normal(s.rows, s.frames, s.tokens, s.channels)
    embedded = n.normal(s.rows, 1, s.channels, scale=0.3)
    return (x, n.normal(2, s.channels, scale=0.3), embedded[:, :, None].expand(-1, -1, 2, -1), 0, EPS)


def _gate(n: RandomTensors, s: Sizes) -> Arguments:
    x, branch = _pair(n, s)
    return (x, branch, *_modulation(n, s), 0)


def _gate_norm(gated: bool) -> Factory:
    def make(n: RandomTensors, s: Sizes) -> Arguments:
        (x, branch), (table, rows) = _pair(n, s), _modulation(n, s)
        other = n.normal(6, s.channels, scale=0.2)
        return (x, branch, table if gated else None, rows, 3 if gated else 0, other, 0 if gated else 3, EPS)

    return make


def _euler(known: bool) -> Factory:
    def make(n: RandomTensors, s: Sizes) -> Arguments:
        wide = torch.float32
        shape = (s.video_channels, s.frames, s.height, s.width)
        # the tower's output holds as many channels again for the sigma that is not used
        v = n.normal(s.rows, 2 * s.video_channels, *shape[1:])[:, : s.video_channels]
        z = n.normal(s.batch, *shape, dtype=wide)
        rows = n.indices([[BRANCHES * b + g for g in range(BRANCHES)] for b in range(s.batch)])
        weights = n.normal(s.batch, BRANCHES, dtype=wide, scale=6)
        dt, t = (n.normal(s.batch, dtype=wide, scale=0.1).abs() for _ in range(2))
        held: tuple[Tensor | None, ...] = (None, None, None, None)
        if known:
            mask = torch.ones(s.batch, 1, 1, 1, 1, dtype=torch.bool, device=n.device)
            media = n.normal(s.batch, *shape, dtype=wide, scale=0.5)
            held = media, n.normal(s.batch, *shape, dtype=wide), mask, t
        return z, v, rows, weights, dt, *held, None if n.dtype == wide else n.dtype

    return make


def _gelu(n: RandomTensors, s: Sizes) -> Arguments:
    return (n.normal(s.rows, s.frames, s.tokens, s.channels), *_weights(n, s.hidden, s.channels))


def _gated_linear(inner: Callable[[Sizes], int], part: int) -> Factory:
    def make(n: RandomTensors, s: Sizes) -> Arguments:
        x, residual = (n.normal(s.rows, s.frames, s.tokens, width) for width in (inner(s), s.channels))
        return (x, *_weights(n, s.channels, inner(s)), residual, *_modulation(n, s), part)

    return make


def _fp8(inner: Callable[[Sizes], int], outer: Callable[[Sizes], int], gelu: bool, fast_accum: bool = True) -> Factory:
    def make(n: RandomTensors, s: Sizes) -> Arguments:
        codes, scales = n.quantised(s.rows, s.frames, s.tokens, inner(s))
        weight, weight_scales = n.quantised(outer(s), inner(s))
        return (codes, scales, weight, weight_scales / inner(s) ** 0.5, n.normal(outer(s), scale=0.1), gelu, fast_accum)

    return make


def _pair(n: RandomTensors, s: Sizes) -> tuple[Tensor, Tensor]:
    x, branch = (n.normal(s.rows, s.frames, s.tokens, s.channels) for _ in range(2))
    return x, branch


def _modulation(n: RandomTensors, s: Sizes) -> tuple[Tensor, Tensor]:
    return n.normal(6, s.channels, scale=0.3), n.normal(s.rows, 1, 6, s.channels, scale=0.3)


def _weights(n: RandomTensors, outer: int, inner: int) -> tuple[Tensor, Tensor]:
    return n.normal(outer, inner, scale=inner**-0.5), n.normal(outer, scale=0.1)


Factory = Callable[[RandomTensors, Sizes], Arguments]
_VIDEO = "R={s.rows} T={s.frames} S={s.tokens} D={s.channels}"
_HEADS = "R={s.rows} T={s.frames} S={s.tokens} n={s.heads} d={d}"
_LINEAR = "M={m} K={k} N={n}"

# Operation -> place in the model -> shape in symbols, arguments; the most important operations first.
FACTORIES: dict[str, dict[str, tuple[str, Factory]]] = {
    "temporal_attention": {
        "video": (_HEADS, _temporal(lambda s: s.frames, lambda s: s.tokens, audio=False)),
        "audio": (
            "R={s.rows} N={s.audio} n={s.audio_heads} d={a}",
            _temporal(lambda s: s.audio, lambda s: 1, audio=True),
        ),
        "adaptor": (
            "R={s.rows} N={s.context_tokens} n={s.audio_heads} d={a}",
            _temporal(lambda s: s.context_tokens, lambda s: 1, audio=True),
        ),
    },
    "spatial_attention": {"video": (_HEADS, _spatial)},
    "gated_residual_norm": {"mlp": (_VIDEO, _gate_norm(True)), "text": (_VIDEO, _gate_norm(False))},
    "guided_euler_step": {"free": (_VIDEO, _euler(False)), "known": (_VIDEO, _euler(True))},
    "modulated_layer_norm": {"block": (_VIDEO, _norm(3)), "final": (_VIDEO, _final_norm)},
    "gated_residual": {"attention": (_VIDEO, _gate)},
    "text_cross_attention": {"text": ("R={s.rows} N={q} L={s.text} n={s.heads} d={d}", _text)},
    "rope_cross_attention": {
        "audio": ("R={s.rows} N={s.audio} M={s.context_tokens} E=1 n={s.audio_heads} d={a}", _rope),
        "video": ("R={s.rows} N={q} M={s.audio} window=1 n={s.heads} d={d}", _rope_window),
    },
    "linear_gelu": {"mlp": ("M={m} K={s.channels} N={s.hidden}", _gelu)},
    "gated_linear": {
        "mlp": ("M={m} K={s.hidden} N={s.channels}", _gated_linear(lambda s: s.hidden, 3)),
        "attention": ("M={m} K={s.channels} N={s.channels}", _gated_linear(lambda s: s.channels, 0)),
    },
    "modulated_layer_norm_fp8": {"block": (_VIDEO, _norm(3))},
    "fp8_linear": {
        "qkv": ("M={m} K={s.channels} N={three}", _fp8(lambda s: s.channels, lambda s: 3 * s.channels, False)),
        "qkv, float32 sums": (
            "M={m} K={s.channels} N={three}",
            _fp8(lambda s: s.channels, lambda s: 3 * s.channels, False, fast_accum=False),
        ),
        "gelu": ("M={m} K={s.channels} N={s.hidden}", _fp8(lambda s: s.channels, lambda s: s.hidden, True)),
        "mlp": ("M={m} K={s.hidden} N={s.channels}", _fp8(lambda s: s.hidden, lambda s: s.channels, False)),
    },
}
