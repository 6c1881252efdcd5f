"""Every operation at every case, each variant checked and then timed on a GPU; skipped without one.

``-k OPERATION`` selects one operation.
"""

from __future__ import annotations

from collections.abc import Callable

from syncflow.benchmarks.kernels.cases import Case


def test_kernels(compare_variant: Callable[[Case, str], None], case: Case, variant: str) -> None:
    compare_variant(case, variant)
