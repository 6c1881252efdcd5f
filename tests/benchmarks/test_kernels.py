"""Kernel benchmarks: cases, counted work, checks and times of variants, and resources without a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils._pytree import tree_leaves

from syncflow import kernels
from syncflow.benchmarks.kernels import cases, compiled, harness, variants
from syncflow.benchmarks.kernels.cases import BATCHES, FACTORIES, SCALES, Sizes, Work
from syncflow.benchmarks.kernels.harness import Outcome, Roofline, Timing, Truth, Variant
from syncflow.kernels.launch.aot import load_widths

pytestmark = pytest.mark.slow

NAMES = [name for name in kernels.__all__ if hasattr(getattr(kernels, name), "plan_launches")]
XL, TINY = (Sizes.of(name, 1, 1) for name in cases.PRESETS)


def xl(operation: str, place: str) -> cases.Case:
    return cases.Case(operation, place, XL)


def test_every_operation_has_cases_and_baselines():
    assert sorted(FACTORIES) == sorted(NAMES)
    assert sorted(variants.BASELINES) == sorted(NAMES)


def test_sizes_are_those_of_the_presets():
    assert (XL.rows, XL.frames, XL.tokens, XL.audio, XL.text, XL.channels, XL.heads) == (2, 8, 256, 100, 300, 1152, 16)
    assert (TINY.tokens, TINY.channels, TINY.context_tokens) == (16, 128, 8)
    assert Sizes.of("syncflow-xl", 16, 2).tokens == 1024
    assert xl("spatial_attention", "video").at(4).sizes == Sizes.of("syncflow-xl", 4, 1)


@pytest.mark.parametrize("operation", NAMES)
def test_cases_have_shapes_on_the_meta_device(operation):
    found = cases.cases([operation])
    assert len(found) == 2 * len(BATCHES) * len(SCALES) * len(FACTORIES[operation])
    assert len({case.id for case in found}) == len(found)
    for case in [*found, *cases.odd_cases([operation])]:
        arguments = case.arguments("meta", torch.bfloat16)
        assert all(
            leaf.is_meta for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor) and leaf.numel() > 99
        )
        assert case.work(torch.bfloat16).bytes > 0


@pytest.mark.parametrize("operation", NAMES)
def test_the_same_seed_gives_the_same_arguments(operation):
    for case in cases.micro_cases([operation]):
        first, second, other = (tree_leaves(case.arguments("cpu", torch.float32, seed)) for seed in (1, 1, 2))
        pairs = [(a, b, c) for a, b, c in zip(first, second, other, strict=True) if isinstance(a, torch.Tensor)]
        assert all(torch.equal(a.float(), b.float()) for a, b, _ in pairs)
        assert not all(torch.equal(a.float(), c.float()) for a, _, c in pairs)


def test_work_by_hand():
    rows, tokens, width = 2, 8 * 256, 1152
    activation = 2 * rows * tokens * width
    assert xl("spatial_attention", "video").work(torch.bfloat16) == Work(
        4 * activation + 2 * 2 * 72, 4 * rows * 8 * 256**2 * width
    )
    modulation = 2 * (6 * width + rows * 6 * width)
    assert xl("modulated_layer_norm", "block").work(torch.bfloat16) == Work(2 * activation + modulation, 0)
    final = 2 * (2 * width + rows * width)  # one embedding a row, read as shift and as scale
    assert xl("modulated_layer_norm", "final").work(torch.bfloat16) == Work(2 * activation + final, 0)
    assert xl("temporal_attention", "adaptor").work(torch.bfloat16).flops == 4 * rows * tokens**2 * width
    text = xl("text_cross_attention", "text").work(torch.float32)
    assert text.flops == 4 * rows * tokens * 300 * width
    assert text.bytes == 4 * (2 * rows * tokens + 2 * rows * 300) * width + 2 * 8 * rows
    video = 4 * 8 * 32 * 32
    step = xl("guided_euler_step", "free").work(torch.bfloat16).bytes
    assert step - (4 + 2 * 2 + 4 + 2) * video == 2 * 8 + 2 * 4 + 4


@pytest.mark.parametrize("operation", NAMES)
def test_variants_compute_the_operation(operation):
    """Every baseline that runs on a CPU gives the operation's result; one that does not run says why."""
    missing = ("No viable backend", "No module named", "is compared without a mask", "not implemented for", "scaled_mm")
    for case in cases.micro_cases([operation])[:1]:
        for name, baseline in variants.variants(operation, "cpu").items():
            if baseline.compiled:
                continue
            outcome = harness.compare(case, name, baseline, torch.float32, "cpu", Roofline(1e12, {"float32": 1e13}))
            if outcome.timing is None:
                assert name != "eager" and not name.startswith("kernel"), outcome.reason
                assert any(words in str(outcome.reason) for words in missing), outcome.reason
            else:
                assert outcome.error is not None and outcome.error < harness.ALLOWED[torch.float32]


