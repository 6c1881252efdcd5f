"""The gate on speed: what it measures, its rule on noise, and that it fails where something is planted."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from syncflow.benchmarks import gate
from syncflow.engine.runtime.pytorch import PlainTorchDenoiser
from syncflow.engine.runtime.selection.choose import RuntimeChoice
from syncflow.kernels import native

needs_native = pytest.mark.skipif(native.EXTENSION is None, reason="the native part was not built")

pytestmark = pytest.mark.slow


def test_the_best_of_a_few_tries_counts():
    ratios = iter([0.2, 0.7, 0.9])
    assert gate.best_of(5, 0.6, lambda: next(ratios)) == (0.7, 2)


def test_tries_are_bounded():
    ratios = iter([0.2, 0.4, 0.3])
    assert gate.best_of(3, 0.6, lambda: next(ratios)) == (0.4, 3)


def test_a_check_passes_from_its_least_ratio_on():
    def found(ratio):
        return gate.Check("baseline", "step", ratio, 0.95, 1, "")

    assert found(0.95).passed and not found(0.94).passed
    assert "FAILS" in gate.table([found(0.5)]) and "FAILS" not in gate.table([found(1.5)])


@needs_native
def test_a_planted_slow_kernel_fails(monkeypatch):
    loops = native.EXTENSION

    def slow(*arguments):
        time.sleep(0.003)
        loops.linear(*arguments)

    planted = SimpleNamespace(
        linear=slow, pack=loops.pack, packed_size=loops.packed_size, multiply_add_rate=loops.multiply_add_rate
    )
    monkeypatch.setattr(native, "EXTENSION", planted)
    monkeypatch.setattr(native, "instructions", loops.instructions)
    check = gate.check_linear(tries=2)
    assert not check.passed and check.tries == 2 and check.ratio > 0


@needs_native
def test_the_linear_kernel_is_measured_at_the_level_of_the_process():
    check = gate.check_linear(tries=1)
    assert check.instructions == native.instructions() and 0 < check.ratio < 1.5


def test_a_planted_slow_choice_fails(monkeypatch):
    class Slow(PlainTorchDenoiser):
        def video_pass(self, inputs):
            time.sleep(0.3)
            return super().video_pass(inputs)

    def slow(runtime, model, *arguments, **options):
        return RuntimeChoice(Slow(model), "torch", "planted")

    monkeypatch.setattr(gate, "choose", slow)
    check = gate.check_step(tries=1)
    assert not check.passed and "a step in torch," in check.detail


def test_without_the_native_part_it_says_so(monkeypatch):
    monkeypatch.setattr(native, "EXTENSION", None)
    with pytest.raises(ValueError, match="the gate needs the C\\+\\+ part"):
        gate.check_all_levels()
