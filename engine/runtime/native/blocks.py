"""Blocks, layers and adaptors of the towers, computed by the native part (``csrc/include/syncflow/blocks.h``).

A call runs some blocks one after the other and keeps a tile of tokens in the cache from the attention to the MLP. Keys
and values of a text, or of an audio row's context, take the projections around their attention upon themselves, which
saves work as long as they are few.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ....kernels import native
from ....kernels.launch import uses_cpu_path
from ...model.audio import AudioLayer, AudioState, ModalityAdaptor
from ...model.layers import EPS, CrossAttention
from ...model.stdit import STDiTBlock, STDiTState

T = TypeVar("T")


class TensorCache(Generic[T]):
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


def runs_natively(x: Tensor) -> bool:
    """Whether the native part may compute with x: without gradients, tracing, counting or another implementation."""
    return not torch.is_grad_enabled() and uses_cpu_path((x,)) and native.supports(x)


class NativeBlock(STDiTBlock):
    """A spatial or temporal block in the native part, with the weights of ``block``."""

    def __init__(self, block: STDiTBlock) -> None:
        share(self, block)
        self.heads, self.width = self.attn.heads, self.attn.proj.in_features
        self.made = native.EXTENSION.VideoBlock(_arrays(block), self.width, self.heads, self.mlp.fc1.out_features)
        self.text = TensorCache(self._prepare_text)

    def forward(
        self,
        x: Tensor,
        normed: Tensor | None,
        state: STDiTState,
        index: int,
        following: STDiTBlock | None,
        *,
        branch: Tensor | None = None,
        temporal: bool = False,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As :class:`~syncflow.engine.model.stdit.STDiTBlock` does it.

        The results take the place of ``x`` and ``normed``. A spatial block returns no tokens after the attention.
        """
        if not runs_natively(x):
            options: dict[str, Any] = {"branch": branch, "temporal": temporal, "num_outputs": num_outputs}
            return super().forward(x, normed, state, index, following, **options)
        assert following is None or isinstance(following, NativeBlock)
        x, normed = self.begin(x, normed, branch, state.block_modulation)
        attended = x.new_empty(x.shape) if temporal else None
        x, normed = run_video([self], following, x, normed, state, index, [attended], num_outputs)
        return x, None if following is None else normed, x if attended is None else attended

    def _prepare_text(self, keys: Tensor, text: Any, index: int) -> Any:
        keys, values = text.keys[index].contiguous(), text.values[index].contiguous()
        lengths = text.lengths.to(torch.int64).contiguous()
        return self.made.prepare_text(keys, values, lengths)


