"""Blocks in one native call: each pass beside the model in float64, and whole runs beside the plain loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from syncflow.engine.engine import Engine
from syncflow.engine.exports import ExportLocations
from syncflow.engine.model import DDiT
from syncflow.engine.model.denoiser import ALL_ROWS, AudioInputs, JointInputs, VideoContextRef, VideoInputs
from syncflow.engine.runtime.native import WIDEST, NativeDDiT
from syncflow.engine.runtime.native.blocks import TensorCache
from syncflow.engine.runtime.selection.choose import choose, choose_without_exports
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Conditioning
from syncflow.kernels import implementation, native

from ..plain import CONFIG, HEARING_JOBS, JOBS, assert_plain, job, randomised

pytestmark = [pytest.mark.slow, pytest.mark.skipif(native.EXTENSION is None, reason="the native part was not built")]

SMALL = CONFIG.replace(width=32)
MODELS = {
    "adaptor": SMALL,
    "adaptor, narrow heads": SMALL.replace(width=64, heads=4, audio_heads=2),
    "adaptor, wide heads": SMALL.replace(width=96, heads=1, audio_heads=2, sigma_head=True),
    "adaptor, all tokens": SMALL.replace(adaptor_tokens="all"),
    "adaptor, plain tokens": SMALL.replace(adaptor_tokens="none"),
    "adaptor, text": SMALL.replace(audio_text=True),
    "audio_rope": SMALL.replace(bridge="audio_rope", first_block=1, audio_text=True),
    "global_local": SMALL.replace(bridge="global_local"),
}
SEEDS = st.integers(0, 2**16)
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # a smaller example tells no more than a seed


@pytest.fixture(scope="module")
def models():
    """By name a model, the same with native blocks, and in float64."""
    found = {}
    for name, config in MODELS.items():
        model = randomised(config)
        double = DDiT(config).requires_grad_(False).double()
        double.load_state_dict(model.state_dict())
        found[name] = model, NativeDDiT(model), double
    return found


def wide(x):
    """A value with all of its numbers in float64."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, (Conditioning, tuple, list)):
        parts = [wide(one) for one in (vars(x).values() if isinstance(x, Conditioning) else x)]
        return type(x)(*parts) if isinstance(x, Conditioning) or hasattr(x, "_fields") else type(x)(parts)
    return x


def numbers(x):
    """All tensors of a nested result, one after the other."""
    if isinstance(x, torch.Tensor):
        return [x]
    return [leaf for one in (vars(x).values() if hasattr(x, "__dict__") else x) for leaf in numbers(one)]


def assert_as_exact(of, call):
    """No further from float64 than twice as far as PyTorch, and a floor."""
    plain, blocks, double = of
    with torch.inference_mode():
        exact, usual, found = (
            numbers(call(double, wide)),
            numbers(call(plain, lambda x: x)),
            numbers(call(blocks, lambda x: x)),
        )
    assert len(exact) == len(found) > 0
    for right, torchs, own in zip(exact, usual, found, strict=True):
        assert own.dtype == torch.float32 and own.shape == torchs.shape
        floor = 2e-5 * max(1.0, float(right.abs().max())) if right.numel() else 0
        allowed = 2 * float((torchs - right).abs().max()) + floor if right.numel() else 0
        assert not right.numel() or float((own - right).abs().max()) <= allowed


def drawn_inputs(model, data, *, joint=False):
    """Latents, times and texts of a few rows of an odd shape."""
    torch.manual_seed(data.draw(SEEDS))
    config, rows, prompts = model.config, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    frames, audio = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 37))
    size = 2 * data.draw(st.integers(1, 4)), 2 * data.draw(st.integers(1, 5))
    states = torch.randn(prompts, config.text_tokens, config.text_width)
    text = model.condition(states, torch.randint(1, config.text_tokens + 1, (prompts,)))
    times = torch.rand(rows, frames if data.draw(st.booleans()) else 1)
    z_v, z_a = torch.randn(rows, config.video_channels, frames, *size), torch.randn(rows, audio, config.audio_channels)
    of_row = torch.randint(0, prompts, (rows,))
    return z_v, z_a, model.modulation(times, torch.full((rows,), 8.0)), model.audio_time(torch.rand(rows)), text, of_row


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("adaptor")])
@given(st.data())
@settings(max_examples=25, phases=PHASES)
def test_video_and_then_audio(models, name, data):
    model = models[name][0]
    with torch.inference_mode():
        z_v, z_a, times_v, times_a, text, of_row = drawn_inputs(model, data)
    rows = len(z_v)
    num_outputs = data.draw(st.none() | st.integers(0, rows))
    some_rows = st.lists(st.integers(0, rows - 1), min_size=1, max_size=4).map(torch.tensor)
    context_rows = data.draw(st.just(ALL_ROWS) | some_rows)
    contexts = len(torch.arange(rows)[context_rows])
    reads = torch.tensor(data.draw(st.lists(st.integers(-1, contexts - 1), min_size=rows, max_size=rows)))
    reads = data.draw(st.sampled_from([reads, None])) if contexts == rows else reads
    tokens = z_v.shape[3] * z_v.shape[4] // 4

    def call(its, given):
        given_text = given(text)
        velocity, context = its.video_pass(
            VideoInputs(
                given(z_v), given(times_v), given_text, of_row, num_outputs=num_outputs, context_rows=context_rows
            )
        )
        ref = VideoContextRef(
            its.video_token_positions((torch.arange(z_v.shape[2]) + 0.5) / its.config.latent_fps, tokens), reads
        )
        audio = AudioInputs(given(z_a), given(times_a), given_text, of_row)
        together, _ = its.audio_pass(replace(audio, video_context=context, video_context_ref=ref))
        alone, _ = its.audio_pass(audio)
        return velocity[:num_outputs], context, together, alone

    assert_as_exact(models[name], call)


