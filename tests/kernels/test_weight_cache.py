"""What is kept of weights: computed once, again when they change, and gone when they are."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from syncflow.kernels import linear, weight_cache
from syncflow.kernels.weight_cache import cacheable, cached


class Counted:
    """Doubles a weight, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return 2 * weight


def frozen(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values), requires_grad=False)


def test_computed_once():
    make, weight = Counted(), frozen(1, 2)
    found = [cached(make, weight) for _ in range(3)]
    assert all(each is found[0] for each in found)
    assert (make.calls, found[0].tolist()) == (1, [2, 4])


def test_cached_by_function_and_by_weight():
    first, second, weight, other = Counted(), Counted(), frozen(1), frozen(5)
    assert cached(first, weight).tolist() == [2]
    assert cached(first, other).tolist() == [10]
    assert cached(first, weight).tolist() == [2]
    assert cached(second, weight).tolist() == [2]
    assert (first.calls, second.calls) == (2, 1)


def in_place(module: nn.Linear) -> None:
    with torch.no_grad():
        module.weight.mul_(3)


def loaded(module: nn.Linear) -> None:
    module.load_state_dict({"weight": 3 * module.weight})


def assigned(module: nn.Linear) -> None:
    module.load_state_dict({"weight": 3 * module.weight}, assign=True)
    module.requires_grad_(False)


def moved(module: nn.Linear) -> None:
    module.weight.data = 3 * module.weight.data


@pytest.mark.parametrize("change", [in_place, loaded, assigned, moved])
def test_computed_again_after_a_change(change):
    make, module = Counted(), nn.Linear(4, 3, bias=False).requires_grad_(False)
    cached(make, module.weight)
    change(module)
    assert torch.equal(cached(make, module.weight), 2 * module.weight)
    assert make.calls == 2


def test_a_layer_in_training_and_then_at_rest():
    layer, x = nn.Linear(128, 128), torch.randn(256, 128)

    def found() -> Tensor:
        with torch.inference_mode():
            return linear(x, layer.weight, layer.bias)

    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        torch.testing.assert_close(found(), layer(x))
        layer(x).square().sum().backward()
        optimizer.step()
    layer.requires_grad_(False)
    for _ in range(2):
        torch.testing.assert_close(found(), layer(x))
        layer.weight.neg_()


def test_weights_that_may_change_unseen_are_not_kept():
    make, wanted = Counted(), nn.Parameter(torch.ones(2))
    with torch.inference_mode():
        unseen = torch.ones(2)
    for weight in (wanted, unseen):
        before = make.calls
        assert not cacheable(weight)
        with torch.no_grad():
            cached(make, weight), cached(make, weight)
        assert make.calls == before + 2
    assert cacheable(frozen(1))


@pytest.mark.slow
def test_evicted_with_the_weight():
    make, weight = Counted(), frozen(1)
    cached(make, weight)
    assert any(key[0] is make for key in weight_cache._entries)
    del weight
    gc.collect()
    assert not any(key[0] is make for key in weight_cache._entries)


def test_threads_find_the_same_values():
    make, weights = Counted(), [frozen(float(i)) for i in range(20)]

    def all_of_them(_: int) -> list[float]:
        return [cached(make, weight).item() for weight in weights]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(all_of_them, range(64)))
    assert found == [[2.0 * i for i in range(20)]] * 64
