"""What is computed of weights once, because they do not change while a model samples.

Kept as long as the weights live and stay as they are. A weight that wants gradients is about to change, and one made in
inference mode does not tell when it does: of these everything is computed anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

Key = tuple[Callable[..., Tensor], int, int]


class Kept(NamedTuple):
    """A value, and the weights of which it was computed as they were then: version and address of each."""

    value: Tensor
    first: weakref.ref[Tensor]
    second: weakref.ref[Tensor]
    state: tuple[int, int, int, int]


_kept: dict[Key, Kept] = {}


def fixed(weight: Tensor) -> bool:
    """Whether a weight stays as it is, as far as can be seen, or would tell."""
    return not weight.requires_grad and not weight.is_inference()


def derived(make: Callable[..., Tensor], weight: Tensor, other: Tensor | None = None) -> Tensor:
    """``make(weight)`` or ``make(weight, other)``, computed again only if a weight has changed.

    ``make`` is a function that lives as long as the process. A change through ``Tensor.data`` goes unnoticed.
    """
    given = (weight,) if other is None else (weight, other)
    second = given[-1]
    if not (fixed(weight) and fixed(second)):
        return make(*given)
    key = make, id(weight), id(second)
    state = weight._version, weight.data_ptr(), second._version, second.data_ptr()
    found = _kept.get(key)
    if found is None or found.state != state or found.first() is not weight or found.second() is not second:
        forget = partial(_forget, key)
        found = Kept(make(*given), weakref.ref(weight, forget), weakref.ref(second, forget), state)
        _kept[key] = found
    return found.value


def _forget(key: Key, gone: weakref.ref[Tensor]) -> None:
    found = _kept.get(key)
    if found is not None and (found.first is gone or found.second is gone):
        _kept.pop(key, None)