@given(st.data())
@settings(max_examples=25, phases=PHASES)
def test_audio_and_then_video(models, data):
    model = models["audio_rope"][0]
    with torch.inference_mode():
        z_v, z_a, times_v, times_a, text, of_row = drawn_inputs(model, data)
    rows = len(z_v)
    num_outputs = data.draw(st.none() | st.integers(0, rows))
    context_of_row = torch.tensor(data.draw(st.lists(st.integers(-1, rows - 1), min_size=rows, max_size=rows)))
    prefix = data.draw(st.none() | st.just(torch.arange(rows).flip(0)))

    def call(its, given):
        given_text = given(text)
        audio = AudioInputs(given(z_a), given(times_a), given_text, of_row, num_outputs=num_outputs)
        velocity, context = its.audio_pass(audio)
        video = VideoInputs(given(z_v), given(times_v), given_text, of_row, context, context_of_row, prefix)
        return velocity[:num_outputs], context, its.video_pass(video)[0]

    assert_as_exact(models["audio_rope"], call)


@given(st.data())
@settings(max_examples=15, phases=PHASES)
def test_both_together(models, data):
    model = models["global_local"][0]
    with torch.inference_mode():
        z_v, z_a, times_v, times_a, text, of_row = drawn_inputs(model, data)
    bridged = data.draw(st.none() | st.just(torch.arange(len(z_v))[::2]))

    def call(its, given):
        rows = given(z_v), given(z_a), given(times_v), given(times_a), given(text), of_row
        return its.joint_pass(JointInputs(*rows, bridged_rows=bridged))

    assert_as_exact(models["global_local"], call)


@pytest.mark.parametrize("name", ["adaptor", "adaptor, text", "audio_rope", "global_local"])
@given(st.data())
@settings(max_examples=15, phases=PHASES)
def test_any_mix_of_requests(models, name, data):
    """Each request as the plain loop with the plain model makes it, whoever is beside it."""
    plain, blocks, _ = models[name]
    requests = HEARING_JOBS if plain.config.video_reads_audio else JOBS
    jobs = data.draw(st.lists(requests, min_size=1, max_size=3))
    batch = batch_of(blocks)
    batch.join(jobs)
    for _ in range(max(len(one.schedule) for one in jobs)):
        batch.step()
    for one, latents in zip(jobs, batch.leave(range(len(jobs))), strict=True):
        assert_plain(plain, one, latents)


def sampled(model, jobs):
    batch = batch_of(model)
    batch.join(jobs)
    while len(batch.step()) < len(jobs):
        pass
    return batch.leave(range(len(jobs)))


def test_bits_do_not_depend_on_threads_or_neighbours(models):
    blocks = models["adaptor"][1]
    jobs = [job(seed=i, takes=(1, 2) if i == 1 else ()) for i in range(5)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found += [sampled(blocks, jobs), [sampled(blocks, [one])[0] for one in jobs]]
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)


