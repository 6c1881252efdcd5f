"""``syncflow bench step``: the step of every runtime is checked against the reference loop, counted and timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from syncflow.benchmarks import clip, instructions, step
from syncflow.benchmarks.alternating import Timing
from syncflow.cli import main
from syncflow.engine.engine import Engine
from syncflow.engine.runtime.delegate import Delegate
from syncflow.engine.runtime.selection.choose import RuntimeChoice, choose_without_exports
from syncflow.engine.runtime.selection.processor import Processor
from syncflow.kernels import native

pytestmark = pytest.mark.slow

ONCE = Timing(rounds=1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(runtime="torch")


@pytest.fixture
def loaded(engine, monkeypatch):
    """The command measures this engine, rather than loading another."""
    monkeypatch.setattr(Engine, "from_pretrained", lambda *arguments, **settings: engine)


def test_a_runtime_is_compared_with_the_reference_loop(engine):
    chosen = step.runtimes(engine, ["torch", "auto"])
    automatic = choose_without_exports(engine.components.ddit).runtime
    assert list(chosen) == ["torch", f"auto ({automatic})"]
    reference, *own = step.compare(engine, chosen, 2, ONCE)
    assert (reference.name, reference.ratio, reference.rel_err) == ("reference, batch 2", 1.0, 0.0)
    assert all(row.rel_err < 1e-4 and row.ms_p50 > 0 for row in own)
    torch, _ = own
    assert torch.launches is not None and reference.launches is not None and torch.launches < reference.launches
    assert torch.flops < reference.flops and own[1].flops == torch.flops
    assert (own[1].launches is None) is (automatic == "native")
    for row in (reference, *own):
        assert row.gflops == pytest.approx(row.flops / row.ms_p50 / 1e6, rel=0.01)
        assert row.instructions == instructions.used()
    assert [row.runtime for row in (reference, *own)] == ["reference", "torch", automatic]


class Off(Delegate):
    """The audio's velocity, a hundredth too large."""

    def video_pass(self, inputs):
        return self.model.video_pass(inputs)

    def audio_pass(self, inputs):
        velocity, context = self.model.audio_pass(inputs)
        return 1.01 * velocity, context


def test_a_wrong_velocity_shows(engine):
    _, row = step.compare(engine, {"off": RuntimeChoice(Off(engine.components.ddit), "off", "")}, 1, ONCE)
    assert 5e-3 < row.rel_err < 2e-2
    assert row.launches is None


def test_auto_is_compared_with_the_fastest_of_the_others():
    seconds = {"reference": [9.0, 8.0, 9.0], "torch": [3.0, 2.0, 3.0], "auto": [1.5, 1.0, 1.0]}
    found = step.over_fastest(seconds, "auto")
    assert found["fastest_other"] == "torch"
    assert (found["over_fastest"].median, found["over_fastest"].low, found["over_fastest"].high) == (2.0, 2.0, 3.0)


def test_what_runs_here_is_found(engine):
    found = step.available(engine)
    assert found[:2] == ["auto", "torch-plain"] and set(found) <= {"auto", *step.BASELINES}
    assert "onnxruntime" not in found  # nothing was exported


def test_a_runtime_without_a_limit_is_left_out_of_a_limited_process(engine, monkeypatch):
    monkeypatch.setattr(step, "UNLIMITED", ("torch-plain",))
    monkeypatch.setattr(step.instructions, "is_limited", lambda: True)
    told = []
    assert "torch-plain" not in step.available(engine, told.append)
    assert told == [f"torch-plain is left out: it cannot be limited to {instructions.used()}"]
    monkeypatch.setattr(step.instructions, "is_limited", lambda: False)
    assert "torch-plain" in step.available(engine, told.append)


