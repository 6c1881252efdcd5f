"""Live bytes: of views, of what is gone, and of what convolutions need beside their outputs on a CPU."""

from __future__ import annotations

import gc

import pytest
import torch

from syncflow.benchmarks.memory import allocated
from syncflow.engine.cost.live_memory import LiveMemoryMode, peak_bytes


def test_what_is_gone_does_not_count():
    def work():
        x = torch.ones(1000)
        y = x + x
        del x
        return (y.view(10, 100) * 2).sum()

    assert peak_bytes(work) == 2 * 4000 + 4


def test_views_are_their_storage():
    with LiveMemoryMode() as alive:
        x = torch.ones(1000)
        kept = x[10:], x.view(10, 100).T
        assert alive.now == 4000
        del x, kept
        gc.collect()
    assert alive.now == 0


def test_views_of_what_was_there_before_do_not_count():
    """Neither of weights, in one operation or in several, nor what an operation writes in place."""
    weight, total = torch.ones(10, 100), torch.zeros(10)

    def work():
        total.add_(weight.T.unflatten(0, (2, 50))[1].sum(0))

    assert peak_bytes(work) == 4 * 10


def test_the_unfolded_input_of_a_small_convolution_counts_on_a_cpu():
    weight = torch.zeros(2, 3, 3, 3, 3, device="meta")

    def work(height):
        return lambda: torch.nn.functional.conv3d(torch.zeros(1, 3, 5, height, 6, device="meta"), weight)

    output, inputs = 4 * 2 * 3 * 5 * 4, 4 * 3 * 5 * 7 * 6
    assert peak_bytes(work(7)) == inputs + output
    assert peak_bytes(work(7), on_cpu=True) == inputs + output + 4 * 3 * 27 * (3 * 5 * 4)


CONVOLVED = [
    pytest.param((1, 16, 800), (16, 16, 3), id="small, 1-D"),
    pytest.param((1, 16, 48_000), (32, 16, 7), id="long, 1-D"),
    pytest.param((1, 32, 3000), (32, 32, 1), id="points"),
    pytest.param((1, 7, 48_000), (16, 7, 5), id="few channels"),
    pytest.param((4, 32, 32, 32), (16, 32, 3, 3), id="several images"),
    pytest.param((1, 32, 6, 40, 40), (32, 32, 3, 3, 3), id="small, 3-D"),
    pytest.param((1, 64, 8, 48, 48), (32, 64, 3, 3, 3), id="3-D"),
]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize(("x", "weight"), CONVOLVED)
def test_a_convolution_takes_what_is_predicted(x, weight):
    """Of the allocator; channels in whole blocks of every instruction level."""

    def work(device):
        given, kernel = torch.ones(x, device=device), torch.ones(weight, device=device)
        return lambda: torch.convolution(given, kernel, None, *[[n] * (len(x) - 2) for n in (1, 0, 1)], False, [0], 1)

    measured = allocated(work("cpu"), torch.device("cpu"))
    for device in ("cpu", "meta"):
        assert peak_bytes(work(device), on_cpu=True) == pytest.approx(measured, rel=0.02)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_a_convolution_by_onednn_is_counted_on_the_meta_device():
    def work(device):
        x, weight = torch.ones(1, 32, 6, 40, 40, device=device), torch.ones(64, 32, 3, 3, 3, device=device)
        ones = [1, 1, 1]
        return lambda: torch.mkldnn_convolution(x, weight, None, ones, ones, ones, 1)

    measured = allocated(work("cpu"), torch.device("cpu"))
    for device in ("cpu", "meta"):
        assert peak_bytes(work(device), on_cpu=True) == pytest.approx(measured, rel=0.02)


def test_a_recurrent_layer_is_not_gone_through_token_by_token(monkeypatch):
    """Its outputs count, and the states that it is given and returns."""
    monkeypatch.setattr(torch._prims_common, "elementwise_dtypes", None)  # of the gates of a token
    layer, x = torch.nn.LSTM(4, 6, 2).to("meta"), torch.zeros(50, 3, 4, device="meta")
    assert peak_bytes(lambda: layer(x)[0]) == 4 * (50 * 3 * 6 + 2 * 2 * (2 * 3 * 6))