def test_several_python_threads_at_once(models):
    blocks, wrong = models["adaptor"][1], []
    jobs = [[job(seed=i), job(seed=10 + i, length=2)] for i in range(3)]
    expected = [sampled(blocks, pair) for pair in jobs]

    def work(i):
        for _ in range(10):
            for a, b in zip(sampled(blocks, jobs[i]), expected[i], strict=True):
                if not (torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)):
                    wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_gradients_go_through_pytorch(models):
    """Native blocks have none; with gradients on, the model is computed as it is."""
    plain, blocks, _ = models["adaptor"]
    (z, *rest) = torch.randn(2, 3, 2, 4, 4), plain.modulation(torch.rand(2, 1), torch.ones(2)), None
    text = plain.condition(torch.randn(1, CONFIG.text_tokens, CONFIG.text_width), torch.tensor([3]))
    z.requires_grad_()
    for its in (plain, blocks):
        velocity, _ = its.video_pass(VideoInputs(z, rest[0], text, torch.zeros(2, dtype=torch.long)))
        velocity.square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_another_way_may_be_asked_for(models):
    """The reference of every operation, as in the plain model, to the bit."""
    plain, blocks, _ = models["adaptor"]
    with torch.inference_mode(), implementation("reference"):
        text = plain.condition(torch.randn(1, CONFIG.text_tokens, CONFIG.text_width), torch.tensor([3]))
        inputs = VideoInputs(
            torch.randn(2, 3, 2, 4, 4),
            plain.modulation(torch.rand(2, 1), torch.ones(2)),
            text,
            torch.tensor([0, 0]),
            context_rows=torch.arange(2),
        )
        usual, found = (its.video_pass(inputs) for its in (plain, blocks))
    assert all(torch.equal(a, b) for a, b in zip(numbers(usual), numbers(found), strict=True))


def test_what_it_does_not_suit(models, tmp_path):
    locations = ExportLocations(tmp_path, "7" * 64)
    for config, said in (
        (CONFIG, "this model has a width of 16"),
        (SMALL.replace(heads=4), "heads whose width is one of 16"),
    ):
        model = randomised(config)
        with pytest.raises(ValueError, match=said):
            choose("native", model, locations)
        found = choose_without_exports(model)
        assert (found.runtime, found.denoiser) == ("torch", model)
    with pytest.raises(ValueError, match="the runtime native computes in float32 on a CPU; this model is in bfloat16"):
        choose("native", models["adaptor"][0], locations, "bfloat16")


def test_without_a_native_part(models, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "EXTENSION", None)
    plain = models["adaptor"][0]
    with pytest.raises(ValueError, match="needs the native part, which was not built or is switched off"):
        choose("native", plain, ExportLocations(tmp_path, "7" * 64))
    assert choose("auto", plain, ExportLocations(tmp_path, "7" * 64)).runtime == "torch"


@pytest.mark.parametrize(
    ("width", "instructions", "runtime"),
    [(32, "x86-64-v4", "native"), (32, "baseline", "torch-plain"), (WIDEST + 32, "x86-64-v4", "torch")],
)
def test_it_is_chosen_by_rule_where_it_is_expected_to_pay(tmp_path, monkeypatch, width, instructions, runtime):
    monkeypatch.setattr(native, "instructions", lambda: instructions)
    model = randomised(SMALL.replace(width=width, heads=2, audio_heads=2))
    chosen = choose("auto", model, ExportLocations(tmp_path, "7" * 64))
    assert chosen.runtime == chosen.describe()["runtime"] == runtime
    assert isinstance(chosen.denoiser, NativeDDiT) is (runtime == "native")


def test_an_engine_says_that_it_has_native_blocks():
    said = Engine.from_pretrained(runtime="native").describe()
    assert said["runtime"] == "native" and said["kernels"].startswith("native ")


def test_weights_are_shared(models):
    plain, blocks, _ = models["adaptor"]
    assert {name: x.data_ptr() for name, x in plain.state_dict().items()} == {
        name: x.data_ptr() for name, x in blocks.state_dict().items()
    }


def test_what_is_made_of_a_tensor_lives_as_long():
    made = []
    of = TensorCache(lambda x: made.append(float(x.sum())) or made[-1])
    first, second = torch.ones(2), torch.ones(3)
    assert [of(first), of(second), of(first), of(second)] == [2, 3, 2, 3] and made == [2, 3]
    del first
    assert len(of._kept) == 1
    assert of(second) == 3 and made == [2, 3]


@pytest.mark.parametrize("instructions", ["x86-64-v3", "baseline"])
def test_older_processors(instructions):
    """The passes again with fewer instructions, in a process of their own."""
    if os.environ.get("SYNCFLOW_INSTRUCTIONS"):
        pytest.skip("this is that process")
    if instructions == native.instructions():
        pytest.skip("the other tests run with these instructions")
    environment = {**os.environ, "SYNCFLOW_INSTRUCTIONS": instructions}
    name = "import syncflow._native as n; print(n.instructions())"
    said = subprocess.run([sys.executable, "-c", name], env=environment, capture_output=True, text=True, check=True)
    if said.stdout.strip() != instructions:
        pytest.skip(f"this processor has no {instructions}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "video or together or bits",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