def run_video(
    blocks: Sequence[NativeBlock],
    following: NativeBlock | None,
    x: Tensor,
    normed: Tensor,
    state: STDiTState,
    index: int,
    attended: Sequence[Tensor | None],
    num_outputs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Blocks one after the other over tokens x (R, T, S, D), and the norm of these that the first of them begins with.

    ``index`` of the first block among those of the text. ``attended`` takes the tokens after the attention of every
    temporal block, shaped as x; None for a spatial one. Only the first ``num_outputs`` rows go on in the last block. ->
    x and the norm that ``following`` begins with, which take the place of the arguments where those are dense.
    """
    x, normed, of_row = x.contiguous(), normed.contiguous(), state.text_of_row.contiguous()
    modulation = state.block_modulation
    if modulation.stride()[2:] != (x.shape[-1], 1):
        modulation = modulation.contiguous()
    rope = state.rope.contiguous()
    count = x.shape[0] if num_outputs is None else num_outputs
    native.EXTENSION.run_video(
        [block.made for block in blocks],
        None if following is None else following.made,
        [block.text(state.text.keys, state.text, index + i) for i, block in enumerate(blocks)],
        attended,
        x,
        normed,
        modulation,
        of_row,
        rope,
        count,
        EPS,
        torch.get_num_threads(),
    )
    return x[:count], normed[:count]


class NativeAudioLayer(AudioLayer):
    """An audio layer in the native part, with the weights of ``layer``; beside a style it is computed as there.

    ``rope_table`` gives the rotation of a context's positions; ``returns_attended``: whether the tokens after the
    self-attention are wanted.
    """

    def __init__(self, layer: AudioLayer, rope_table: Callable[[Tensor], Tensor], *, returns_attended: bool) -> None:
        share(self, layer)
        self.rope_table, self.returns_attended = rope_table, returns_attended
        self.heads, self.width = self.attn.heads, self.attn.proj.in_features
        sizes = self.width, self.heads, self.mlp.fc1.out_features
        self.made = native.EXTENSION.AudioLayer(_arrays(layer), *sizes, self.norm1.eps)

    def forward(
        self, x: Tensor, state: AudioState, context: Tensor | None = None, *, num_outputs: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :class:`~syncflow.engine.model.audio.AudioLayer` does it.

        The result takes the place of ``x``, and without ``returns_attended`` also that of the tokens after the
        self-attention.
        """
        if not runs_natively(x):
            return super().forward(x, state, None if state.context_ref is None else context, num_outputs=num_outputs)
        attended = x.new_empty(x.shape) if self.returns_attended else None
        x = run_audio([self], x, state, [context], [attended], num_outputs)
        return x, x if attended is None else attended


def run_audio(
    layers: Sequence[NativeAudioLayer],
    x: Tensor,
    state: AudioState,
    contexts: Sequence[Tensor | None],
    attended: Sequence[Tensor | None],
    num_outputs: int | None = None,
) -> Tensor:
    """Layers one after the other over tokens x (R, A, D), each with its context (C, M, 2, n, d) or none.

    ``attended`` takes the tokens after the attention of every layer, shaped as x, where they are wanted. Only the first
    ``num_outputs`` rows go on in the last layer. -> x, which takes the place of the argument where that is dense.
    """
    x, clock, tail, ref = x.contiguous(), state.rope.contiguous(), state.tail.contiguous(), state.context_ref
    count = x.shape[0] if num_outputs is None else num_outputs
    rope = of_row = None
    read = [None if context is None or ref is None else context.contiguous() for context in contexts]
    if read[0] is not None and ref is not None:
        rope, of_row = layers[0].rope_table(ref.positions).contiguous(), ref.context_of_row
        of_row = None if of_row is None else of_row.contiguous()
    native.EXTENSION.run_audio(
        [layer.made for layer in layers],
        read,
        attended,
        x,
        clock,
        rope,
        of_row,
        tail,
        count,
        EPS,
        torch.get_num_threads(),
    )
    return x[:count]


class NativeAdaptor:
    """The context that an audio layer reads: an adaptor and the keys and values of that layer, with their weights.

    ``pooled`` if the adaptor attends over the mean of each frame's tokens.
    """

    def __init__(self, adaptor: ModalityAdaptor, attention: CrossAttention, *, pooled: bool) -> None:
        self.pooled, self.width, self.heads = pooled, adaptor.attn.proj.in_features, adaptor.attn.heads
        arrays = _arrays(adaptor) | {f"kv_linear.{name}": array for name, array in _arrays(attention.kv_linear).items()}
        self.made = native.EXTENSION.Adaptor(arrays, self.width, self.heads, adaptor.norm.eps)

    def __call__(self, feature: Tensor, rows: Tensor, rope: Tensor) -> Tensor:
        """Keys and values (C, M, 2, n, d) of ``rows`` (C,) of a feature (R, T, S, D), at rope (M, d / 2, 2)."""
        held, _, frames, tokens = feature.contiguous(), *feature.shape[:3]
        count, keys = rows.shape[0], frames if self.pooled else frames * tokens
        context = feature.new_empty(count, keys, 2, self.heads, self.width // self.heads)
        threads = torch.get_num_threads()
        self.made(held, rows.contiguous(), rope.contiguous(), context, self.pooled, EPS, threads)
        return context


def share(made: nn.Module, given: nn.Module) -> None:
    """Give a module that is being made the parameters and parts of another."""
    nn.Module.__init__(made)
    made._parameters.update(given._parameters)
    made._buffers.update(given._buffers)
    made._modules.update(given._modules)


def _arrays(module: nn.Module) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
