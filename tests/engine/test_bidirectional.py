"""The bidirectional bridge (JavisDiT): what is read, what is skipped, priors, padding, costs, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from syncflow import preset
from syncflow.engine.config import DDiTConfig, ModelConfig
from syncflow.engine.cost.request import request_cost
from syncflow.engine.model import DDiT
from syncflow.engine.runtime.native import unsupported_reason
from syncflow.engine.runtime.selection.choose import choose_without_exports, in_precision
from syncflow.engine.runtime.selection.settings import TorchOptions
from syncflow.engine.sampling.guidance import combine, sync_cfg_audio, sync_cfg_video, sync_guidance, text_guidance
from syncflow.engine.sampling.job import Job, Known, Text
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.sampling.schedule import schedule
from syncflow.engine.types import Request, Velocities

from .bridge_cases import ROWS, SMALL, flags, inputs, run, same

CONFIG = SMALL.replace(
    bridge="bidirectional",
    heads=4,
    audio_heads=4,
    audio_channels=8,
    audio_bins=4,
    audio_patch=2,
    prior_tokens=3,
    prior_width=5,
    depth=2,
)
JAVISDIT = preset("javisdit-0.1")
SEQUENCE = JAVISDIT.sequence.replace(
    seconds=5 / 24, width=40, height=27, sample_rate=100, audio_hop=4, audio_multiple=2
)


def randomised(config: DDiTConfig = CONFIG) -> DDiT:
    model = DDiT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.requires_grad_(False)


def given(rows: int = ROWS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    priors = torch.randn(rows, 6, CONFIG.prior_width, generator=generator)
    return inputs(rows, config=CONFIG) | {"priors": priors}


def job(seed: int, directions=(), *, known: bool = False, prior: bool = True) -> Job:
    generator = torch.Generator().manual_seed(seed)
    text = Text(torch.randn(CONFIG.text_tokens, CONFIG.text_width, generator=generator), 3 + seed % 3)
    tokens = Text(torch.randn(6, CONFIG.prior_width, generator=generator), 6) if prior else None
    s = SEQUENCE
    video = torch.randn(CONFIG.video_channels, s.latent_frames, s.latent_height, s.latent_width, generator=generator)
    plan = combine([text_guidance(3.0), *directions])
    times, given_video = schedule(3, shift=2.0, single=True), None
    if known:
        times, given_video = times.known_video(), Known(video, clean=True)
    silence = torch.full((s.audio_tokens, CONFIG.audio_channels), 0.5)
    return Job(s, seed, times, plan, text, video=given_video, silence=silence, prior=tokens)


def test_a_fresh_bridge_and_prior_change_nothing() -> None:
    model = DDiT(CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(model.video.final_layer.linear.weight)
    torch.nn.init.normal_(model.mel_tower.final_layer.linear.weight)
    found = run(model, **given())
    assert same(found, run(model, **given(), bridged=flags(False, False, False)))
    assert same(found, run(model, **given() | {"priors": torch.zeros(ROWS, 6, CONFIG.prior_width)}))
    assert found.video is not None and found.video.abs().sum() > 0


def test_each_tower_reads_the_other_where_the_bridge_is_on() -> None:
    model, bridged = randomised(), flags(True, False, True)
    before = run(model, **given(), bridged=bridged)
    for name, other in (("z_v", "audio"), ("z_a", "video"), ("t_v", "audio"), ("t_a", "video")):
        after = run(model, **given() | {name: given()[name] * 0.5}, bridged=bridged)
        one, two = getattr(before, other), getattr(after, other)
        assert torch.equal(one[1], two[1])
        assert not torch.allclose(one[[0, 2]], two[[0, 2]], atol=1e-4)


def test_both_towers_read_text_and_prior() -> None:
    model, off = randomised(), flags(False, False, False)
    before = run(model, **given(), bridged=off)
    for name in ("states", "priors", "fps"):
        after = run(model, **given() | {name: given()[name] * 0.5}, bridged=off)
        assert not torch.allclose(before.video, after.video, atol=1e-4), name
        assert not torch.allclose(before.audio, after.audio, atol=1e-4), name


def test_no_prior_is_the_null_prior() -> None:
    model, values = randomised(), given()
    del values["priors"]
    assert same(run(model, **values), run(model, **values, priors=model.null_prior.expand(ROWS, -1, -1)))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model, values, bridged = randomised(), given(), flags(True, False, True)
    together = run(model, **values, bridged=bridged)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = run(model, **{name: value[one] for name, value in values.items()}, bridged=bridged[one])
        torch.testing.assert_close(together.video[one], alone.video, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.audio[one], alone.audio, rtol=1e-4, atol=1e-5)


DIRECTIONS = {
    "text": (),
    "sync": (sync_guidance(1.5),),
    "SyncCFG": (sync_cfg_audio(2.0), sync_cfg_video(1.5)),
}


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("known", [False, True], ids=["sampled", "known video"])
def test_the_batched_loop_is_the_plain_one(directions, known: bool) -> None:
    """Rows of whole and of partial patches, prompted and not, with a prior and without."""
    model = randomised()
    jobs = [job(seed, directions, known=known, prior=seed != 1) for seed in range(3)]
    together = sample(model, jobs)
    for row, one in enumerate(jobs):
        alone = ReferenceLoop(model, [one]).run()
        torch.testing.assert_close(together.video[row], alone.video[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.audio[row], alone.audio[0], rtol=1e-3, atol=1e-4)


def test_all_rows_of_a_request_read_its_prior_and_none() -> None:
    """The union of the prompted and the unprompted prior, in the one row as in the other."""
    model = randomised()
    assert model.prior is not None
    prior = given(1)["priors"]
    found = model.condition_prior(prior)
    assert found.keys.shape[:3] == (4 * CONFIG.depth, 1, 2 * CONFIG.prior_tokens)
    swapped = model.condition_prior(model.null_prior[None])
    torch.testing.assert_close(found.keys[:, :, 3:], swapped.keys[:, :, 3:])
    torch.testing.assert_close(swapped.keys[:, :, :3], swapped.keys[:, :, 3:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prior_tokens": 0}, "prior_tokens is 0"),
        ({"heads": 1}, "heads is 1; it must be even"),
        ({"audio_bins": 3}, "audio_channels is 8; it must be a multiple of audio_bins, 3"),
        ({"audio_text": True}, "audio_text is true; it must be false"),
        ({"bridge": "adaptor"}, "prior_tokens is 3|must be 1, 1 and 0 with the bridge adaptor"),
    ],
)
def test_a_configuration_that_cannot_be(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CONFIG.replace(**changes)


def test_lengths_are_whole_blocks_and_tokens() -> None:
    assert JAVISDIT.sequence.audio_tokens == 112 and JAVISDIT.sequence.audio_rate == 25
    assert DDiTConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ValueError, match="audio_multiple is 2; it must be a multiple of audio_patch, 4"):
        JAVISDIT.replace(sequence=JAVISDIT.sequence.replace(audio_multiple=2))
    with pytest.raises(ValueError, match="any_size is true; it must be false with the bridge adaptor"):
        ModelConfig(sequence=SEQUENCE)


def test_runtimes_that_do_not_take_it_say_so() -> None:
    model = randomised()
    assert "has no blocks for the bridge bidirectional" in unsupported_reason(model)
    assert choose_without_exports(model).runtime in ("torch", "torch-plain")
    with pytest.raises(ValueError, match="do not apply to the bridge bidirectional"):
        in_precision("compiled", model, torch.device("cpu"), "float32", TorchOptions())


def test_the_cost_of_a_request() -> None:
    config = replace(JAVISDIT, ddit=CONFIG.replace(text_width=8), sequence=SEQUENCE)
    cost = request_cost(config, Request("a lighthouse", steps=3))
    assert [phase.video[0].rows for phase in cost.phases] == [2]
    assert 0 < cost.total < cost.reference


@pytest.mark.slow
def test_the_full_size_forward_without_memory() -> None:
    s, d = JAVISDIT.sequence, JAVISDIT.ddit
    with torch.device("meta"), torch.no_grad():
        model = DDiT(d)
        z_v = torch.zeros(2, d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
        z_a, t, fps = torch.zeros(2, s.audio_tokens, d.audio_channels), torch.zeros(2), torch.zeros(2)
        states = torch.zeros(2, d.text_tokens, d.text_width)
        found = run(model, z_v=z_v, z_a=z_a, t_v=t, t_a=t, fps=fps, states=states, pixels=torch.zeros(1))
    assert found.video.shape == z_v.shape and found.audio.shape == z_a.shape


@pytest.mark.slow
def test_a_small_model_learns_a_batch_by_heart() -> None:
    torch.manual_seed(0)
    model, values = DDiT(CONFIG.replace(width=32)), given(2)
    target = Velocities(torch.randn_like(values["z_v"]), torch.randn_like(values["z_a"]))
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        found = run(model, **values)
        loss = (found.video - target.video).square().mean() + (found.audio - target.audio).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert all(bool(p.any()) for name, p in model.named_parameters() if ".gamma_m" in name)
    assert np.isfinite(losses).all()
