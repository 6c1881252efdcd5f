"""What must be set before the first import of a library.

Every process of the tests computes with one thread, since there is one for each core. Without a GPU the Triton kernels
run in their interpreter. Exports in the user's cache do not count, and runtimes are not timed: the tests choose theirs,
and those of the timing switch it on.
"""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

_cache = tempfile.TemporaryDirectory(prefix="syncflow-")
os.environ["SYNCFLOW_CACHE"] = _cache.name
os.environ["SYNCFLOW_CALIBRATION"] = "off"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
