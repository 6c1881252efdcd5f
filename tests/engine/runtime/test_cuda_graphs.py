"""Captured passes equal the passes themselves while requests join and leave; large inputs are copied once."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from syncflow.engine.model.denoiser import ALL_ROWS, AudioInputs, VideoContextRef, VideoInputs
from syncflow.engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from syncflow.engine.sampling.guidance import combine, sync_guidance, text_guidance
from syncflow.engine.sampling.sequential import SequentialBatch, batch_of
from syncflow.engine.types import Latents

from ..plain import AUDIO_SHAPE, HEARING_JOBS, JOBS, job
from .conftest import CONFIGS, ONE_WAY
from .tape import TapeCapture

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
MOST_STEPS = 10


@pytest.fixture(scope="module")
def denoisers(models):
    """Of every model one with one output buffer for contexts and one with two; all tests share their graphs."""
    return {
        (name, overlap): CudaGraphDenoiser(model, overlap=overlap, capture=TapeCapture(), max_graphs=64, max_rows=64)
        for name, model in models.items()
        for overlap in (False, True)
    }


def captured(model, **settings):
    return CudaGraphDenoiser(model, capture=TapeCapture(), **settings)


def assert_same(found: Latents, expected: Latents) -> None:
    torch.testing.assert_close(found.video, expected.video, **CLOSE)
    torch.testing.assert_close(found.audio, expected.audio, **CLOSE)


def come_and_go(batches, expected, jobs, data):
    """The same requests join and leave all batches at the same steps. Each of ``batches`` is held to ``expected``."""
    waiting, rounds = list(jobs), 0
    while waiting or expected.jobs:
        count = data.draw(st.integers(0 if expected.jobs else 1, len(waiting)))
        for batch in (*batches, expected):
            batch.join(waiting[:count])
        waiting, rounds = waiting[count:], rounds + 1
        finished = expected.step()
        for batch in batches:
            assert batch.step() == finished
        places = range(len(expected.jobs))
        if rounds < MOST_STEPS:
            places = data.draw(st.lists(st.sampled_from(places), unique=True, max_size=1 + len(places) // 2))
        gone = expected.leave(places)
        for batch in batches:
            for found, right in zip(batch.leave(places), gone, strict=True):
                assert_same(found, right)


@pytest.mark.parametrize("overlap", [False, True], ids=["one buffer", "two buffers"])
@pytest.mark.parametrize("name", CONFIGS)
@given(st.data())
@settings(max_examples=8)
def test_requests_come_and_go(models, denoisers, name, overlap, data):
    """Two batches of one denoiser take turns, and what either keeps is not written over."""
    requests = HEARING_JOBS if CONFIGS[name].video_reads_audio else JOBS
    batches = [batch_of(denoisers[name, overlap]) for _ in range(2)]
    come_and_go(batches, batch_of(models[name]), data.draw(st.lists(requests, min_size=1, max_size=4)), data)


@given(st.data())
@settings(max_examples=8)
def test_requests_with_a_reference_come_and_go(models, denoisers, data):
    jobs = data.draw(st.lists(HEARING_JOBS, min_size=1, max_size=3))
    sounds = torch.randn(len(jobs), 4, AUDIO_SHAPE[1], generator=torch.Generator().manual_seed(1))
    jobs = [replace(one, reference=sound) for one, sound in zip(jobs, sounds, strict=True)]
    come_and_go([batch_of(denoisers["global_local", False])], batch_of(models["global_local"]), jobs, data)


def test_batches_of_several_threads_share_a_denoiser(models):
    denoiser, together, found = captured(models["adaptor"]), threading.Barrier(3), {}

    def work(seed):
        batch = batch_of(denoiser)
        batch.join([job(seed, steps=4)])
        together.wait()
        while not batch.step():
            pass
        found[seed] = batch.latents

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, latents in found.items():
        expected = batch_of(models["adaptor"])
        expected.join([job(seed, steps=4)])
        while not expected.step():
            pass
        assert_same(latents, expected.latents)
    assert len(found) == 3


@pytest.mark.parametrize("name", ONE_WAY)
def test_many_rows_are_left_to_the_model(models, name):
    few, jobs = captured(models[name], max_rows=3), [job(1, steps=2), job(2, steps=3, lead=1.0), job(3, steps=1)]
    batch, expected = batch_of(few), batch_of(models[name])
    for one in (batch, expected):
        one.join(jobs)
    for _ in range(6):
        batch.step()
        expected.step()
    assert_same(batch.latents, expected.latents)
    assert few.graphs.num_captures > 0
    alone = captured(models[name], max_rows=0)
    batch = batch_of(alone)
    batch.join(jobs)
    batch.step()
    assert alone.graphs.num_captures == 0


@pytest.mark.parametrize("name", CONFIGS)
@given(st.data())
@settings(max_examples=4)
def test_a_batch_of_many_rows_is_split_over_graphs(models, name, data):
    """Requests of 2 or 3 rows each, 4 rows a graph: nothing is left to the model."""
    denoiser = captured(models[name], max_rows=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "_record_read", None)
        batch = SequentialBatch(denoiser, max_rows=denoiser.max_rows)
        plans = [6.0, combine([text_guidance(4.0), sync_guidance(2.0)])]
        jobs = [job(seed, steps=3, guidance=data.draw(st.sampled_from(plans))) for seed in range(4)]
        come_and_go([batch], batch_of(models[name]), jobs, data)
    assert denoiser.graphs.num_captures > 0
    assert max(key[2][0][1][0] for key in denoiser.graphs._graphs) <= 4


@pytest.mark.parametrize("name", ["adaptor", "adaptor, text"])
def test_many_takes_are_split_over_graphs(models, name, monkeypatch):
    denoiser = captured(models[name], max_rows=4)
    monkeypatch.setattr(denoiser, "_record_read", None)
    jobs = [job(1, steps=3, takes=(4, 5, 6, 7, 8)), job(2, steps=2)]
    batch, expected = SequentialBatch(denoiser, max_rows=4), batch_of(models[name])
    for one in (batch, expected):
        one.join(jobs)
        for _ in range(2):
            one.step()
    assert_same(batch.latents, expected.latents)


# The number of captures, and what is copied


def _memory(denoiser):
    """The tensors that its graphs hold."""
    for one in denoiser.graphs._graphs.values():
        yield from (static.tensor for static in one.inputs.values())
        yield from (leaf for leaf in tree_leaves(one.outputs) if leaf is not None)


def sample_all(denoiser, *jobs):
    batch = batch_of(denoiser)
    batch.join(jobs)
    while len(batch.step()) < len(jobs):
        pass


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shape_is_captured_once(models, name):
    denoiser = captured(models[name])
    sample_all(denoiser, job(1, steps=3))
    first = denoiser.graphs.num_captures
    sample_all(denoiser, job(2, steps=4, shift=3.0, negative=True, length=2))
    assert denoiser.graphs.num_captures == first
    assert denoiser.describe()["captured_graphs"] == first
    tensors = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in _memory(denoiser)}
    assert denoiser.graphs.bytes == sum(tensors.values())


@pytest.mark.parametrize("name", ["adaptor", "audio_rope", "global_local"])
def test_requests_within_the_padding_need_no_capture(models, name):
    """5 and 6 requests of one row each: both are padded to 6."""
    denoiser = captured(models[name])
    sample_all(denoiser, *(job(seed, steps=1, guidance=1.0) for seed in range(6)))
    first = denoiser.graphs.num_captures
    sample_all(denoiser, *(job(seed, steps=1, guidance=1.0) for seed in range(5)))
    assert denoiser.graphs.num_captures == first


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ONE_WAY)
def test_contexts_of_a_step_are_read_where_they_are(models, name, overlap):
    """At a shared time nothing is copied between the towers."""
    denoiser = captured(models[name], overlap=overlap)
    sample_all(denoiser, job(1, steps=4))
    kept = list(denoiser.graphs._graphs.items())
    assert len(kept) == 2 * (1 + overlap)
    assert sum(one.source is not None for _, one in kept) == 1 + overlap
    assert not any(name.startswith("context_layer") for key, _ in kept for name, *_ in key[2])


class Copies(TorchDispatchMode):
    """The names of the inputs that are copied into static inputs."""

    def __init__(self, denoiser):
        super().__init__()
        self.runners = denoiser._video, denoiser._audio, denoiser._joint
        self.places = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default:
            self.places.add(args[0].data_ptr())
        return func(*args, **(kwargs or {}))

    @property
    def names(self):
        inputs = [(key[0], static) for runner in self.runners for key, static in runner._static_inputs._tensors.items()]
        return {name for name, static in inputs if static.tensor.data_ptr() in self.places}


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_contexts_and_indices_are_copied_when_they_change(models, name):
    """The video, or the sound, is finished first, and its contexts are kept."""
    denoiser = captured(models[name])
    lead = 1.0 if name.startswith("adaptor") else 0.0
    one = job(1, steps=6, lead=lead, sound=not lead, guidance=combine([text_guidance(4.0), sync_guidance(2.0)]))
    if not lead:
        one = replace(one, schedule=one.schedule.known_audio())
    batch = batch_of(denoiser)
    batch.join([one])
    for _ in range(9 if lead else 3):
        batch.step()
    small = {"latents", "video_latents", "audio_latents", "block_modulation", "time_embedding", "time_token"}
    small |= {"step_latents", "step_steps"}  # which the graph updates itself
    with Copies(denoiser) as copies:
        batch.step()
    assert copies.names and copies.names <= small
    batch.join([job(2, steps=2)])
    with Copies(denoiser) as copies:
        batch.step()
    assert copies.names - small


# Passes of their own


@given(rows=st.integers(1, 5), prompts=st.integers(1, 3), num_outputs=st.integers(0, 5), per_frame=st.booleans())
@settings(max_examples=15)
def test_passes_of_any_rows(models, denoisers, rows, prompts, num_outputs, per_frame):
    """As they are asked for without a batch: every tensor and none, and rows that nobody draws."""
    model, denoiser = models["adaptor"], denoisers["adaptor", False]
    generator = torch.Generator().manual_seed(rows + 10 * prompts)
    config, num_outputs = model.config, min(num_outputs, rows)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    text = model.condition(random(prompts, config.text_tokens, config.text_width), torch.tensor([3] * prompts))
    text_of_row = torch.arange(rows) % prompts
    z_v, z_a = random(rows, 3, 2, 6, 4), random(rows, *AUDIO_SHAPE)
    t = torch.rand(rows, 2 if per_frame else 1, generator=generator)
    times, token = model.modulation(t, torch.full((rows,), 8.0)), model.audio_time(t[:, 0])
    context_rows = torch.arange(rows).flip(0)
    for options in (
        {},
        {"context_rows": context_rows},
        {"context_rows": ALL_ROWS},
        {"context_rows": context_rows[:1], "num_outputs": num_outputs},
        {"context_rows": ALL_ROWS, "num_outputs": num_outputs},
    ):
        video = VideoInputs(z_v, times, text, text_of_row, **options)
        expected, contexts = model.video_pass(video)
        found, returned = denoiser.video_pass(video)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert [x.shape for x in returned] == [x.shape for x in contexts]
        if not returned:
            continue
        positions = model.video_token_positions((torch.arange(2) + 0.5) / model.config.latent_fps, 6)
        reads = torch.arange(rows) % (len(returned[0]) + 1) - 1
        for given_reads in (reads, None) if len(returned[0]) == rows else (reads,):
            ref, outputs = VideoContextRef(positions, given_reads), None if given_reads is None else num_outputs
            audio = AudioInputs(z_a, token, text, text_of_row, contexts, ref, outputs)
            right, _ = model.audio_pass(audio)
            for context in (returned, [part.clone() for part in returned]):
                velocity, _ = denoiser.audio_pass(replace(audio, video_context=context))
                torch.testing.assert_close(velocity, right, **CLOSE)


def test_a_model_on_the_host_is_refused(models):
    with pytest.raises(ValueError, match="CUDA graphs need a model on a CUDA device; this one is on cpu"):
        CudaGraphDenoiser(models["adaptor"])


def test_describe_names_the_options(models):
    told = captured(models["adaptor"], overlap=True).describe()
    assert (told["cuda_graphs"], told["overlap"], told["dtype"], told["fp8"]) == (True, True, "float32", False)
