"""The roofline of a step: counted FLOPs and bytes by component, at given rates."""

from __future__ import annotations

import pytest

from syncflow.benchmarks import roofline, standing
from syncflow.benchmarks.roofline import DATA_SHEETS, Rates, Standing, step_roofline
from syncflow.engine.cost.breakdown import step_flops
from syncflow.engine.presets import PRESETS, preset
from syncflow.engine.sampling.guidance import text_guidance

RATES = Rates("a device", 1e12, 1e11, "given")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-tiny")])
def test_the_components_have_the_flops_of_the_step(name):
    """To within what is computed once a schedule, not once a step."""
    config = preset(name)
    found = step_roofline(config, RATES)
    assert found.total.flops == pytest.approx(step_flops(config, [text_guidance(6.0)]), rel=0.01)
    assert ("bridge" in [one.name for one in found.components]) is (config.ddit.bridge != "adaptor")


@pytest.mark.slow
def test_a_step_of_two_clips_has_twice_the_flops():
    one, two = (step_roofline(preset("syncflow-tiny"), RATES, batch).total for batch in (1, 2))
    assert two.flops == 2 * one.flops and one.bytes < two.bytes < 2 * one.bytes


@pytest.mark.slow
def test_the_floor_is_bound_by_memory_or_by_products():
    config = preset("syncflow-tiny")
    slow_memory = step_roofline(config, Rates("", 1e18, 1e9, "")).total
    assert slow_memory.floor_ms == pytest.approx(slow_memory.bytes / 1e6, rel=1e-6) and slow_memory.memory_share == 1
    slow_products = step_roofline(config, Rates("", 1e9, 1e18, ""))
    assert slow_products.total.floor_ms == pytest.approx(slow_products.matrix_ms, rel=1e-3)
    assert slow_products.total.memory_share < 1e-3


@pytest.mark.slow
def test_deep_models_are_counted_from_shallow_ones():
    config = preset("syncflow-tiny")
    shallow = config.replace(ddit=config.ddit.replace(depth=4))
    three, four = (
        step_roofline(shallow.replace(ddit=shallow.ddit.replace(depth=depth)), RATES).total.flops for depth in (3, 4)
    )
    six = step_roofline(config, RATES).total.flops
    assert six == four + 2 * (four - three)


@pytest.mark.slow
def test_table_and_plot(tmp_path):
    found = step_roofline(preset("syncflow-tiny"), DATA_SHEETS["h100"], dtype="bfloat16")
    lines = roofline.table(found, [Standing("measured", 2 * found.matrix_ms)]).splitlines()
    assert "989,400 GFLOP/s, 3,350.0 GB/s (data sheet)" in lines[0]
    assert lines[-1].startswith("| measured | ") and "| 50% |" in lines[-1]
    roofline.plot(found, [Standing("measured", 1.0)], tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_rates_of_this_machine(monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 0.01)
    monkeypatch.setattr(roofline, "COPY_BYTES", 1 << 22)
    found = roofline.measured_rates()
    assert found.matrix > 1e9 and found.bandwidth > 1e8 and found.source == "measured"


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="must be one of h100"):
        standing.roofline("syncflow-tiny", 1, "v100", 1, lambda rounds, desc: rounds)
