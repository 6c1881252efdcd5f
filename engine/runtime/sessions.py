"""The graphs of an export, each loaded when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..exports import Export, GraphSpec
from .exported import Tensors

Run = Callable[[Tensors], Tensors]
Load = Callable[[GraphSpec, Path], Run]


class Sessions:
    """Runs the graphs of an export by name: a :class:`~syncflow.engine.runtime.exported.Graphs`.

    ``load`` makes one of them runnable; ``settings`` are what it was told, for who asks. The files are checked first.
    Raises ``ValueError`` for an export that is damaged.
    """

    def __init__(self, export: Export, load: Load, settings: Mapping[str, Any]) -> None:
        self.export, self.settings = export.check(), dict(settings)
        self._load = load
        self._loaded: dict[str, Run] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        """The outputs of graph ``name``."""
        with self._lock:
            if name not in self._loaded:
                spec = self.export.graphs[name]
                self._loaded[name] = self._load(spec, self.export.path / spec.file)
        return self._loaded[name](inputs)