def test_a_wrong_result_is_not_timed():
    case = cases.micro_cases(["gated_residual"])[0]
    formula = cases.reference("gated_residual")
    off = harness.compare(case, "off", Variant(lambda *a: formula(*a) * 1.1), torch.float32, "cpu")
    assert off.timing is None and "wrong" in str(off.reason)
    # small enough for a baseline, too much for the kernel itself
    near = Variant(lambda *a: formula(*a) * 1.0001)
    assert harness.compare(case, "near", near, torch.float32, "cpu").timing is not None
    assert "tolerance" in str(harness.compare(case, "kernel", near, torch.float32, "cpu").reason)
    unwritten = Variant(lambda *a: torch.empty_like(a[0]))
    assert "wrong" in str(harness.compare(case, "unwritten", unwritten, torch.float32, "cpu").reason)


def test_margin_follows_the_rule():
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    plain = torch.tensor([1.0, -4.0 + 3e-3])
    known = Truth((), [exact], [plain])
    allowed = 2 * (plain.double() - exact).abs().max().item() + torch.finfo(torch.float32).eps * 4
    assert known.margin(torch.tensor([1.0 + 3e-3, -4.0])) == pytest.approx(3e-3 / allowed, rel=1e-3)
    assert known.margin(torch.tensor([float("nan"), -4.0])) == float("inf")
    with pytest.raises(ValueError, match="shape"):
        known.margin(torch.zeros(3))


def test_sums_of_8_bit_products_have_a_tolerance_of_their_own():
    """K / 32 cuts after 13 bits, as Hopper's matrix units make them, pass; twice as many do not."""
    (case,) = (one for one in cases.micro_cases(["fp8_linear"]) if one.place == "mlp")
    known = harness.truth(case, torch.float32, "cpu")
    (exact,) = known.exact
    steps = case.arguments("meta", torch.float32)[0].shape[-1] / 32
    assert known.sum_error == steps * 2**-13
    cut = exact + exact.abs().max() * steps * 2**-13
    assert known.margin(cut) <= 1 < known.margin(exact + 2 * (cut - exact))
    assert harness.truth(cases.micro_cases(["gated_linear"])[0], torch.float32, "cpu").sum_error == 0
    exact_sums, long = (*known.arguments[:6], False), torch.empty(1, 4608)
    assert harness.sum_error("fp8_linear", (long, *exact_sums[1:])) == 4 * 2**-13


def test_roof_and_row():
    roofline = Roofline(2e12, {"bfloat16": 1e15, "float32": 5e14})
    assert roofline.floor(Work(10**9, 10**9), torch.bfloat16) == pytest.approx(5e-4)
    assert roofline.floor(Work(10**6, 10**12), torch.float32) == pytest.approx(2e-3)
    timing = Timing((3e-4, 1e-4, 2e-4, 5e-4, 4e-4), "graph", cold=True)
    assert [timing.percentile(p) for p in (0.2, 0.5, 0.8)] == [2e-4, 3e-4, 5e-4]
    row = Outcome("op", "case", "R=1", "bfloat16", "kernel", Work(6 * 10**8, 3 * 10**9), timing, 0.0, 1.5e-4).to_dict()
    assert (row["p50_us"], row["gb_s"], row["tflop_s"], row["roofline_percent"]) == (300.0, 2000.0, 10.0, 50.0)
    assert "| 200.0 | 300.0 | 500.0 |" in harness.table([row])
    without = Outcome("op", "case", "R=1", "bfloat16", "other", Work(1, 1), reason="no | such backend").to_dict()
    assert "no / such backend" in harness.table([without])


