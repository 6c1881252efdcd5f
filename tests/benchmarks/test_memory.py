"""The predicted peak of memory beside the measured one."""

from __future__ import annotations

import pytest
import torch

from syncflow.benchmarks import memory


def test_the_allocator_tells_its_peak():
    def work():
        x = torch.ones(1 << 20)
        y = x + x
        del x
        return (y * 2).sum()

    assert memory.allocated(work, torch.device("cpu")) == pytest.approx(2 * (4 << 20), rel=0.01)


@pytest.mark.slow
def test_the_bundled_model_takes_what_is_predicted():
    found = memory.measure("tiny", 1)
    assert abs(found.error) < 0.1
    assert found.predicted > found.weights > 0
    assert f"{found.error:+.1%}" in memory.table([found])


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="must be one of tiny, mid"):
        memory.engine_of("huge")
