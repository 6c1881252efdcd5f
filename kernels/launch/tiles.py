"""Tile choices: measured or counted ones per GPU in JSON beside this file, a heuristic of the kernel's own elsewhere.

A file is named after the GPU (``nvidia_h200.json``) or its architecture (``sm_90.json``); the first that exists counts.
It maps an operation to rules, tried in order: a rule holds where every condition in ``when`` (a value, or a list of the
smallest and the largest) fits, and ``tiles`` then overrides the heuristic. ``triton`` is the version of Triton, 309 for
3.9: tiles that leave no register free in one spill in another. Nothing is tuned while serving.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from .language import VERSION

FOLDER = Path(__file__).with_name("gpus")

_target: ContextVar[tuple[str, ...] | None] = ContextVar("target", default=None)
_override: ContextVar[Mapping[str, Mapping[str, int]]] = ContextVar("override", default={})  # noqa: B039


@contextmanager
def target(*names: str) -> Iterator[None]:
    """Choose for the GPU of these names within a ``with`` block, rather than for the one that is present."""
    token = _target.set(names)
    try:
        yield
    finally:
        _target.reset(token)


@contextmanager
def override(name: str, tiles: Mapping[str, int]) -> Iterator[None]:
    """Use ``tiles`` for operation ``name`` within a ``with`` block: what a tuner tries."""
    token = _override.set({**_override.get(), name: tiles})
    try:
        yield
    finally:
        _override.reset(token)


def choose(name: str, heuristic: Mapping[str, int], **key: Any) -> dict[str, int]:
    """Block sizes, ``num_warps`` and ``num_stages`` for operation ``name`` at ``key`` (dtype, lengths, widths)."""
    chosen = dict(heuristic)
    if name in _override.get():
        return {**chosen, **_override.get()[name]}
    known: dict[str, Any] = {"triton": 100 * VERSION[0] + VERSION[1]}
    known |= {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in key.items()}
    for rule in _rules(_target.get() or _present()).get(name, ()):
        if all(_fits(known[condition], allowed) for condition, allowed in rule["when"].items()):
            return {**chosen, **rule["tiles"]}
    return chosen


def _fits(value: Any, allowed: Any) -> bool:
    return bool(allowed[0] <= value <= allowed[1]) if isinstance(allowed, list) else bool(value == allowed)


@functools.cache
def _present() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    major, minor = torch.cuda.get_device_capability()
    return (torch.cuda.get_device_name().lower().replace(" ", "_"), f"sm_{major}{minor}")


@functools.cache
def _rules(names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    for name in names:
        path = FOLDER / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}
