"""What the translations share: their arguments and values, sizes that may be symbolic, constants of a given type.

A translation is called once for each node of an exported program. Its arguments know their shapes and types; the values
that it makes of them do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from onnxscript import opset23

OPSET = 23
op: Any = opset23  # annotated for tensors, which a translation has none of

Value: TypeAlias = Any
"""A value of the graph (``onnx_ir.Value``)."""

Size: TypeAlias = int | Value
"""A number, or a value int64 (1,) that is known only at run time."""


class Argument(Protocol):
    """A value that knows its shape and its type."""

    shape: Sequence[int | ir.SymbolicDim]
    dtype: ir.DataType


def size(x: Argument, axis: int) -> Size:
    """Length of an axis."""
    length = x.shape[axis]
    return length if isinstance(length, int) else op.Shape(x, start=axis, end=axis + 1)


def width(x: Argument, *axes: int) -> int:
    """Product of the lengths of axes that are never symbolic: heads, channels, the parts of a table."""
    lengths = [x.shape[axis] for axis in axes]
    assert all(isinstance(length, int) for length in lengths), f"axes {axes} of {x} are symbolic"
    return int(np.prod([int(length) for length in lengths]))  # type: ignore[arg-type]


def integers(*values: int) -> Value:
    """An int64 constant (n,), of axes or sizes."""
    return op.Constant(value_ints=list(values))


def reshape(x: Value, *sizes: Size) -> Value:
    """x in another shape. At most one of the sizes is -1; where none is, the first symbolic one becomes it."""
    lengths = list(sizes)
    symbolic = [i for i, length in enumerate(lengths) if not isinstance(length, int)]
    if symbolic and -1 not in [length for length in lengths if isinstance(length, int)]:
        lengths[symbolic.pop(0)] = -1
    if not symbolic:
        return op.Reshape(x, integers(*lengths))
    return op.Reshape(x, op.Concat(*(_vector(length) for length in lengths), axis=0))


def shaped(x: Value, like: Argument, channels: int | None = None) -> Value:
    """x, of as many tokens as ``like`` (..., D), in its shape; ``channels`` is how wide x is, D by default."""
    return reshape(x, *(size(like, axis) for axis in range(len(like.shape) - 1)), channels or width(like, -1))


def steps(length: Size) -> Value:
    """0, 1, … int64 (length,)."""
    return integers(*range(length)) if isinstance(length, int) else op.Range(0, op.Squeeze(length), 1)


def repeated(value: Value | bool, length: Size) -> Value:
    """A scalar as a vector (length,)."""
    return op.Expand(value, _vector(length))


def number(value: float, like: Argument) -> Value:
    """A scalar constant in the type of an argument."""
    return op.Constant(value=ir.tensor(value, dtype=like.dtype))


def ones(length: int, like: Argument) -> Value:
    """A constant (length,) in the type of an argument."""
    return op.Constant(value=ir.tensor(np.ones(length, like.dtype.numpy())))


def lowest(like: Argument) -> Value:
    """The lowest finite number of the type of an argument."""
    return number(float(like.dtype.min), like)


def cast(x: Value, source: ir.DataType, target: ir.DataType) -> Value:
    """x, whose type is ``source``, as ``target``."""
    return x if source == target else op.Cast(x, to=target)


def _vector(length: Size) -> Value:
    return integers(length) if isinstance(length, int) else length
