"""Blocks whose weights move to the device one ahead: the same numbers, and never more than two blocks there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from syncflow.engine.runtime.block_offload import BlockSequence, PlainTransfer, offload_blocks
from syncflow.engine.sampling.loop import sample

from ..plain import CONFIG, job, randomised

CPU = torch.device("cpu")


class Recorded(PlainTransfer):
    """Copies that write down when they begin and when they are waited for."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.calls: list[tuple[str, float]] = []

    def start(self, tensors):
        self.calls.append(("start", float(tensors[0].flatten()[0])))
        return super().start(tensors)

    def wait(self, tensors):
        self.calls.append(("wait", float(tensors[0].flatten()[0])))


def numbered(count: int) -> nn.Sequential:
    """Layers of one weight, their number."""
    layers = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(count))).requires_grad_(False)
    for i, layer in enumerate(layers):
        layer.weight.fill_(i + 1)
    return layers


def test_the_next_block_moves_before_a_block_computes():
    layers, transfer = numbered(3), Recorded()
    blocks = BlockSequence(list(layers), [list(layer.parameters()) for layer in layers], transfer)
    assert blocks.on_device == []
    seen = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: seen.append(blocks.on_device))
    assert float(layers(torch.ones(1, 1))) == 6
    assert seen == [[0, 1], [1, 2], [0, 2]]
    assert transfer.calls == [
        ("start", 1), ("wait", 1), ("start", 2), ("wait", 2), ("start", 3), ("wait", 3), ("start", 1)
    ]  # fmt: skip
    assert float(layers(torch.ones(1, 1))) == 6
    assert blocks.on_device == [0]
    assert all(layer.weight.numel() == 0 for layer in layers)


def test_a_block_that_fails_lets_its_weights_go():
    layers = numbered(2)
    blocks = BlockSequence(list(layers), [list(layer.parameters()) for layer in layers], Recorded())
    with pytest.raises(RuntimeError):
        layers(torch.ones(1, 3))
    assert all(layer.weight.numel() == 0 for layer in layers)
    assert float(layers(torch.ones(1, 1))) == 2
    assert blocks.on_device == [0]


@pytest.mark.slow
@pytest.mark.parametrize("bridge", ["adaptor", "audio_rope", "global_local"])
def test_samples_are_the_same_to_the_bit(bridge):
    model = randomised(CONFIG.replace(bridge=bridge, first_block=int(bridge == "audio_rope")))
    moved = copy.deepcopy(model)
    sequences = offload_blocks(moved, CPU)
    jobs = [job(1, steps=2), job(2, steps=2, guidance=1.0)]
    expected, found = sample(model, jobs), sample(moved, jobs)
    assert torch.equal(found.video, expected.video)
    assert torch.equal(found.audio, expected.audio)
    assert all(len(sequence.on_device) <= 1 for sequence in sequences)
