"""Recurrent layers of any length: to a trace they are one operation, not a loop over the length of the example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

LSTM = torch.ops.aten.lstm.input
IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd


@contextmanager
def of_any_length() -> Iterator[None]:
    """Within the block a trace asks an LSTM for the shapes of what it gives, and does not take it apart.

    Taken apart, as PyTorch does it to know them, it would hold for the length of the example alone.
    """
    with patch.dict(LSTM.py_kernels, {IMPLICIT: _shapes}):
        yield


def _shapes(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of outputs (N, B, H), or (B, N, H) if ``batch_first``, and of the last states; x (N, B, W) likewise."""
    hidden, cell = states
    width = hidden.shape[2] * (2 if bidirectional else 1)
    return x.new_empty(*x.shape[:2], width), torch.empty_like(hidden), torch.empty_like(cell)
