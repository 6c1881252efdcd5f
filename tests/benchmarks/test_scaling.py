"""Exponents of cost: of known curves, and of the counted FLOPs along every axis of a model."""

from __future__ import annotations

import pytest

from syncflow.benchmarks import scaling
from syncflow.benchmarks.alternating import Timing
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import Engine
from syncflow.engine.presets import preset


def test_the_exponent_of_a_power_is_its_own():
    assert scaling.exponent((1, 2, 4, 8), [3 * x**1.5 for x in (1, 2, 4, 8)]) == pytest.approx(1.5)


class Configured:
    """As much of an engine as the axes ask for."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config


@pytest.mark.slow
def test_the_counted_cost_grows_as_the_formula_says():
    tiny = preset("syncflow-tiny")
    engine = Configured(tiny.replace(ddit=tiny.ddit.replace(depth=2)))
    axes = {axis.name: axis for axis in scaling.axes(engine)}
    assert set(axes) == {"frames", "side, pixels", "steps", "batch", "branches", "takes"}
    found = {
        label: scaling.exponent(axis.values, [scaling._flops(engine, axis.requests(value)) for value in axis.values])
        for label, axis in axes.items()
    }
    assert found["batch"] == pytest.approx(1, abs=0.1)  # texts are shared
    assert 0.9 < found["steps"] <= 1
    assert 0.95 < found["frames"] < 1.5  # attention over time and of the audio grows with the square
    assert 1 < found["side, pixels"] < 2.5
    assert 0.5 < found["branches"] < 1.3
    assert 0 < found["takes"] < 1  # the video is computed once


@pytest.mark.slow
def test_a_curve_has_times_beside_counts(tmp_path):
    engine = Engine.from_pretrained(runtime="torch")
    axis = next(one for one in scaling.axes(engine) if one.name == "takes")
    curve = scaling.measure(engine, engine.chosen, scaling.Axis("takes", (1, 4), axis.requests), Timing(1))
    assert len(curve.ms) == len(curve.flops) == 2 and 0 < curve.formula < 1
    assert "| takes | 1, 4 | " in scaling.table([curve])
    scaling.plot([curve], tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 1000
