"""The gate on speed: what it measures, its rule on noise, and that it fails where something is planted."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from syncflow.benchmarks import compare, gate
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
def test_a_planted_slow_kernel_fails():
    """Half as fast, which the best of a few tries does not hide."""
    check = gate.check_linear(tries=2, calls=2)
    assert not check.passed and check.tries == 2 and check.ratio > 0


@needs_native
def test_a_level_that_this_machine_has_not_is_refused():
    with pytest.raises(ValueError, match="the level is 'x86-64-v9'; this machine has baseline"):
        gate.check_all_levels("x86-64-v9")


def compared(monkeypatch, *ratios):
    """Comparisons with these ratios and intervals, in place of two engines."""
    asked = []

    def compare_revision(revision, chosen, rounds, *, slow_down, least):
        asked.append((revision, slow_down, least))
        rows = [
            compare.Comparison(one.name, 10.0, 10.0, ratio, low, high, rounds, True)
            for one, (low, ratio, high) in zip(chosen, ratios, strict=True)
        ]
        return {"revision": "0123456789abcdef", "rows": rows}

    monkeypatch.setattr(gate.compare, "compare_revision", compare_revision)
    return asked


def test_only_a_certain_loss_against_a_revision_fails(monkeypatch):
    asked = compared(monkeypatch, (0.90, 0.94, 0.96), (0.89, 0.91, 0.93))
    noisy, slow = gate.check_revision("HEAD", 0.1)
    assert noisy.passed and not slow.passed
    assert asked == [("HEAD", 0.1, 0.95)]
    assert slow.detail.startswith("0.910 times as fast as 0123456789ab")


def test_rounds_are_added_until_a_ratio_is_certain():
    """Times of the own tree: 0.97 of the others', with noise."""

    class Worker:
        def __init__(self, factor):
            self.factor, self.runs, self.rng = factor, 0, np.random.default_rng(round(1000 * factor))

        def run(self, workload):
            self.runs += 1
            return self.factor * float(self.rng.normal(1, 0.05)), "same"

    base, own = Worker(1.0), Worker(1.0 / 0.96)
    chosen = compare.workloads([1], clip=False)
    (row,) = compare.compare(base, own, chosen, 20, least=0.95)
    assert row.rounds in range(40, 161, 20) and base.runs == own.runs == row.rounds + 1
    (plain,) = compare.compare(Worker(1.0), Worker(1.0 / 0.96), chosen, 20)
    assert plain.rounds == 20
    (certain,) = compare.compare(Worker(1.0), Worker(1.5), chosen, 20, least=0.95)
    assert certain.rounds == 20 and certain.is_slower(0.95)


def test_demonstrations_say_whether_they_hold(monkeypatch):
    def level(plant=None):
        return [gate.Check(plant or "baseline", "linear", 0.3 if plant else 0.7, 0.5, 1, "")]

    def revision(name, slow_down=0.0):
        return [gate.Check("baseline", "step", 0.92 if slow_down else 1.0, 0.95, 1, "")]

    monkeypatch.setattr(gate, "check_all_levels", level)
    monkeypatch.setattr(gate, "check_revision", revision)
    monkeypatch.setattr(gate.native, "EXTENSION", SimpleNamespace(instruction_levels=lambda: ["baseline", "v3"]))
    told = []
    found = gate.demonstrate(3, told.append)
    assert [(one.runs, one.failed) for one in found] == [(3, 0), (1, 1), (1, 1), (1, 1)]
    assert all(one.holds for one in found) and len(told) == 6
    assert "NOT" not in gate.demonstrations_table(found)
    elsewhere = gate.Check("other", "linear", 0.3, 0.5, 1, "")
    monkeypatch.setattr(gate, "check_all_levels", lambda plant=None: [*level(plant), *[elsewhere][: plant == "v3"]])
    monkeypatch.setattr(gate, "check_revision", lambda name, slow_down=0.0: [])
    assert [one.holds for one in gate.demonstrate(1, told.append)] == [True, False, True, False]


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
