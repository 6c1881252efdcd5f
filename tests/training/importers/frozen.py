"""Outputs of other people's code, frozen, beside which an imported model's are put.

``pytest --log-cli-level=INFO tests/training/importers`` prints the relative error of each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-5  # relative, of norms


def assert_close(found: Tensor, expected: Tensor, name: str) -> None:
    """Compare by the norm of the difference, relative to that of ``expected``; log it under ``name``."""
    assert found.shape == expected.shape, name
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    logging.getLogger(__name__).info("%s: relative error %.1e", name, error)
    assert error < TOLERANCE, f"{name}: relative error {error:.1e}"


class Frozen:
    """The tensors of a file, by name; ``rows`` are as many of the first rows as both have."""

    def __init__(self, file: Path) -> None:
        self.tensors: Mapping[str, Tensor] = load_file(file)

    def assert_close(self, found: Tensor, name: str, rows: int | None = None) -> None:
        """Compare with the tensor ``name``, of both only the first ``rows``."""
        assert_close(found[:rows], self.tensors[name][:rows], name)
