"""One modality of the requests of a batch: latents on their way from noise to data, flow times, what is known.

A :class:`LatentState` is one modality of one request, or one take of its sound, when it joins or leaves;
:class:`BatchedLatents` are those of a batch, stacked, as the steps work on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..model.tower_step import TowerStep
from .caching import CachePhase, CachePhases
from .job import Known
from .transfer import upload

Modality = Literal["video", "audio"]
Held = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
TABLE = 64  # tables of the steps are as long as a multiple of this, so that requests of other lengths share CUDA graphs


@dataclass
class LatentState:
    """``noise`` and ``latents`` (C_v, T, H, W) or (A, C_a), float32; ``grid`` (K + 1,) flow times; ``step`` 0 to K.

    ``known_mask`` (1, T, 1, 1) or (A, 1) bool says where ``known`` latents hold, at time 1 if they are ``clean``.
    ``times`` is what the tower needs of the grid, for the K steps and, last, for time 1. ``estimate`` of the clean
    latents, at first their mean. ``phases`` say when the ``difference`` that guidance makes is evaluated and when it is
    reused; none for a request that evaluates it at every step.
    """

    noise: Tensor
    latents: Tensor
    grid: np.ndarray
    times: tuple[Tensor, ...]
    known: Tensor | None = None
    known_mask: Tensor | None = None
    clean: bool = False
    step: int = 0
    estimate: Tensor | None = None
    phases: CachePhases = ()
    difference: Tensor | None = None

    @classmethod
    def begin(
        cls, noise: Tensor, grid: np.ndarray, times: tuple[Tensor, ...], known: Known | None, phases: CachePhases = ()
    ) -> Self:
        """The latents before their first step."""
        state = cls(noise, noise, grid, times, phases=phases)
        if known is None:
            return state
        given = upload(known.latents, noise.device).to(noise)
        if known.start is not None:
            state.latents = torch.lerp(noise, given, known.start)
            return state
        axis = 1 if noise.ndim == 4 else 0
        mask = torch.ones(noise.shape[axis], dtype=torch.bool) if known.mask is None else known.mask
        shape = [len(mask) if i == axis else 1 for i in range(noise.ndim)]
        state.known, state.clean = given, known.clean
        state.known_mask = upload(mask.reshape(shape), noise.device)
        first = 1.0 if known.clean else float(grid[0])
        state.latents = torch.where(state.known_mask, torch.lerp(noise, given, first), noise)
        return state

    @property
    def moves(self) -> bool:
        """Whether the step that comes next changes the latents."""
        return self.step + 1 < len(self.grid) and bool(self.grid[self.step + 1] > self.grid[self.step])

    @property
    def time(self) -> float:
        """Flow time before the step that comes next."""
        return float(self.grid[min(self.step, len(self.grid) - 1)])

    @property
    def phase(self) -> CachePhase | None:
        """What the step that comes next does to the difference."""
        return self.phases[self.step] if self.step < len(self.phases) else None


def grid_of(grid: np.ndarray, known: Known | None) -> np.ndarray:
    """The grid of a modality; one that is given whole and clean stands at time 1 throughout."""
    whole = known is not None and known.clean and known.mask is None and known.start is None
    return np.ones_like(grid) if whole else grid


def _table_length(steps: int) -> int:
    return -(-steps // TABLE) * TABLE


class BatchedLatents:
    """n latents of one modality. ``latents`` (n, ...) float32, ``model_latents`` the same in the model's type.

    The first members are on the device; steps move them there, by new tensors or, as :meth:`tower_step` has them, in
    place: ``version`` is the number of steps in place since then, None before the first. ``each`` are the values of
    each on the host, whose latents are those at which they joined until :meth:`unstack` puts the present ones in.
    """

    def __init__(self, modality: Modality, each: Sequence[LatentState], dtype: torch.dtype) -> None:
        self.modality, self.each, self.dtype = modality, list(each), dtype
        self.latents = torch.stack([state.latents for state in each])
        self.noise = torch.stack([state.noise for state in each])
        self.estimate = torch.stack([torch.zeros_like(t.noise) if t.estimate is None else t.estimate for t in each])
        self._model_latents: Tensor | None = None
        self.version: int | None = None
        device, longest = self.latents.device, _table_length(max(len(state.grid) for state in each))
        grids = np.stack([np.pad(state.grid, (0, longest + 1 - len(state.grid)), mode="edge") for state in each])
        self.grid = upload(torch.from_numpy(grids).float(), device)  # (n, K + 2)
        self.steps = upload(torch.tensor([state.step for state in each]), device)
        self.known = self.known_mask = self.clean = self.differences = None
        if any(state.phases for state in each):
            nothing = torch.zeros_like(self.model_latents[0])
            self.differences = torch.stack([nothing if t.difference is None else t.difference for t in each])
        if any(state.known_mask is not None for state in each):
            shape = next(state.known_mask.shape for state in each if state.known_mask is not None)
            nothing = torch.zeros(shape, dtype=torch.bool, device=device)
            self.known = torch.stack([state.noise if state.known is None else state.known for state in each])
            self.known_mask = torch.stack([nothing if state.known_mask is None else state.known_mask for state in each])
            self.clean = upload(torch.tensor([state.clean for state in each]), device)

    def __len__(self) -> int:
        return len(self.each)

    @property
    def model_latents(self) -> Tensor:
        """The latents in the model's type."""
        if self._model_latents is None:
            self._model_latents = self.latents.to(self.dtype)
        return self._model_latents

    def move_to(self, latents: Tensor, model_latents: Tensor | None = None) -> None:
        """These latents take the place of the present ones."""
        self.latents, self._model_latents, self.version = latents, model_latents, None

    def snapshot(self) -> Tensor:
        """The present latents, which later steps leave as they are."""
        return self.latents if self.version is None else self.latents.clone()

    @property
    def is_plain(self) -> bool:
        """Whether a step depends on latents, steps and velocities alone: nothing is known, no difference is kept."""
        return self.known_mask is None and self.differences is None

    def tower_step(self, samples: Tensor, rows: Tensor, weights: Tensor) -> TowerStep:
        """The next step in place, of the rows of ``samples`` and with these sums of their velocities.

        It makes no tensor, except that the latents before the first are copied: others may hold them.
        """
        if self.version is None:
            self.latents, self.version = self.latents.clone(), 0
        times = self._times
        return TowerStep(self.latents, self.steps, self.version, self.grid, times, samples, rows, weights)

    @property
    def moving(self) -> tuple[Tensor, ...]:
        """The tensors that a step puts others in place of."""
        tensors = self.latents, self._model_latents, self.estimate, self.steps, self.differences
        return tuple(tensor for tensor in tensors if tensor is not None)

    @property
    def phases(self) -> CachePhases:
        """What the step that comes next does to the difference of each."""
        return tuple(state.phase for state in self.each)

    def unstack(self) -> list[LatentState]:
        """The states with their present latents."""
        for i, state in enumerate(self.each):
            state.latents, state.estimate = self.latents[i], self.estimate[i]
            if self.differences is not None:
                state.difference = self.differences[i]
        return self.each

    def advance(self) -> None:
        """The step is done; latents at their end stay there."""
        self._advance_each()
        self.steps = (self.steps + 1).clamp_max(self.grid.shape[1] - 2)

    def advance_in_place(self) -> None:
        """The step of :meth:`tower_step` is done."""
        assert self.version is not None
        self._model_latents, self.version = None, self.version + 1
        self._advance_each()

    def _advance_each(self) -> None:
        for state in self.each:
            state.step = min(state.step + 1, len(state.grid) - 1)

    @property
    def flow_time(self) -> Tensor:
        """Flow times before the step (n,)."""
        return self.grid.gather(1, self.steps[:, None])[:, 0]

    @property
    def next_flow_time(self) -> Tensor:
        """Flow times after it (n,)."""
        return self.grid.gather(1, self.steps[:, None] + 1)[:, 0]

    def held(self) -> Held:
        """What the Euler step needs to put known latents back at its end."""
        if self.known_mask is None or self.clean is None:
            return None, None, None, None
        return self.known, self.noise, self.known_mask, self.next_flow_time.masked_fill(self.clean, 1.0)

    def clean_frames(self) -> Tensor | None:
        """Latent frames that stand at time 1 because they are known, clean: (n, T), of a video; None without any."""
        if self.known_mask is None or self.clean is None or not any(state.clean for state in self.each):
            return None
        return self.known_mask[:, 0, :, 0, 0] & self.clean[:, None]

    @cached_property
    def _times(self) -> tuple[Tensor, ...]:
        """Rows of all steps and, last, of time 1: (n, K + 1, ...)."""
        longest = self.grid.shape[1] - 1

        def stacked(parts: Sequence[Tensor]) -> Tensor:
            ends = (part[-1:].expand(longest - len(part), *part.shape[1:]) for part in parts)
            return torch.stack([torch.cat(pair) for pair in zip(parts, ends, strict=True)])

        return tuple(stacked(parts) for parts in zip(*(state.times for state in self.each), strict=True))

    def times(self, rows: Tensor, clean: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the tower needs of the time of latents ``rows`` (R,), or at time 1 where ``clean`` (R,) or (R, T).

        -> tensors (R, 1 or T, ...).
        """
        found = []
        for part in self._times:
            time = part[rows, self.steps[rows]][:, None]
            if clean is not None:
                at_1 = part[rows, -1][:, None]
                where = clean.reshape(len(rows), -1, *[1] * (part.ndim - 2))
                time = torch.where(where, at_1, time)
            found.append(time)
        return tuple(found)
