"""Launches go to the device of their tensors, whichever is the current one of the thread."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from syncflow.kernels.launch import Launch, launching


class Kernel:
    """Records the current device of each launch."""

    def __init__(self):
        self.current, self.launched = 0, []

    @contextmanager
    def device(self, index):
        before, self.current = self.current, index
        yield
        self.current = before

    def __getitem__(self, grid):
        return lambda **arguments: self.launched.append(self.current)


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", kernel.device)
    monkeypatch.setattr(launching, "interpreted", lambda: True)
    return kernel


def launch(kernel, x, grid=(1,)):
    Launch(kernel, grid, {"count": 3, "x": x}, {}, {}).run()


def test_a_kernel_is_launched_where_its_tensors_are(kernel):
    with FakeTensorMode():
        for device in ("cuda:1", "cuda:0", "cpu"):
            launch(kernel, torch.empty(3, device=device))
    assert kernel.launched == [1, 0, 0]
    assert kernel.current == 0


def test_a_device_that_is_not_there_is_not_made_current(kernel, monkeypatch):
    """As where a compiler traces for a GPU."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with FakeTensorMode():
        launch(kernel, torch.empty(3, device="cuda:1"))
    assert kernel.launched == [0]