class Event:
    """Stands for a CUDA event: a clock that moves 1 ms at every record."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 1.0
        self.at = Event.now

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


class Graph:
    """Stands for a CUDA graph."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1


@pytest.mark.parametrize("capturable", [True, False])
def test_times_on_a_gpu_are_of_one_call(monkeypatch, capturable):
    calls = []

    @contextlib.contextmanager
    def capture(_graph):
        if not capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    properties = type("Properties", (), {"L2_cache_size": 3000})()
    for name, value in (("Event", Event), ("CUDAGraph", Graph), ("graph", capture), ("synchronize", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    sets = [(torch.full((500,), float(i)),) for i in range(4)]
    timing = harness.time_calls(lambda x: calls.append(int(x[0])), sets, "cuda")
    assert timing.method == ("graph" if capturable else "events")
    assert timing.cold  # 8000 bytes are more than twice the cache of 3000
    assert len(timing.samples) == harness.ROUNDS
    assert timing.samples[0] == pytest.approx(1e-3 / 4)
    assert set(calls) == {0, 1, 2, 3}
    assert (len(calls) < 30) == capturable


def test_argument_sets_exceed_the_cache(monkeypatch):
    properties = type("Properties", (), {"L2_cache_size": 60 * 10**6})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    seeds = []
    monkeypatch.setattr(cases.Case, "arguments", lambda self, device, dtype, seed=0: seeds.append(seed) or ())
    harness.argument_sets(xl("spatial_attention", "video"), torch.bfloat16, "cuda", Work(38 * 10**6, 0))
    assert seeds == [0, 1, 2, 3, 4]


def test_loads_are_read_from_machine_code():
    ptx = """
    ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    @%p1 ld.global.L1::evict_last.v2.b32 { %r1, %r2 }, [ %rd2 + 0 ];
    ld.global.b16 %rs1, [ %rd3 + 0 ];
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd4 + 0 ], 0x10, %r9;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd4 + 0 ], 0x4, %r9;
    """
    assert load_widths(ptx) == {2: 1, 4: 1, 8: 1, 16: 2}


def test_plan_compiles_once_what_the_compiler_cannot_tell_apart():
    every = compiled.plan("sm_90", ["bfloat16"], operations=["spatial_attention"])
    shapes = [shape for task in every for shape in task.same]
    assert len(shapes) == len(set(shapes)) == 2 * len(BATCHES) * len(SCALES)
    assert len(every) <= 2 * len(SCALES)  # a batch is a length, never a constant
    for arguments, words in (
        (("sm_91",), "sm_91"),
        (("sm_90", ["int8"]), "int8"),
        (("sm_90", ["bfloat16"], ["huge"]), "huge"),
        (("sm_90", ["bfloat16"], cases.PRESETS, ["softmax"]), "softmax"),
    ):
        with pytest.raises(ValueError, match=words):
            compiled.plan(*arguments)


def test_faults_of_a_row():
    row = compiled.Row("op", "video", "kernel", "R=1", "bfloat16", {}, registers=80, shared_bytes=227 * 1024)
    assert row.fault("sm_90") is None
    assert "232448 bytes" in str(row.fault("sm_89"))
    spilling = compiled.Row("op", "video", "kernel", "R=1", "bfloat16", {}, spills=8)
    assert "spills 8" in str(spilling.fault("sm_90"))
    serialised = compiled.Row("op", "video", "kernel", "R=1", "bfloat16", {}, serialised="(C7515) serialized")
    assert "C7515" in str(serialised.fault("sm_90"))
    for operation, refused in (("spatial_attention", True), ("linear_gelu", False)):
        waiting = compiled.Row(operation, "video", "kernel", "R=1", "bfloat16", {}, waits_per_loop=4)
        assert ("waits 4 times" in str(waiting.fault("sm_90"))) == refused
    split = compiled.Row("spatial_attention", "video", "kernel", "R=1", "float32", {}, waits_per_loop=12)
    assert split.fault("sm_90") is None
    narrow = compiled.Row("op", "video", "kernel", "R=1", "bfloat16", {}, overflows=("%1 = arith.muli",))
    assert "can overflow" in str(narrow.fault("sm_90"))
    broken = compiled.Row("op", "video", "kernel", "R=1", "bfloat16", {}, error="CompilationError: no")
    assert "does not compile" in str(broken.fault("sm_90"))
    assert "failed" in compiled.table([broken])
