"""The memory of a whole process under a budget, at the size of the tiny preset."""

from __future__ import annotations

import sys

import pytest
import torch

from syncflow.benchmarks import full_size
from syncflow.engine.components import Components

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has in memory")


def test_the_peak_of_a_process_begins_anew():
    size = 64 << 20
    held = torch.ones(size // 4)
    assert held.nbytes == size
    assert full_size.resident("VmHWM") >= full_size.resident("VmRSS") >= size
    del held
    full_size.reset_peak()
    before = full_size.resident("VmHWM")
    assert torch.ones(size // 2).nbytes == 2 * size
    assert full_size.resident("VmHWM") - before > 0.9 * 2 * size


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8_weight_only"])
def test_a_request_of_a_package_with_random_weights(tmp_path, quantization):
    folder = tmp_path / "package"
    found = full_size.measure("syncflow-tiny", folder, "bfloat16", "60MB", quantization)
    parts = Components.load(folder)
    stored = {name: parameter.dtype for name, parameter in parts.text.named_parameters()}
    assert set(stored.values()) == {torch.bfloat16}
    assert [stage.stage for stage in found.stages] == ["text", "steps", "decoding"]
    assert found.whole.predicted <= found.budget == 60_000_000
    assert found.whole.measured == max(stage.measured for stage in found.stages) > 0
    assert f"{found.whole.error:+.1%}" in full_size.table(found)
    assert found.to_dict()["error"] == found.whole.error
    written = (folder / "manifest.json").stat().st_mtime_ns
    full_size.measure("syncflow-tiny", folder, "bfloat16", "60MB")
    assert (folder / "manifest.json").stat().st_mtime_ns == written


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the preset is 'huge'; it must be one of syncflow-xl"):
        full_size.measure("huge", tmp_path, "float32", "1GB")
