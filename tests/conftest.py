"""Without a GPU the Triton kernels run in their interpreter; it must be chosen before the first import of a kernel."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
