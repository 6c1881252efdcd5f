"""The graphs of a step in their library alone: the same graphs, with the same result."""

from __future__ import annotations

import pytest

from syncflow.benchmarks.library_only import LIBRARIES, LibraryOnly
from syncflow.engine.runtime.selection.libraries import load

from ..engine.plain import job


@pytest.mark.parametrize("runtime", LIBRARIES)
def test_the_library_alone_computes_the_same_graphs(exports, models, runtime):
    pytest.importorskip(runtime)
    alone = LibraryOnly(
        runtime, load(runtime, exports["adaptor"], models["adaptor"].ddit, "float32"), [job(1, steps=4)]
    )
    assert len(alone._work) == 3  # the video, what the audio reads of it, the audio
    assert alone.error < 1e-5
    alone.step()
