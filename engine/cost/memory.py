"""Device memory of a request, estimated on the meta device.

A step and the decoding of a clip run on tensors that have shapes and no values, while the bytes of live tensors are
counted. Memory is linear in the number of requests of a kind, so that steps of one and of two requests give it for
any number.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from ...kernels.launch.eager import estimating_for_cpu
from ..components import Components
from ..config import SequenceConfig
from ..forking import remember
from ..model import DDiT
from ..quantization import is_quantized, quantized, stored_bytes
from ..runtime.cuda_graphs.capture import eager_capture
from ..runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from ..sampling.guidance import GuidancePlan
from ..sampling.job import Job, Text
from ..sampling.schedule import Schedule, schedule
from ..sampling.sequential import batch_of
from ..types import WHOLE, DecodeTiles
from .live_memory import peak_bytes

M = TypeVar("M")

WORKSPACE = 32 << 20  # bytes of PyTorch's workspace for cuBLAS on Hopper; on other GPUs it is 8 MiB


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: ``fixed`` for any batch, the weights included, and ``request`` for each request of a kind."""

    fixed: int
    request: int


@dataclass(frozen=True)
class GraphMemory:
    """Bytes that CUDA graphs add to the weights, whatever runs.

    ``buffers``: outputs, of which contexts are the largest, and static inputs of every graph. ``pools``: intermediate
    values, which the graphs of a memory pool share; an upper bound, a whole step for each pool. ``workspaces`` of
    cuBLAS, one for each pool and for each stream beside them.
    """

    buffers: int
    pools: int
    workspaces: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.buffers + self.pools + self.workspaces


