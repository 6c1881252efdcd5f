"""Numbers of frames that the stride of the video codec does not divide: padding in front moves the latent frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from syncflow.engine.config import ModelConfig, SequenceConfig
from syncflow.engine.engine import Engine
from syncflow.engine.model.bridges import audio_rope_positions, global_local_positions, video_rope_positions
from syncflow.engine.model.denoiser import AudioInputs, JointInputs, VideoInputs
from syncflow.engine.presets import preset
from syncflow.engine.runtime.delegate import Delegate
from syncflow.engine.runtime.native import NativeDDiT, unsupported_reason
from syncflow.engine.sampling.guidance import combine, sync_guidance, text_guidance
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.tasks import known_lengths, read_media, restore_known
from syncflow.engine.types import Clip, Request

from ..export.test_graphs import as_graphs
from .plain import CONFIG, SEQUENCE, TOLERANCE, job, randomised
from .test_tasks import clip

pytestmark = pytest.mark.slow

PROMPT = "a large red rubber ball bounces on a wooden floor"
# By hand: latent frame l of F frames, padded to T = ceil(F / 4), has its middle at (4 l + 2 - (4 T - F)) / 16 seconds.
MIDDLES = {
    5: (-1 / 16, 3 / 16),
    6: (0.0, 4 / 16),
    7: (1 / 16, 5 / 16),
    8: (2 / 16, 6 / 16),
}
BRIDGES = ("adaptor", "audio_rope", "global_local")


def sequence(frames: int) -> SequenceConfig:
    """The tests' sequence at 16 frames a second, with so many frames."""
    return SEQUENCE.replace(fps=16, seconds=frames / 16)


def config(bridge: str) -> ModelConfig:
    first = int(bridge == "audio_rope")
    ddit = CONFIG.replace(bridge=bridge, first_block=first, latent_fps=4.0)
    return ModelConfig(sequence=sequence(8), ddit=ddit)


def request(frames: int) -> Job:
    guidance = combine([text_guidance(3.0), sync_guidance(1.5)])
    return replace(job(3, steps=3, guidance=guidance), sequence=sequence(frames))


@pytest.mark.parametrize("frames", MIDDLES)
def test_latent_frames_stand_at_their_middle(frames):
    assert sequence(frames).padding == 8 - frames
    assert sequence(frames).frame_times == MIDDLES[frames]


@pytest.mark.parametrize("frames", MIDDLES)
def test_the_positions_of_both_directions(frames):
    ddit, times = config("global_local").ddit, torch.tensor(MIDDLES[frames])
    middles = [4 * time for time in MIDDLES[frames] for _ in range(3)]  # in latent frames, three tokens each
    tokens = [k * 4 / 10 for k in range(7)]  # 10 audio tokens a second
    video = video_rope_positions(ddit, times, 3, 7, torch.ones(4))
    audio = audio_rope_positions(ddit, times, 3, 7, torch.ones(4))
    torch.testing.assert_close(video.queries.tolist(), middles)
    torch.testing.assert_close(video.context.tolist(), tokens)
    torch.testing.assert_close(audio.queries.tolist(), tokens)
    torch.testing.assert_close(audio.context.tolist(), middles)
    torch.testing.assert_close(audio.frequencies, torch.full((4,), 2.5))
    both = global_local_positions(ddit, times, 3, 7, 2, torch.ones(4), torch.ones(4))
    assert torch.equal(both.video.queries, video.queries)
    assert torch.equal(both.audio.context, audio.context)


class Recorder(Delegate):
    """Remembers the times and positions that the sampling loop gives to the passes."""

    def video_pass(self, inputs: VideoInputs):
        self.times = inputs.frame_times
        return self.model.video_pass(inputs)

    def audio_pass(self, inputs: AudioInputs):
        self.ref = inputs.video_context_ref
        return self.model.audio_pass(inputs)

    def joint_pass(self, inputs: JointInputs):
        self.times = inputs.frame_times
        return self.model.joint_pass(inputs)


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("frames", MIDDLES)
def test_the_loop_gives_them_to_every_pass(bridge, frames):
    recorder = Recorder(randomised(config(bridge).ddit))
    sample(recorder, [request(frames)])
    torch.testing.assert_close(recorder.times.tolist(), list(MIDDLES[frames]))
    if bridge == "adaptor":
        torch.testing.assert_close(recorder.ref.positions.tolist(), [10 * time for time in MIDDLES[frames]])


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("frames", MIDDLES)
def test_every_runtime_agrees(bridge, frames):
    model, jobs = randomised(config(bridge).ddit), [request(frames)]
    plain = ReferenceLoop(model, jobs).run()
    runtimes = [model, as_graphs(model)] + ([] if unsupported_reason(model) else [NativeDDiT(model)])
    for runtime in runtimes:
        found = sample(runtime, jobs)
        torch.testing.assert_close(found.video, plain.video, **TOLERANCE)
        torch.testing.assert_close(found.audio, plain.audio, **TOLERANCE)


def test_requests_of_other_padding_share_no_batch():
    """Positions are those of a whole batch."""
    padded = sequence(8).replace(fps=64, audio_hop=800, seconds=8 / 64)
    other = padded.replace(seconds=7 / 64)
    assert padded.audio_tokens == other.audio_tokens
    assert padded.latent_frames == other.latent_frames
    assert replace(request(8), sequence=padded).shape != replace(request(8), sequence=other).shape


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu", runtime="torch")


@pytest.mark.parametrize(("frames", "known", "restored"), [(32, 4, 16), (31, 4, 15), (30, 4, 14), (29, 4, 13)])
def test_a_continuation_keeps_the_frames_that_its_latents_hold(engine, frames, known, restored):
    """The first latent frame holds the padding, so that 16 given frames fill four latent frames and no more."""
    asked = Request(PROMPT, extend=clip(1.0), seconds=frames / 16)
    media, lengths = read_media(asked, engine.config.sequence)
    assert known_lengths(media, lengths) == (known, 50)
    sampled = np.full((frames, 64, 64, 3), 9, np.uint8)
    kept, _ = restore_known(media, lengths, sampled, np.zeros(lengths.samples, np.float32))
    assert np.array_equal(kept[:restored], clip(1.0).frames[:restored])
    assert (kept[restored:] == 9).all()


def test_a_variation_of_strength_1_begins_with_noise(engine):
    settings = {"seed": 4, "steps": 2, "seconds": 0.5}
    given: Clip = clip(0.5)
    varied = engine.generate(PROMPT, video=given, strength=1.0, **settings)
    fresh = engine.generate(PROMPT, **settings)
    assert np.array_equal(varied.frames, fresh.frames)
    assert np.array_equal(varied.waveform, fresh.waveform)
    nearly = engine.generate(PROMPT, video=given, strength=0.999999, **settings)
    assert np.abs(nearly.waveform - varied.waveform).max() < 1e-3


def test_presets_state_the_rates_of_their_sequence():
    for name in ("syncflow-tiny", "syncflow-xl", "syncphony-tiny", "syncphony-xl", "harmony-tiny", "harmony-xl"):
        model = preset(name)
        assert model.ddit.latent_fps == model.sequence.latent_fps
        assert model.ddit.audio_rate == model.sequence.audio_rate
