"""Requests that join and leave between steps: each is what the plain loop makes of it, nothing is computed twice."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.guidance import cfg, combine, sync_cfg_video, sync_guidance, text_guidance, unbridged
from syncflow.engine.sampling.job import Text
from syncflow.engine.sampling.oneway import OneWayBatch
from syncflow.engine.sampling.sequential import SequentialBatch, batch_of
from syncflow.engine.sampling.streams import Streams

from .plain import AUDIO_SHAPE, CONFIG, HEARING_JOBS, JOBS, Passes, assert_plain, job, randomised

MODELS = {
    f"{bridge}{', text' * audio_text}": CONFIG.replace(
        bridge=bridge, first_block=int(bridge == "audio_rope"), audio_text=audio_text
    )
    for bridge in ("adaptor", "audio_rope", "global_local")
    for audio_text in (False, True)
}
READS_TEXT = [name for name, config in MODELS.items() if config.audio_text]
MOST_STEPS = 10  # by then everybody leaves


@pytest.fixture(scope="module")
def models():
    """A model of every kind, by name."""
    return {name: randomised(config) for name, config in MODELS.items()}


def run(model, jobs, cache=None):
    """All from their first step to their last, together."""
    batch = batch_of(model, cache)
    batch.join(jobs)
    for _ in range(max(len(one.schedule) for one in jobs)):
        batch.step()
    return batch


def come_and_go(batch, jobs, data):
    """Join and leave at random between steps, also before the last step and after it; hold each to the plain loop."""
    waiting, inside, rounds = list(jobs), [], 0
    while waiting or inside:
        count = data.draw(st.integers(0 if inside else 1, len(waiting)))
        batch.join(waiting[:count])
        inside += [[one, 0] for one in waiting[:count]]
        waiting = waiting[count:]
        finished, rounds = batch.step(), rounds + 1
        for entry in inside:
            entry[1] = min(entry[1] + 1, len(entry[0].schedule))
        assert finished == [b for b, (one, done) in enumerate(inside) if done == len(one.schedule)]
        assert [batch.progress(b) for b in range(len(inside))] == [(done, len(one.schedule)) for one, done in inside]
        places = range(len(inside))
        if rounds < MOST_STEPS:
            places = data.draw(st.lists(st.sampled_from(places), unique=True, max_size=1 + len(inside) // 2))
        for place, latents in zip(places, batch.leave(places), strict=True):
            assert_plain(batch.model, inside[place][0], latents, steps=inside[place][1])
        inside = [entry for b, entry in enumerate(inside) if b not in set(places)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@given(st.data())
@settings(max_examples=20)
def test_requests_come_and_go(models, name, data):
    requests = HEARING_JOBS if MODELS[name].video_reads_audio else JOBS
    come_and_go(batch_of(models[name]), data.draw(st.lists(requests, min_size=1, max_size=4)), data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=20)
def test_requests_with_a_reference_come_and_go(models, data):
    """Harmony: the style of a reference sound in every bridged row, as in the forward of each branch alone."""
    jobs = data.draw(st.lists(HEARING_JOBS, min_size=1, max_size=3))
    sounds = torch.randn(len(jobs), 4, AUDIO_SHAPE[1], generator=torch.Generator().manual_seed(1))
    jobs = [replace(one, reference=sound) for one, sound in zip(jobs, sounds, strict=True)]
    come_and_go(batch_of(models["global_local"]), jobs, data)


class Beside(Streams):
    """The order of two streams, on one."""

    overlap = True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptor", "audio_rope"])
@given(st.data())
@settings(max_examples=10)
def test_the_following_tower_may_move_first(models, name, data):
    """As where it runs on a stream of its own."""
    requests = HEARING_JOBS if MODELS[name].video_reads_audio else JOBS
    batch = OneWayBatch(models[name], ConditioningCache(models[name]), Beside())
    come_and_go(batch, data.draw(st.lists(requests, min_size=1, max_size=3)), data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=10)
def test_requests_come_and_go_in_a_sequential_batch(models, data):
    come_and_go(SequentialBatch(models["adaptor"]), data.draw(st.lists(JOBS, min_size=1, max_size=3)), data)


def test_a_request_of_a_sequential_batch_has_the_bits_that_it_has_alone(models):
    jobs, together = [job(1, steps=2), job(2, steps=3, lead=1.0, takes=(5, 6))], SequentialBatch(models["adaptor"])
    together.join(jobs)
    for _ in range(6):
        together.step()
    for one, latents in zip(jobs, together.leave([0, 1]), strict=True):
        alone = run(models["adaptor"], [one]).latents
        assert torch.equal(latents.video, alone.video)
        assert torch.equal(latents.audio, alone.audio)


def test_a_reference_sets_the_style(models):
    one = job(1)
    styles = [None, torch.ones(4, AUDIO_SHAPE[1]), -torch.ones(4, AUDIO_SHAPE[1])]
    sounds = [run(models["global_local"], [replace(one, reference=style)]).latents.audio for style in styles]
    assert not torch.allclose(sounds[0], sounds[1], atol=1e-3)
    assert not torch.allclose(sounds[1], sounds[2], atol=1e-3)


def test_requests_of_another_shape_do_not_join(models):
    batch = batch_of(models["global_local"])
    batch.join([job(1)])
    with pytest.raises(AssertionError, match="must share their latent shape"):
        batch.join([replace(job(2), reference=torch.ones(4, AUDIO_SHAPE[1]))])


# Takes


@pytest.mark.parametrize("lead", [0.0, 0.5, 1.0])
def test_takes_cost_rows_of_the_audio_alone(models, lead):
    plan = combine([text_guidance(4.0), sync_guidance(2.0)])
    one = job(3, lead=lead, guidance=plan)
    seen = []
    for takes in ((), (3, 8, 5, 9)):
        with Passes(models["adaptor"]) as passes:
            batch = run(models["adaptor"], [replace(one, takes=takes)])
        seen.append(passes)
        assert len(batch.latents.audio) == max(1, len(takes))
    assert seen[0].video == seen[1].video
    assert [4 * rows for rows in seen[0].audio] == seen[1].audio


def test_the_first_take_is_that_of_the_seed(models):
    plain, takes = (run(models["adaptor"], [job(3, takes=seeds)]).latents for seeds in ((), (3, 4)))
    torch.testing.assert_close(takes.audio[0], plain.audio[0])
    torch.testing.assert_close(takes.video, plain.video)
    assert not torch.allclose(takes.audio[1], plain.audio[0], atol=1e-2)


# What stands still is kept


def test_a_finished_video_is_seen_once_whoever_comes(models):
    """The rows of those who come later are all that the video tower computes beside a finished video."""
    model = models["adaptor"]
    batch = batch_of(model)
    batch.join([job(1, steps=2, lead=1.0)])
    with Passes(model) as passes:
        for _ in range(3):
            batch.step()
        batch.join([job(2, steps=2), job(3, steps=1, known=True, lead=1.0)])
        batch.step()
    assert passes.video == [2, 2, 2, 4]
    assert passes.audio == [2, 6]


def test_a_kept_context_stays_with_its_request(models):
    """Two finished videos; when the first leaves, the second is not computed again."""
    model = models["adaptor"]
    jobs = [job(1, steps=2, lead=1.0), job(2, steps=2, lead=1.0)]
    batch = batch_of(model)
    batch.join(jobs)
    for _ in range(3):
        batch.step()
    with Passes(model) as passes:
        batch.leave([0])
        batch.step()
    assert (passes.video, passes.audio) == ([], [2])
    assert_plain(model, jobs[1], batch.leave([0])[0])


def test_a_sound_that_stands_still_is_heard_once(models):
    """Syncphony: a given sound, and the silence that guidance moves away from."""
    model, plan = models["audio_rope"], combine([text_guidance(4.0), sync_cfg_video(2.0)])
    one = job(1, steps=3, sound=True, guidance=plan)
    with Passes(model) as passes:
        run(model, [replace(one, schedule=one.schedule.known_audio())])
    assert passes.audio == [2]
    assert passes.video == [2, 2, 2]


def test_a_sound_that_has_not_begun_is_heard_once(models):
    with Passes(models["audio_rope"]) as passes:
        run(models["audio_rope"], [job(1, steps=3, lead=1.0)])
    assert passes.audio == [1, 1, 1, 1]
    assert passes.video == [2, 2, 2]


def test_branches_that_agree_enter_once(models):
    """Away from the skipped bridge: no row of the leading tower more, and the same first layers of the following."""
    plan = combine([text_guidance(4.0), sync_guidance(2.0)])
    rows = {}
    for name in ("adaptor", "audio_rope", "global_local"):
        with Passes(models[name]) as passes:
            run(models[name], [job(1, steps=1, guidance=plan)])
        rows[name] = passes.video, passes.audio
    assert rows == {"adaptor": ([2], [3]), "audio_rope": ([2], [1]), "global_local": ([3], [3])}


@pytest.mark.parametrize("name", READS_TEXT)
def test_a_sound_alone_never_runs_the_video_tower(models, name):
    """Text to audio: every branch skips the bridge, and the video stands still."""
    model, one = models[name], job(4, steps=3, guidance=unbridged(cfg(4.0)))
    one = replace(one, schedule=one.schedule.without_video())
    with Passes(model) as passes:
        batch = run(model, [one])
    assert passes.video == []
    assert passes.audio == [2, 2, 2]
    assert_plain(model, one, batch.leave([0])[0])


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_says_what_the_step_computes(models, name):
    model, batch = models[name], batch_of(models[name])
    plan = combine([text_guidance(4.0), sync_guidance(2.0)])
    batch.join([job(1, steps=2, lead=1.0, guidance=plan), job(2, steps=3), job(3, guidance=1.0)])
    for _ in range(4):
        layout = batch.plan()
        with Passes(model) as passes:
            batch.step()
        if name.startswith("global_local"):
            assert passes.video == passes.audio == [len(layout.rows)]
            continue
        leading, following = (passes.audio, passes.video) if "rope" in name else (passes.video, passes.audio)
        begins = layout.prefixes if "rope" in name else layout.following
        assert leading == [len(layout.leading)] * bool(layout.leading)
        assert following == [len(begins)] * bool(begins)


# What is computed once


class Asked:
    """How many prompts a model projects, and for how many times it is asked."""

    def __init__(self, model, monkeypatch):
        self.model, self.prompts, self.times = model, 0, []
        condition, modulation = model.condition, model.modulation

        def count(states, lengths):
            self.prompts += len(states)
            return condition(states, lengths)

        def note(t, fps):
            self.times.append(len(t))
            return modulation(t, fps)

        monkeypatch.setattr(model, "condition", count)
        monkeypatch.setattr(model, "modulation", note)


@pytest.fixture
def asked(models, monkeypatch):
    return Asked(models["adaptor"], monkeypatch)


def test_the_null_text_is_projected_once(asked):
    """For requests of every length, at once or one after the other."""
    cache = ConditioningCache(asked.model)
    jobs = [job(seed, length=2 + seed) for seed in range(4)]
    run(asked.model, jobs[:3], cache)
    assert asked.prompts == 3 + 1
    run(asked.model, jobs[3:], cache)
    assert asked.prompts == 4 + 1


def test_equal_prompts_are_projected_once(asked):
    first, second = job(1), job(2)
    cache = ConditioningCache(asked.model)
    run(asked.model, [first, replace(second, text=first.text)], cache)
    run(asked.model, [replace(second, text=first.text, negative=Text(first.text.states, 2))], cache)
    assert asked.prompts == 1 + 1


def test_texts_are_equal_by_their_key_or_their_values(asked):
    """Not by their tensor: a prompt that is encoded again is the same text."""
    cache, one = ConditioningCache(asked.model), job(1).text
    other = job(2).text
    for text in (one, Text(one.states.clone(), one.length), Text(one.states.clone(), 2), other):
        cache.texts([text])
    assert asked.prompts == 2
    for text in (Text(one.states, 4, "a ball"), Text(one.states.clone(), 4, "a ball"), Text(one.states, 4, "a cube")):
        cache.texts([text])
    assert asked.prompts == 2 + 2


def test_a_request_without_a_prompt_reads_the_null_text(asked):
    """In its full length; what stands for the absence of a prompt shares its keys and values."""
    cache, model = ConditioningCache(asked.model), asked.model
    null, plain = Text(model.null_text, len(model.null_text)), job(1, guidance=cfg(1.0))
    found = run(model, [replace(plain, text=None)], cache)
    expected = run(model, [replace(plain, text=null)])
    assert torch.equal(found.latents.video, expected.latents.video)
    assert torch.equal(found.latents.audio, expected.latents.audio)
    before = asked.prompts
    run(model, [job(2)], cache)
    assert asked.prompts == before + 1


def test_times_are_embedded_once_a_schedule(asked):
    """Each flow time once, and time 1."""
    cache = ConditioningCache(asked.model)
    run(asked.model, [job(1, steps=4), job(2, steps=4, lead=0.0), job(3, steps=3, lead=1.0)], cache)
    assert asked.times == [4 + 1, 3 + 1]
    run(asked.model, [job(4, steps=4)], cache)
    assert asked.times == [4 + 1, 3 + 1]


@given(order=st.lists(st.integers(0, 4), min_size=1, max_size=12), room=st.integers(1, 4))
@example(order=[0, 1, 0, 2, 0], room=2)
@settings(max_examples=25)
def test_the_conditioning_cache_evicts_the_least_recently_used(models, order, room):
    model, prompts = models["adaptor"], [job(seed).text for seed in range(5)]
    lengths = torch.tensor([CONFIG.text_tokens])
    fresh = [model.condition(prompt.states[None], lengths) for prompt in prompts]
    tensors = fresh[0].keys, fresh[0].values, fresh[0].text_tokens
    each = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    with pytest.MonkeyPatch.context() as patch:
        asked, cache = Asked(model, patch), ConditioningCache(model, capacity=room * each + each // 2)
        kept, computed = OrderedDict(), 0
        for i in order:
            found = cache.texts([prompts[i]])
            torch.testing.assert_close(found.keys, fresh[i].keys)
            torch.testing.assert_close(found.values, fresh[i].values)
            computed += i not in kept
            kept[i] = None
            kept.move_to_end(i)
            while len(kept) > room:
                kept.popitem(last=False)
            assert asked.prompts == computed
            assert cache.size == len(kept) * each <= cache.capacity


def test_a_text_larger_than_the_cache_is_kept_alone(models):
    cache = ConditioningCache(models["adaptor"], capacity=0)
    for seed in range(3):
        cache.texts([job(seed).text])
    alone = cache.size
    cache.texts([job(3).text])
    assert cache.size == alone > 0


def test_the_preview_ends_as_the_video_and_is_of_its_own_request(models):
    model, jobs = models["adaptor"], [job(seed=1, steps=3, lead=1.0), job(seed=2, steps=4, lead=1.0)]
    batch, alone = batch_of(model), SequentialBatch(model)
    batch.join(jobs)
    alone.join(jobs)
    assert torch.equal(batch.preview(0), batch.latents.video[0])  # at time 0, the noise
    for _ in range(3):
        batch.step()
        alone.step()
        torch.testing.assert_close(batch.preview(1), alone.preview(1))
    torch.testing.assert_close(batch.preview(0), batch.latents.video[0])
    assert not torch.allclose(batch.preview(1), batch.preview(0))