@pytest.mark.parametrize(("at_least", "code"), [(0.97, 0), (1.1, 1)])
def test_the_exit_code_says_whether_auto_is_the_fastest(loaded, monkeypatch, capsys, at_least, code):
    """With an interval of 1.0 to 1.2."""

    def compare(engine, chosen, batch, timing, **other):
        seconds = {"reference": [10.0, 12.0, 11.0], "auto (native)": [10.0, 10.0, 10.0]}
        fields = step.runtime_fields(seconds, "auto (native)", "native", batch, 3)
        return [step.Row(**fields, gflops=1.0, rel_err=0.0, launches=None, flops=1, bytes=None)]

    monkeypatch.setattr(step, "compare", compare)
    monkeypatch.setattr(step, "takes", lambda *arguments: [])
    arguments = ["--runtimes", "auto", "--batch", "1", "--at-least", str(at_least)]
    monkeypatch.setattr(sys, "argv", ["syncflow", "bench", "step", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    assert "1.10 (1.00 to 1.20) times as fast as reference" in capsys.readouterr().out


def test_clips_are_compared_with_the_reference_loop(engine):
    reference, own = clip.compare(engine, step.runtimes(engine, ["torch"]), 1, ONCE, steps=1)
    assert (reference.name, reference.ratio) == ("reference, batch 1", 1.0)
    assert own.runtime == "torch" and own.ms_p50 > 0 and own.fastest_other is None
    assert "| torch, batch 1 |" in clip.table([reference, own])


def test_other_clips_are_refused(engine):
    wrong = RuntimeChoice(Off(engine.components.ddit), "off", "")
    wrong.denoiser.audio_pass = lambda inputs: (lambda v, c: (-v, c))(*engine.components.ddit.audio_pass(inputs))
    with pytest.raises(ValueError, match="off makes other clips than the reference loop"):
        clip.makers(engine, {"off": wrong}, 1, steps=1)


def test_json(engine, loaded, monkeypatch, capsys):
    monkeypatch.setattr(step, "takes", partial(step.takes, steps=2))
    automatic = choose_without_exports(engine.components.ddit).runtime
    monkeypatch.setattr(
        sys, "argv", ["syncflow", "bench", "step", "--batch", "1", "--rounds", "1", "--clock", "cpu", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    (takes,), rows = found["takes"], found["rows"]
    assert takes["eight_ms"] == pytest.approx(takes["ratio"] * takes["one_ms"], rel=0.01)
    assert takes["name"] == f"auto ({automatic})" and takes["ratio"] > 1
    assert [row["name"] for row in rows] == ["reference, batch 1", f"auto ({automatic}), batch 1"]
    assert rows[0].keys() >= {"name", "ms_p50", "ratio", "rel_err", "launches", "flops", "bytes"}
    assert rows[1]["runtime"] == automatic and rows[1]["gflops"] > 0 and rows[1]["instructions"] == instructions.used()
    assert found["clock"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--runtimes", "tensorflow"), "runtime"),
        (("--runtimes", "onnxruntime"), "syncflow export"),
        (("--runtimes", "native", "--at-least", "0.97"), "--runtimes must have it"),
        (("--runtimes", "native", "--fp8"), "fp8 is an option of the runtimes auto, torch, compiled"),
    ],
)
def test_a_runtime_or_option_that_is_not_there(loaded, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["syncflow", "bench", "step", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


# Instruction levels


@pytest.fixture
def clean(monkeypatch):
    """None of the variables set; what is set in the test is gone after it."""
    for name in (*instructions.VARIABLES, instructions.COMPILED_CODE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_an_unknown_level_lists_the_others(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["syncflow", "bench", "step", "--instructions", "avx"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "the instruction level is 'avx'; it must be one of baseline, x86-64-v3, x86-64-v4" in said


def test_a_level_that_the_processor_lacks(monkeypatch, clean):
    """PyTorch would crash with it."""
    monkeypatch.setattr(instructions, "processor", lambda: Processor("Old", "0", frozenset(("sse2", "avx2"))))
    with pytest.raises(ValueError, match="this processor has no x86-64-v3: it lacks bmi2, fma"):
        instructions.limit("x86-64-v3")
    assert not set(instructions.VARIABLES) & os.environ.keys()


def test_a_level_that_the_native_part_lacks(monkeypatch):
    monkeypatch.setattr(native, "instructions", lambda: "baseline")
    instructions.check("baseline")
    with pytest.raises(ValueError, match="uses baseline and has no x86-64-v3"):
        instructions.check("x86-64-v3")


def test_a_process_that_has_torch_begins_anew(monkeypatch, clean):
    """With the same arguments, once."""
    begun = []
    monkeypatch.setattr(instructions.os, "execv", lambda program, arguments: begun.append((program, arguments)))
    instructions.limit("baseline")
    assert begun == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["SYNCFLOW_INSTRUCTIONS"] == "baseline" and os.environ["ATEN_CPU_CAPABILITY"] == "default"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("_baseline")  # which would hand out code of other levels
    instructions.limit("baseline")
    assert len(begun) == 1


PROGRAM = """
import torch
from syncflow.benchmarks import instructions
instructions.limit("baseline")
from syncflow.kernels import native
print(native.instructions(), torch.backends.cpu.get_cpu_capability())
"""


def test_the_native_part_and_torch_are_limited_alike():
    """In a process that has torch already, and begins anew."""
    environment = {name: value for name, value in os.environ.items() if name not in instructions.VARIABLES}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["None" if native.EXTENSION is None else "baseline", "DEFAULT"]
