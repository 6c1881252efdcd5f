"""What libraries prepare again at every use, prepared once.

That takes half of the time of an interpreted kernel, and a second of every export of a graph. The functions replaced
are private; in a version of the library without them nothing is replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any


def prepare_triton_language_once() -> None:
    """Triton's interpreter prepares ``triton.language`` once a launch, not at every call that a kernel makes.

    What a launch has prepared stays until it ends, so that further calls change nothing.
    """
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    if not {"GridExecutor", "_patch_lang", "_LangPatchScope"} <= vars(interpreter).keys():
        return
    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared: set[str] = set()

    @cache
    def languages_of(function: Callable[..., Any]) -> frozenset[str]:
        modules = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
        return frozenset(language.__name__ for language in (tl, tl.core) if language in modules)

    def prepare_once(function: Callable[..., Any]) -> Any:
        languages = languages_of(function)
        if languages and languages <= prepared:
            return interpreter._LangPatchScope()
        prepared.update(languages)
        return prepare(function)

    def launch_prepared(self: Any, *arguments: Any, **named: Any) -> None:
        prepared.clear()
        try:
            launch(self, *arguments, **named)
        finally:
            prepared.clear()

    interpreter._patch_lang = prepare_once
    interpreter.GridExecutor.__call__ = launch_prepared


def register_onnx_operations_once() -> None:
    """PyTorch's ONNX exporter looks up all operations once, not for every graph."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return
    if not hasattr(ONNXRegistry, "from_torchlib"):
        return
    registry_of = cache(ONNXRegistry.from_torchlib)

    def copied(**named: Any) -> Any:
        registry = copy.copy(registry_of(**named))
        registry.functions = {target: list(known) for target, known in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(copied)
