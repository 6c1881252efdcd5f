"""The extension module ``syncflow._native`` (C++ in ``csrc/``), which an installation may lack."""

from __future__ import annotations

import functools
import os
from importlib import import_module
from typing import Any


@functools.cache
def load() -> tuple[Any, str]:
    """The module, or None where it is missing or ``SYNCFLOW_NATIVE=0`` switches it off, and a sentence that says which.

    The sentence also says how to get a missing module.
    """
    if os.environ.get("SYNCFLOW_NATIVE") == "0":
        return None, "native part switched off: SYNCFLOW_NATIVE=0"
    try:
        return import_module("syncflow._native"), "native part: built"
    except ModuleNotFoundError:
        remedy = "to build it, install CMake and a C++20 compiler, then install syncflow again"
        return None, f"native part missing, numpy stands in with the same results; {remedy}"
    except ImportError as error:
        return None, f"native part does not load, numpy stands in with the same results: {error}"
