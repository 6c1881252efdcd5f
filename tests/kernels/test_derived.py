"""What is kept of weights: computed once, again when they change, and gone when they are."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from syncflow.kernels import dense, derived
from syncflow.kernels.derived import fixed


class Counted:
    """Doubles a weight, or adds two, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, weight: Tensor, other: Tensor | None = None) -> Tensor:
        self.calls += 1
        return 2 * weight if other is None else weight + other


def frozen(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values), requires_grad=False)


def test_computed_once():
    make, weight = Counted(), frozen(1, 2)
    found = [derived.derived(make, weight) for _ in range(3)]
    assert all(each is found[0] for each in found)
    assert (make.calls, found[0].tolist()) == (1, [2, 4])


def test_kept_by_function_and_by_both_weights():
    first, second, weight, other = Counted(), Counted(), frozen(1), frozen(5)
    assert derived.derived(first, weight).tolist() == [2]
    assert derived.derived(first, weight, other).tolist() == [6]
    assert derived.derived(first, other, weight).tolist() == [6]
    assert derived.derived(second, weight).tolist() == [2]
    assert (first.calls, second.calls) == (3, 1)


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
    derived.derived(make, module.weight)
    change(module)
    assert torch.equal(derived.derived(make, module.weight), 2 * module.weight)
    assert make.calls == 2


@pytest.mark.parametrize("place", [0, 1])
def test_a_change_of_either_weight_counts(place):
    make, weights = Counted(), (frozen(1), frozen(2))
    derived.derived(make, *weights)
    weights[place].add_(10)
    assert derived.derived(make, *weights).tolist() == [13]


def test_a_layer_in_training_and_then_at_rest():
    layer, x = nn.Linear(128, 128), torch.randn(256, 128)

    def found() -> Tensor:
        with torch.inference_mode():
            return dense(x, layer.weight, layer.bias)

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
        assert not fixed(weight)
        with torch.no_grad():
            derived.derived(make, weight), derived.derived(make, weight)
        assert make.calls == before + 2
    assert fixed(frozen(1))


@pytest.mark.parametrize("place", [0, 1])
def test_gone_with_either_weight(place):
    make, weights = Counted(), [frozen(1), frozen(2)]
    derived.derived(make, *weights)
    assert any(key[0] is make for key in derived._kept)
    weights[place] = frozen(3)
    gc.collect()
    assert not any(key[0] is make for key in derived._kept)


def test_threads_find_the_same_values():
    make, weights = Counted(), [frozen(float(i)) for i in range(20)]

    def all_of_them(_: int) -> list[float]:
        return [derived.derived(make, weight).item() for weight in weights]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(all_of_them, range(64)))
    assert found == [[2.0 * i for i in range(20)]] * 64
