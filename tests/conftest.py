"""Without a GPU the Triton kernels run in their interpreter; it must be chosen before the first import of a kernel.

Exports in the user's cache do not count: the tests choose their runtimes.
"""

from __future__ import annotations

import os
import tempfile

import torch

_cache = tempfile.TemporaryDirectory(prefix="syncflow-")
os.environ["SYNCFLOW_CACHE"] = _cache.name

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
