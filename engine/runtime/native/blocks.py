"""Blocks, layers and adaptors of the towers, each in one call of the native part (``csrc/include/syncflow/blocks.h``).

A call keeps a tile of tokens in the cache from the attention to the MLP. Keys and values of a text, or of an audio
row's context, take the projections around their attention upon themselves, which saves work as long as they are few.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ....kernels import native
from ....kernels.launch import suits_cpu
from ...model.audio import AudioLayer, AudioState, ModalityAdaptor
from ...model.layers import EPS, CrossAttention
from ...model.video import STDiTBlock, VideoState

T = TypeVar("T")


class OfTensor(Generic[T]):
    """``make(tensor, …)`` once for every tensor that nobody writes to, kept as long as it lives."""

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._kept: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __call__(self, tensor: Tensor, *more: Any) -> T:
        """The same object as long as ``tensor`` is the same."""
        key = id(tensor)
        found = self._kept.get(key)
        if found is None or found[0]() is not tensor:
            found = weakref.ref(tensor, partial(self._forget, key)), self._make(tensor, *more)
            self._kept[key] = found
        return found[1]

    def _forget(self, key: int, gone: weakref.ref[Tensor]) -> None:
        found = self._kept.get(key)
        if found is not None and found[0] is gone:
            self._kept.pop(key, None)


def here(x: Tensor) -> bool:
    """Whether the native part may compute with x: nothing wants gradients, traces, counts or asks for another way."""
    return not torch.is_grad_enabled() and suits_cpu((x,)) and native.takes(x)


class NativeBlock(STDiTBlock):
    """A spatial or temporal block in one call, with the weights of ``block``."""

    def __init__(self, block: STDiTBlock) -> None:
        share(self, block)
        self.heads, self.width = self.attn.heads, self.attn.proj.in_features
        self.made = native.LOOPS.VideoBlock(_arrays(block), self.width, self.heads, self.mlp.fc1.out_features)
        self._text = OfTensor(self._fold)

    def forward(
        self,
        x: Tensor,
        normed: Tensor,
        state: VideoState,
        place: int,
        following: STDiTBlock | None,
        *,
        temporal: bool = False,
        drawn: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As :class:`~syncflow.engine.model.video.STDiTBlock` does it.

        What comes out takes the place of ``x`` and ``normed``. A spatial block tells no tokens after the attention.
        """
        if not here(x):
            return super().forward(x, normed, state, place, following, temporal=temporal, drawn=drawn)
        assert following is None or isinstance(following, NativeBlock)
        text = self._text(state.text.keys, state.text, place)
        x, normed, rows, of_row = x.contiguous(), normed.contiguous(), state.rows, state.text_of_row.contiguous()
        rows = rows if rows.stride()[2:] == (self.width, 1) else rows.contiguous()
        turns = state.turns.contiguous() if temporal else None
        attended = torch.empty_like(x) if temporal else None
        count = x.shape[0] if drawn is None else drawn
        self.made(
            None if following is None else following.made,
            text,
            [_address(tensor) for tensor in (x, normed, rows, of_row, turns)],
            [_address(attended), x.data_ptr(), normed.data_ptr()],
            (*x.shape[:3], count),
            (rows.stride(0), rows.stride(1) if rows.shape[1] > 1 else 0),
            EPS,
            torch.get_num_threads(),
        )
        return x[:count], None if following is None else normed[:count], x if attended is None else attended

    def _fold(self, keys: Tensor, text: Any, place: int) -> Any:
        keys, values = text.keys[place].contiguous(), text.values[place].contiguous()
        lengths = text.lengths.to(torch.int64).contiguous()
        addresses = [tensor.data_ptr() for tensor in (keys, values, lengths)]
        return self.made.fold(addresses, keys.stride()[:2], *keys.shape[:2])


class NativeAudioLayer(AudioLayer):
    """An audio layer in one call, with the weights of ``layer``; beside a style it is computed as there.

    ``turns`` gives the rotation of a context's positions; ``heard`` if the tokens after the attention are wanted.
    """

    def __init__(self, layer: AudioLayer, turns: Callable[[Tensor], Tensor], *, heard: bool) -> None:
        share(self, layer)
        self.turns, self.heard = turns, heard
        self.heads, self.width = self.attn.heads, self.attn.proj.in_features
        sizes = self.width, self.heads, self.mlp.fc1.out_features
        self.made = native.LOOPS.AudioLayer(_arrays(layer), *sizes, self.norm1.eps)

    def forward(
        self, x: Tensor, state: AudioState, context: Tensor | None = None, *, drawn: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :class:`~syncflow.engine.model.audio.AudioLayer` does it.

        What comes out takes the place of ``x``. The tokens after the attention are told only where they are ``heard``.
        """
        tail, sight = state.tail, state.sight
        if sight is None:
            context = None
        if not here(x):
            return super().forward(x, state, context, drawn=drawn)
        rows, audio, count = *x.shape[:2], x.shape[0] if drawn is None else drawn
        x = x.contiguous()
        attended = torch.empty_like(x) if self.heard else None
        turns = of_row = None
        contexts = known = 0
        if context is not None and sight is not None:
            context, of_row = context.contiguous(), sight.context_of_row
            turns = self.turns(sight.positions).contiguous()
            of_row = None if of_row is None else of_row.contiguous()
            contexts, known = context.shape[:2]
        clock, tail = state.turns.contiguous(), tail.contiguous()
        self.made(
            [_address(tensor) for tensor in (x, clock, context, turns, of_row, tail)],
            [_address(attended), x.data_ptr()],
            (rows, audio, contexts, known, tail.shape[1], count),
            EPS,
            torch.get_num_threads(),
        )
        return x[:count], x if attended is None else attended


class NativeAdaptor:
    """The context that an audio layer reads: an adaptor and the keys and values of that layer, with their weights.

    ``pooled`` if the adaptor attends over the mean of each frame's tokens.
    """

    def __init__(self, adaptor: ModalityAdaptor, reader: CrossAttention, *, pooled: bool) -> None:
        self.pooled, self.width, self.heads = pooled, adaptor.attn.proj.in_features, adaptor.attn.heads
        arrays = _arrays(adaptor) | {f"kv_linear.{name}": array for name, array in _arrays(reader.kv_linear).items()}
        self.made = native.LOOPS.Adaptor(arrays, self.width, self.heads, adaptor.norm.eps)

    def __call__(self, feature: Tensor, rows: Tensor, turns: Tensor) -> Tensor:
        """Keys and values (C, M, 2, n, d) of ``rows`` (C,) of a feature (R, T, S, D), at turns (M, d / 2, 2)."""
        held, _, frames, tokens = feature.contiguous(), *feature.shape[:3]
        count, keys = rows.shape[0], frames if self.pooled else frames * tokens
        context = feature.new_empty(count, keys, 2, self.heads, self.width // self.heads)
        self.made(
            [held.data_ptr(), rows.contiguous().data_ptr(), turns.contiguous().data_ptr()],
            context.data_ptr(),
            (count, held.shape[0], frames, tokens),
            self.pooled,
            EPS,
            torch.get_num_threads(),
        )
        return context


def share(made: nn.Module, given: nn.Module) -> None:
    """Give a module that is being made the parameters and parts of another."""
    nn.Module.__init__(made)
    made._parameters.update(given._parameters)
    made._buffers.update(given._buffers)
    made._modules.update(given._modules)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _arrays(module: nn.Module) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
