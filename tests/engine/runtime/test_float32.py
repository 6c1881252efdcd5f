"""TF32 follows the precision of the d-DiT, for matrix products and convolutions alike; the strictest engine decides."""

from __future__ import annotations

import pytest
import torch

from syncflow.engine.engine import Engine
from syncflow.engine.runtime import float32
from syncflow.engine.runtime.float32 import float32_products, set_float32_products

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """The settings of PyTorch, put back afterwards."""
    monkeypatch.setattr(float32, "_strict", False)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def allowed():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precisions", "rounds"),
    [
        (["bfloat16"], True),
        (["float16"], True),
        (["float32"], False),
        (["float32", "bfloat16"], False),
        (["bfloat16", "float32"], False),
    ],
)
def test_products_and_convolutions_agree(precisions, rounds):
    for precision in precisions:
        set_float32_products(precision, GPU)
    assert allowed() == (rounds, rounds)
    assert float32_products(GPU) == ("tf32" if rounds else "ieee")


def test_an_engine_on_a_cpu_changes_nothing():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    engine = Engine.from_pretrained(device="cpu", runtime="torch", precision="bfloat16")
    assert allowed() == (True, True)
    assert engine.describe()["float32_products"] == "ieee"