class MemoryEstimator:
    """Estimates for one model, cached by kind of request; threads that ask for the same kind wait for one estimate.

    ``dtype`` is the type of the latents that its towers read, by default that of its weights, and ``device`` the one
    that computes, by default theirs.
    """

    def __init__(
        self, components: Components, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        self._config = components.config
        self.weights = weight_bytes(components)
        self._text = components.text
        self._decode_video = _on_meta(components.video).decode
        self._decode_audio = _on_meta(components.audio).decode
        self._on_cpu = (device or components.ddit.device).type == "cpu"
        with torch.device("meta"):
            model = DDiT(components.config.ddit).to(dtype or components.ddit.dtype)
        model = quantized(model) if is_quantized(components.ddit) else model
        self._model = model.eval().requires_grad_(False)
        self._step = cache(self._step_bytes)
        self._decode = cache(self._decode_bytes)
        self.after_fork()
        remember(self)

    def predict(self, sequence: SequenceConfig, plan: GuidancePlan, takes: int = 1) -> MemoryEstimate:
        """The memory of requests of this size, guidance and number of takes."""
        with self._lock:
            alone, added = self._step(sequence, plan, takes, 1), self.step_of(sequence, plan, takes)
            return MemoryEstimate(self.weights + max(0, alone - added), max(added, self._decode(sequence)))

    def peak(self, sequence: SequenceConfig, plan: GuidancePlan, requests: int = 1, takes: int = 1) -> int:
        """The most bytes while so many requests of a kind are sampled together and decoded one after the other."""
        with self._lock:
            steps = self.steps_bytes(sequence, plan, requests, takes)
            return self.weights + max(steps, self._decode(sequence))

    def steps_bytes(self, sequence: SequenceConfig, plan: GuidancePlan, requests: int = 1, takes: int = 1) -> int:
        """The most bytes, weights aside, while so many requests of a kind are sampled together."""
        return self._step(sequence, plan, takes, 1) + (requests - 1) * self.step_of(sequence, plan, takes)

    def encode_text_bytes(self) -> int:
        """The most bytes, weights aside, while a prompt is encoded."""
        text = _on_meta(self._text)
        ids = torch.zeros(1, text.max_tokens, dtype=torch.int64, device="meta")
        return peak_bytes(lambda: text(ids, ids.bool()))

    def decode_video_bytes(self, sequence: SequenceConfig, tiles: DecodeTiles = WHOLE) -> int:
        """The most bytes, weights aside, while the frames of a clip are decoded, so much at once."""
        s, channels = sequence, self._config.ddit.video_channels
        latents = torch.zeros(1, channels, s.latent_frames, s.latent_height, s.latent_width, device="meta")
        with self._estimating():
            return peak_bytes(lambda: self._decode_video(latents, s.frames, tiles), on_cpu=self._on_cpu)

    def decode_audio_bytes(self, sequence: SequenceConfig) -> int:
        """The most bytes, weights aside, while the sound of a clip is decoded."""
        latents = torch.zeros(1, sequence.audio_tokens, self._config.ddit.audio_channels, device="meta")
        with self._estimating():
            return peak_bytes(lambda: self._decode_audio(latents, sequence.samples), on_cpu=self._on_cpu)

    def after_fork(self) -> None:
        """In a forked child, where the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def step_of(self, sequence: SequenceConfig, plan: GuidancePlan, takes: int = 1) -> int:
        """Bytes that one request adds to a step."""
        return self._step(sequence, plan, takes, 2) - self._step(sequence, plan, takes, 1)

    def graphs(
        self, sequence: SequenceConfig, plan: GuidancePlan, batches: Sequence[int], *, overlap: bool = False
    ) -> GraphMemory:
        """The memory of the CUDA graphs of these numbers of requests, all captured, each below the limit of rows.

        ``overlap``: contexts have two buffers. Video and audio take their steps as the model has them by default.
        """
        denoiser = CudaGraphDenoiser(self._model, overlap=overlap, capture=eager_capture)
        with torch.inference_mode():
            for requests in batches:
                batch = batch_of(denoiser)
                batch.join(self._jobs(sequence, plan, 1, requests, schedule(2, lead=self._config.sampling.video_lead)))
                while not batch.step():
                    pass
        one_way = not self._config.ddit.is_joint
        pools = 1 + one_way + (overlap and one_way)
        with self._lock:
            step = self._step(sequence, plan, 1, max(batches))
        streams = 3 + overlap  # steps, encoding, decoding, and the second tower
        return GraphMemory(denoiser.graphs.bytes, pools * step, (pools + streams) * WORKSPACE)

    def _step_bytes(self, sequence: SequenceConfig, plan: GuidancePlan, takes: int, requests: int) -> int:
        jobs = self._jobs(sequence, plan, takes, requests, schedule(1))

        def work() -> None:
            batch = batch_of(self._model)
            batch.join(jobs)
            batch.step()

        return peak_bytes(work)

    def _jobs(
        self, sequence: SequenceConfig, plan: GuidancePlan, takes: int, requests: int, times: Schedule
    ) -> list[Job]:
        d = self._config.ddit
        with torch.device("meta"):
            states = torch.zeros(d.text_tokens, d.text_width)
            silence = torch.zeros(sequence.audio_tokens, d.audio_channels)
        text = Text(states, d.text_tokens, key=0)
        job = Job(sequence, 0, times, plan, text, silence=silence, takes=tuple(range(takes)))
        return [replace(job, text=Text(torch.zeros_like(states), d.text_tokens, key=i)) for i in range(requests)]

    def _decode_bytes(self, sequence: SequenceConfig) -> int:
        return max(self.decode_video_bytes(sequence), self.decode_audio_bytes(sequence))

    def _estimating(self) -> AbstractContextManager[object]:
        return estimating_for_cpu() if self._on_cpu else nullcontext()


def _on_meta(module: M) -> M:
    """A copy without values; none of them is copied on the way."""
    without: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ():
        outline = tensor.detach().to("meta")
        without[id(tensor)] = nn.Parameter(outline, False) if isinstance(tensor, nn.Parameter) else outline
    return copy.deepcopy(module, without)


def weight_bytes(components: Components) -> int:
    """The bytes of all weights and tables of a model's parts."""
    modules: tuple[nn.Module, ...] = (components.ddit, components.video, components.audio, components.text)
    return sum(tensor_bytes(module) for module in modules)


def tensor_bytes(module: nn.Module) -> int:
    """The bytes of the parameters and buffers of a module."""
    return sum(stored_bytes(tensor) for tensor in (*module.parameters(), *module.buffers()))
