"""TF32 on a CUDA device: the one place where it is set.

A GPU multiplies float32 matrices either in full precision or, several times faster, with operands rounded to 11 bits
(TF32). PyTorch's defaults mix the two: convolutions round, matrix products do not. Here both follow the precision of
the d-DiT. In float32 nothing is rounded. In half precision the float32 products that are left are those of codecs and
text encoder, whose operands then have more bits than any in the passes: they use TF32.

PyTorch's setting holds for the process. Of several engines the strictest decides, whichever was made first.
"""

from __future__ import annotations

import threading
from typing import Literal

import torch

from ..exports import Precision

Float32Products = Literal["ieee", "tf32"]

_lock = threading.Lock()
_strict = False  # whether an engine of this process computes in float32 on a GPU


def set_float32_products(precision: Precision, device: torch.device) -> None:
    """Set TF32 for an engine whose d-DiT computes in ``precision`` on ``device``; nothing changes on a CPU."""
    global _strict
    if device.type != "cuda":
        return
    with _lock:
        _strict = _strict or precision == "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not _strict


def float32_products(device: torch.device) -> Float32Products:
    """What products and convolutions of float32 do on a device now."""
    rounds = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return "tf32" if device.type == "cuda" and rounds else "ieee"
