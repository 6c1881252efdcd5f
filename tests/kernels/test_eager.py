"""When a call may be made directly: plain numbers on a CPU, and nobody watching."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from syncflow.kernels.launch.eager import eager_on_cpu


class Other(torch.Tensor):
    """A tensor with ways of its own."""


PLAIN = torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((PLAIN, 1.0, None, nn.Parameter(PLAIN)), True),
        ((), True),
        ((PLAIN, PLAIN.to("meta")), False),
        ((PLAIN.as_subclass(Other),), False),
    ],
)
def test_arguments(arguments, expected):
    assert eager_on_cpu(arguments) is expected


def test_whoever_watches_sees_the_call():
    found = []

    def ask(x):
        found.append(eager_on_cpu((x,)))
        return x + 1

    with torch.no_grad():
        ask(PLAIN)
        make_fx(ask)(PLAIN)
        torch.vmap(ask)(PLAIN)
        torch.jit.trace(ask, PLAIN, check_trace=False)
        with FlopCounterMode(display=False):
            ask(PLAIN)
        with torch.autocast("cpu", torch.bfloat16):
            ask(PLAIN)
        with FakeTensorMode():
            ask(torch.ones(2))
        torch.compile(ask, backend="eager")(PLAIN)
    assert found == [True, False, False, False, False, False, False, False]
