"""What a request takes of the device's memory, predicted without computing anything.

A step, and the decoding of a clip, run on tensors of the meta device, which have shapes and no values, while the bytes
of all that is alive are counted. One and two requests of a kind give any number of them: what they take is a line.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .components import Components
from .config import SequenceConfig
from .model import DDiT
from .sampling.guidance import GuidancePlan
from .sampling.job import Job, Text
from .sampling.schedule import schedule
from .sampling.sequential import batch_of


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make: ``now``, and ``peak`` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return found

    def _gone(self, size: int) -> None:
        self.now -= size


def peak(work: Callable[[], object]) -> int:
    """Bytes that a call's own tensors take at most."""
    with torch.inference_mode(), Alive() as alive:
        work()
    return alive.peak


@dataclass(frozen=True)
class Prediction:
    """Bytes: what a batch takes whoever is in it, the weights included, and what each request of a kind adds."""

    fixed: int
    request: int


class Memory:
    """Predictions for a model; each kind of request is walked through once."""

    def __init__(self, components: Components) -> None:
        self._config = components.config
        parts = (components.ddit, components.video, components.audio, components.text)
        self.weights = sum(_weights(part) for part in parts)
        self._video = copy.deepcopy(components.video).to("meta").decode
        self._audio = copy.deepcopy(components.audio).to("meta").decode
        with torch.device("meta"):
            self._model = DDiT(components.config.ddit).to(components.ddit.dtype).eval().requires_grad_(False)
        self._step = cache(self._walk)
        self._decode = cache(self._decoding)

    def predict(self, sequence: SequenceConfig, plan: GuidancePlan, takes: int = 1) -> Prediction:
        """For requests of this size, guidance and number of takes."""
        alone, added = self._step(sequence, plan, takes, 1), self.step_of(sequence, plan, takes)
        return Prediction(self.weights + max(0, alone - added), max(added, self._decode(sequence)))

    def step_of(self, sequence: SequenceConfig, plan: GuidancePlan, takes: int = 1) -> int:
        """Bytes that a request adds to a step."""
        return self._step(sequence, plan, takes, 2) - self._step(sequence, plan, takes, 1)

    def _walk(self, sequence: SequenceConfig, plan: GuidancePlan, takes: int, requests: int) -> int:
        d = self._config.ddit
        with torch.device("meta"):
            states = torch.zeros(d.text_tokens, d.text_width)
            silence = torch.zeros(sequence.audio_tokens, d.audio_channels)
        text = Text(states, d.text_tokens, key=0)
        job = Job(sequence, 0, schedule(1), plan, text, silence=silence, takes=tuple(range(takes)))
        jobs = [replace(job, text=Text(torch.zeros_like(states), d.text_tokens, key=i)) for i in range(requests)]

        def work() -> None:
            batch = batch_of(self._model)
            batch.join(jobs)
            batch.step()

        return peak(work)

    def _decoding(self, sequence: SequenceConfig) -> int:
        s, d = sequence, self._config.ddit
        video = torch.zeros(1, d.video_channels, s.latent_frames, s.latent_height, s.latent_width, device="meta")
        audio = torch.zeros(1, s.audio_tokens, d.audio_channels, device="meta")
        seen, heard = peak(lambda: self._video(video, s.frames)), peak(lambda: self._audio(audio, s.samples))
        return max(seen, heard)


def _weights(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
