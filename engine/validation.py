"""Values of a user made Python's own, or refused with one sentence that names the setting and what is allowed.

NumPy's scalars count as the numbers that they are, so that what is kept of a request is JSON. Truth values are no
numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

LONGEST = 60
UNITS = {"": 1, "mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}


def shown(value: object) -> str:
    """A value as a message says it: its ``repr`` on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of thousands of digits, or a foreign object whose repr fails
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def refuse(name: str, value: object, allowed: str) -> NoReturn:
    """Raise the ``ValueError`` of a setting."""
    raise ValueError(f"{name} is {shown(value)}; it must be {allowed}") from None


def whole(name: str, value: Any, allowed: str = "a whole number") -> int:
    """An integer of any library. Raises ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        refuse(name, value, allowed)
    return int(value)


def number(name: str, value: Any, allowed: str = "a number") -> int | float:
    """A real number of any library, an integer as such. Raises ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(name, value, allowed)
    try:
        found = float(value)
        return int(value) if isinstance(value, Integral) else found
    except OverflowError:
        return refuse(name, value, allowed)


def whole_between(name: str, value: Any, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``. Raises ``ValueError``."""
    allowed = f"a whole number from {low} to {high}"
    found = whole(name, value, allowed)
    return found if low <= found <= high else refuse(name, found, allowed)


def number_between(
    name: str, value: Any, low: float, high: float, allowed: str | None = None, *, above: bool = False
) -> float:
    """A number from ``low`` to ``high``, or with ``above`` one above ``low``. Raises ``ValueError``."""
    allowed = allowed or (f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}")
    found = number(name, value, allowed)
    inside = low < found <= high if above else low <= found <= high
    return found if inside else refuse(name, found, allowed)


def byte_size(name: str, value: Any) -> int:
    """A number of bytes, also as text with a unit: ``800MB``, ``1.5 GiB``. Raises ``ValueError``."""
    allowed = "bytes, or a number with MB, GB, MiB or GiB such as '12GB'"
    if isinstance(value, str):
        written = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)?\s*", value, re.IGNORECASE)
        if written is None:
            refuse(name, value, allowed)
        value = round(float(written[1]) * UNITS[(written[2] or "").lower()])
    found = whole(name, value, allowed)
    return found if 0 < found <= 2**62 else refuse(name, value, allowed)


def truth(name: str, value: Any) -> bool:
    """True or false, of Python or NumPy. Raises ``ValueError``."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return refuse(name, value, "true or false")


def text(name: str, value: Any) -> str:
    """Text that UTF-8 can hold. Raises ``ValueError``."""
    if not isinstance(value, str):
        refuse(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(name, value, "text that UTF-8 can hold, without lone surrogates")
    return value


def file_path(name: str, value: Any, allowed: str = "the path of a file") -> Path:
    """A path. Raises ``ValueError``."""
    if not isinstance(value, (str, os.PathLike)):
        refuse(name, value, allowed)
    found = os.fspath(value)
    if not isinstance(found, str) or not found or "\0" in found:
        refuse(name, value, allowed)
    return Path(found)


def check_names(given: Sequence[str], known: Sequence[str], aliases: dict[str, str], owner: str) -> None:
    """Refuse names that are not known, with the nearest that is.

    ``aliases`` are names of other libraries. Raises ``ValueError`` for the first unknown name.
    """
    for name in given:
        if name in known:
            continue
        near = aliases.get(name) or next(iter(get_close_matches(name, known, 1)), None)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(known)}"
        raise ValueError(f"{owner} has no setting {name}; {hint}")
