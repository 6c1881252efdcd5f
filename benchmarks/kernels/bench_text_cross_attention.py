"""Text cross-attention: every token of a row reads the text of its prompt, whose keys and values are gathered a row.

``whole texts`` is the case in which every prompt fills its length, so that no mask is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncflow.benchmarks.kernels.baselines import attention_baselines


def whole(q: Tensor, k: Tensor, v: Tensor, _lengths: Tensor, text_of_row: Tensor) -> tuple[Tensor, ...]:
    """One row of a batch for every row, its text gathered."""
    return tuple(x.transpose(1, 2) for x in (q, k[text_of_row], v[text_of_row]))


def masked(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, text_of_row: Tensor) -> tuple[Tensor, ...]:
    """The same, and a mask of what a prompt has of text."""
    allowed = torch.arange(k.shape[1], device=k.device) < lengths[text_of_row, None]
    return (*whole(q, k, v, lengths, text_of_row), allowed[:, None, None])


def join(mixed: Tensor, *_: object) -> Tensor:
    """Back to token order."""
    return mixed.transpose(1, 2).flatten(2)


BASELINES = {
    **attention_baselines(masked, join),
    **{f"{name}, whole texts": baseline for name, baseline in attention_baselines(whole, join).items()},
}


def test_text_cross_attention(race, case, contender) -> None:
    race(case, contender)
