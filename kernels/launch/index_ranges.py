"""Whether a 32-bit product of indices and strides can overflow at the sizes of a launch.

Triton types an argument by its value: a stride below 2^31 is a 32-bit integer, and its product with an index wraps
around before it is added to a pointer. Small sizes never show it. Here the range of every integer is derived from the
kernel's TTIR, from the grid and from the arguments; a number that comes from memory may be any. The ranges are bounds:
a product that is found can overflow as far as they tell, and one that is not found cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .launching import Launch

Range = tuple[int, int]
ANY: Range = (-(2**63), 2**63 - 1)
ANY_NARROW: Range = (-(2**31), 2**31 - 1)

_ASSIGNMENT = re.compile(r"^\s*(%[\w$.-]+)(?::\d+)? = (.*)$")
_NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")
_LOCATION = re.compile(r"\s+loc\(.*\)\s*$")
_CONSTANT = re.compile(r"^arith\.constant (?:dense<)?(-?\d+|true|false)>? : (.*)$")
_RANGE = re.compile(r"end = (\d+) : i32, start = (\d+) : i32")
_NARROW = re.compile(r"\bi32>*$|xi32>*$")
_LOOP = re.compile(r"scf\.for (%[\w$.-]+) = (%[\w$.#-]+) to (%[\w$.#-]+) step")
_SAME = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "arith.extsi", "ttg.convert_layout")


def overflowing_products(ttir: str, launch: Launch) -> list[str]:
    """The 32-bit products of a kernel that may leave their type in this launch, each as a line of its TTIR."""
    known: dict[str, Range] = {
        f"%{name}": (value, value) for name, value in launch.arguments.items() if isinstance(value, int)
    }
    found = []
    for line in ttir.splitlines():
        loop = _LOOP.search(line)
        if loop is not None:
            first, end = (known.get(name, ANY_NARROW) for name in loop.group(2, 3))
            known[loop.group(1)] = first[0], max(first[0], end[1] - 1)
        assigned = _ASSIGNMENT.match(_LOCATION.sub("", line))
        if assigned is None:
            continue
        name, text = assigned.groups()
        narrow = _NARROW.search(text) is not None
        reach = _reach(text, known, launch.grid)
        if narrow and text.startswith(("arith.muli", "arith.shli")) and not _within(reach, ANY_NARROW):
            found.append(f"{name} = {text}")
        known[name] = reach if _within(reach, limits := ANY_NARROW if narrow else ANY) else limits
    return found


def _reach(text: str, known: dict[str, Range], grid: Sequence[int]) -> Range:
    """The range of what an operation computes; any number where nothing is known of it."""
    constant = _CONSTANT.match(text)
    if constant is not None:
        value = {"true": 1, "false": 0}.get(constant.group(1))
        return (int(constant.group(1)),) * 2 if value is None else (value, value)
    operation = text.split(" ", 1)[0]
    if operation == "tt.get_program_id":
        axis = "xyz".index(text.split()[1])
        return 0, max(0, grid[axis] - 1) if axis < len(grid) else 0
    if operation == "tt.make_range":
        bounds = _RANGE.search(text)
        return (int(bounds.group(2)), int(bounds.group(1)) - 1) if bounds else ANY_NARROW
    operands = [known.get(name, ANY_NARROW if "i32" in text else ANY) for name in _NAME.findall(text)]
    if operation in _SAME and operands:
        return operands[0]
    if operation == "arith.select" and len(operands) == 3:
        return min(operands[1][0], operands[2][0]), max(operands[1][1], operands[2][1])
    compute = _ARITHMETIC.get(operation)
    if compute is None or len(operands) != 2:
        return ANY_NARROW if _NARROW.search(text) else ANY
    return compute(*operands)


def _within(inner: Range, outer: Range) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _corners(combine: Callable[[int, int], int]) -> Callable[[Range, Range], Range]:
    """The range of a function that is largest and smallest at ends of its arguments' ranges."""

    def over(a: Range, b: Range) -> Range:
        values = [combine(x, y) for x in a for y in b]
        return min(values), max(values)

    return over


def _divided(a: Range, b: Range) -> Range:
    if b[0] <= 0:
        return min(a[0], -a[1], 0), max(a[1], -a[0], 0)
    return _corners(lambda x, y: abs(x) // y * (1 if x >= 0 else -1))(a, b)


def _remainder(a: Range, b: Range) -> Range:
    largest = max(abs(b[0]), abs(b[1])) - 1
    return (0 if a[0] >= 0 else -largest), max(0, min(largest, a[1]) if a[0] >= 0 else largest)


_ARITHMETIC: dict[str, Callable[[Range, Range], Range]] = {
    "arith.addi": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "arith.subi": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "arith.muli": _corners(lambda x, y: x * y),
    "arith.shli": _corners(lambda x, y: x << max(0, min(y, 63))),
    "arith.divsi": _divided,
    "arith.remsi": _remainder,
    "arith.minsi": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "arith.maxsi": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
}
