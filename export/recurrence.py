"""Recurrent layers of any length: in a trace an ``nn.LSTM`` is one operation, not a loop over the example's length.

PyTorch takes its own ``aten.lstm`` apart to know what it gives, and the result holds for that length alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

OF_A_LAYER = 4  # weights: of the inputs, of the state, and the bias of each


@torch.library.custom_op("syncflow::lstm", mutates_args=())
def lstm(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Stacked LSTM layers that begin with states of 0: x (N, B, W) -> (N, B, H).

    ``weights`` of every layer: (4H, W), (4H, H), (4H,), (4H,), as in ``nn.LSTM``.
    """
    layers, hidden = len(weights) // OF_A_LAYER, weights[1].shape[1]
    state = x.new_zeros(layers, x.shape[1], hidden)
    return torch.lstm(x, (state, state), weights, True, layers, 0.0, False, False, False)[0]


@lstm.register_fake
def _(x: Tensor, weights: list[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weights[1].shape[1])


@contextmanager
def of_any_length() -> Iterator[None]:
    """Within the block ``nn.LSTM`` calls this operation."""
    with patch.object(nn.LSTM, "forward", _forward):
        yield


def _forward(self: nn.LSTM, x: Tensor) -> tuple[Tensor, None]:
    assert self.bias and not (self.bidirectional or self.batch_first or self.proj_size), "a plain LSTM"
    names = (name for layer in self._all_weights for name in layer)
    return lstm(x, [getattr(self, name) for name in names]), None
