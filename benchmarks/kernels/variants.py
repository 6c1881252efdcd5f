"""The variants of an operation that are compared: its kernel, baselines, and its reference, eager and compiled."""

from __future__ import annotations

from .attention_baselines import ATTENTION_BASELINES
from .cases import reference
from .harness import Variant, kernel, kernels_of
from .token_baselines import TOKEN_BASELINES

BASELINES = ATTENTION_BASELINES | TOKEN_BASELINES


def variants(operation: str, device: str) -> dict[str, Variant]:
    """All variants of an operation by name, the kernel first."""
    formula = reference(operation)
    return {
        **{name: Variant(kernel(operation, device), tiles=tiles) for name, tiles in kernels_of(operation).items()},
        **BASELINES[operation],
        "eager": Variant(formula),
        "compiled": Variant(formula, compiled=True),
    }
