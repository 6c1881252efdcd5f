"""Configuration: JSON and back, every length of a clip, and what is refused."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow import ModelConfig, SequenceConfig, preset
from syncflow.engine.config import MAX_SECONDS, MAX_SIDE, CodecConfig, DDiTConfig, SamplingConfig
from syncflow.engine.presets import PRESETS

SIDES = st.integers(1, MAX_SIDE // 16).map(lambda n: 16 * n)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CODECS = st.builds(CodecConfig, class_name=st.text(), settings=st.dictionaries(st.text(), JSON_VALUES, max_size=3))
SEQUENCES = st.builds(
    SequenceConfig,
    seconds=st.floats(0.25, MAX_SECONDS),
    width=SIDES,
    height=SIDES,
    fps=st.integers(4, 60),
    sample_rate=st.sampled_from([16_000, 24_000, 44_100, 48_000]),
    time_factor=st.integers(1, 8),
    audio_hop=st.integers(1, 2000),
)
MODELS = st.builds(
    DDiTConfig,
    width=st.integers(1, 12).map(lambda n: 96 * n),
    heads=st.sampled_from([1, 2, 4, 8]),
    audio_heads=st.sampled_from([1, 2, 4, 8]),
    mlp_ratio=st.floats(1, 8),
    adaptor_tokens=st.sampled_from(["all", "frame", "none"]),
    audio_text=st.booleans(),
    bridge=st.sampled_from(["adaptor", "global_local"]),
    window=st.floats(0.25, 4),
) | st.builds(DDiTConfig, depth=st.integers(4, 30), bridge=st.just("audio_rope"), first_block=st.integers(0, 3))
CONFIGS = st.builds(
    ModelConfig,
    name=st.text(),
    sequence=SEQUENCES,
    ddit=MODELS,
    sampling=st.builds(SamplingConfig, steps=st.integers(1, 100), guidance=st.floats(-10, 10)),
    video_vae=CODECS,
    audio_vae=CODECS,
    text_encoder=CODECS,
)


@pytest.mark.slow
@given(CONFIGS)
def test_json_round_trip(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_partial_dictionary_takes_the_defaults():
    config = ModelConfig.from_dict({"name": "mine", "ddit": {"depth": 3}})
    assert config == ModelConfig(name="mine", ddit=DDiTConfig(depth=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmae": "x"}, r"ModelConfig has no setting nmae; it has name, sequence, ddit"),
        ({"ddit": {"widht": 8, "dept": 1}}, r"DDiTConfig has no setting dept, widht"),
        ({"sequence": 5}, r"sequence is 5; it must be an object of settings"),
        ({"sequence": {"seconds": "2"}}, r"seconds is '2'; it must be a number"),
        ({"sequence": {"width": 64.0}}, r"width is 64.0; it must be a whole number"),
        ({"ddit": {"depth": True}}, r"depth is True; it must be a whole number"),
        ({"ddit": {"audio_text": 1}}, r"audio_text is 1; it must be true or false"),
        ({"name": None}, r"name is None; it must be text"),
        ({"sequence": {"width": 65}}, r"width is 65; it must be a multiple of 16 from 16 to 2048"),
    ],
)
def test_dictionaries_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_a_package_written_before_there_were_bridges_has_adaptors():
    old = {
        name: value
        for name, value in DDiTConfig(depth=3).to_dict().items()
        if name not in ("bridge", "first_block", "window")
    }
    assert DDiTConfig.from_dict(old) == DDiTConfig(depth=3, bridge="adaptor")


@pytest.mark.parametrize(
    ("bridge", "audio_reads_video", "video_reads_audio"),
    [("adaptor", True, False), ("audio_rope", False, True), ("global_local", True, True)],
)
def test_who_reads_whom(bridge, audio_reads_video, video_reads_audio):
    config = DDiTConfig(bridge=bridge)
    assert config.audio_reads_video is audio_reads_video
    assert config.video_reads_audio is video_reads_audio


def test_configs_are_frozen_and_replaced():
    config = DDiTConfig()
    with pytest.raises(FrozenInstanceError):
        config.depth = 3  # type: ignore[misc]
    assert config.replace(depth=3) == DDiTConfig(depth=3)
    assert config.depth == 28


def test_the_standard_clip():
    sequence = preset("syncflow-tiny").sequence
    assert (sequence.frames, sequence.latent_frames) == (32, 8)
    assert (sequence.samples, sequence.audio_tokens) == (96_000, 100)
    assert (sequence.latent_height, sequence.latent_width, sequence.spatial_tokens) == (8, 8, 16)
    assert (sequence.latent_fps, sequence.audio_rate) == (4.0, 50.0)


def test_the_full_size_clip():
    sequence = preset("syncflow-xl").sequence
    assert (sequence.latent_frames, sequence.latent_height, sequence.latent_width) == (8, 32, 32)
    assert (sequence.spatial_tokens, sequence.audio_tokens) == (256, 100)


@given(SEQUENCES)
def test_lengths_follow_from_seconds_and_rates(sequence):
    assert abs(sequence.frames - sequence.seconds * sequence.fps) <= 0.5
    assert 0 <= sequence.latent_frames * sequence.time_factor - sequence.frames < sequence.time_factor
    assert abs(sequence.samples / sequence.sample_rate - sequence.frames / sequence.fps) <= 0.51 / sequence.sample_rate
    assert 0 <= sequence.audio_tokens * sequence.audio_hop - sequence.samples < sequence.audio_hop
    patches = sequence.width * sequence.height / (sequence.space_factor * sequence.patch) ** 2
    assert sequence.spatial_tokens == patches


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 0.0}, r"seconds is 0.0; it must be above 0 and at most 60"),
        ({"seconds": -1.0}, r"seconds is -1.0; it must be above 0 and at most 60"),
        ({"seconds": 60.1}, r"seconds is 60.1; it must be above 0 and at most 60"),
        ({"seconds": 1e300}, r"seconds is 1e\+300; it must be above 0"),
        ({"seconds": float("inf")}, r"seconds is inf; it must be above 0"),
        ({"seconds": float("nan")}, r"seconds is nan; it must be above 0"),
        ({"seconds": 0.01}, r"seconds is 0.01, shorter than half a frame; at 16 fps it must be above 0.03125"),
        ({"width": 65}, r"width is 65; it must be a multiple of 16 from 16 to 2048"),
        ({"height": 0}, r"height is 0; it must be a multiple of 16 from 16 to 2048"),
        ({"height": -64}, r"height is -64; it must be a multiple of 16"),
        ({"width": 4096}, r"width is 4096; it must be a multiple of 16 from 16 to 2048"),
        ({"width": 48, "patch": 4}, r"width is 48; it must be a multiple of 32 from 32 to 2048"),
        ({"fps": 0}, r"fps is 0; it must be a whole number from 1 to 240"),
        ({"audio_hop": 0}, r"audio_hop is 0; it must be a whole number from 1 to 100000"),
    ],
)
def test_sequences_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SequenceConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100}, r"width 100 must split into heads \(16\) parts of even width"),
        ({"width": 48}, r"width 48 must split into heads \(16\) parts of even width"),
        ({"audio_heads": 7}, r"width 1152 must split into audio_heads \(7\) parts"),
        ({"heads": 0}, r"heads is 0; it must be a whole number from 1 to 1024"),
        ({"width": 90, "heads": 9, "audio_heads": 9}, r"width is 90; it must be a multiple of 4"),
        ({"adaptor_tokens": "some"}, r"adaptor_tokens is 'some'; it must be one of all, frame, none"),
        ({"bridge": "rope"}, r"bridge is 'rope'; it must be one of adaptor, audio_rope, global_local"),
        ({"first_block": 2}, r"first_block is 2; it must be 0 with the bridge adaptor"),
        ({"bridge": "audio_rope", "first_block": 28}, r"first_block is 28; it must be from 0 to 27"),
        ({"bridge": "audio_rope", "first_block": -1}, r"first_block is -1; it must be from 0 to 27"),
        ({"window": 0.0}, r"window is 0.0; it must be a number of latent frames above 0"),
        ({"window": float("nan")}, r"window is nan; it must be a number of latent frames above 0"),
    ],
)
def test_models_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DDiTConfig(**values)


def test_presets_by_name():
    assert preset("syncflow-xl").name == "syncflow-xl"
    assert preset("syncflow-tiny").name == "syncflow-tiny"
    with pytest.raises(ValueError, match=r"there is no preset 'tiny'; there are syncflow-xl, syncflow-tiny"):
        preset("tiny")


def test_the_full_size_preset_is_that_of_the_papers():
    ddit = preset("syncflow-xl").ddit
    assert (ddit.width, ddit.depth, ddit.heads, ddit.head_width) == (1152, 28, 16, 72)
    assert (ddit.audio_heads, ddit.audio_head_width, ddit.audio_channels) == (16, 72, 128)
    assert (ddit.text_width, ddit.text_tokens, ddit.adaptor_tokens) == (4096, 300, "all")
    sampling = preset("syncflow-xl").sampling
    assert (sampling.steps, sampling.guidance, sampling.shift, sampling.video_lead) == (50, 6.0, 1.0, 0.0)


@pytest.mark.parametrize("fps", [1, 7, 16, 24, 25, 60, 240])
def test_the_least_duration_is_what_the_refusal_says(fps):
    with pytest.raises(ValueError, match=f"at {fps} fps it must be above {0.5 / fps:g}"):
        SequenceConfig(fps=fps, seconds=0.5 / fps)
    assert SequenceConfig(fps=fps, seconds=0.5 / fps * 1.001).frames == 1


def test_presets_of_the_other_bridges():
    syncphony, harmony = preset("syncphony-xl"), preset("harmony-xl")
    assert (syncphony.ddit.bridge, syncphony.ddit.depth, syncphony.ddit.first_block) == ("audio_rope", 24, 8)
    assert (harmony.ddit.bridge, harmony.ddit.depth, harmony.ddit.first_block) == ("global_local", 28, 0)
    assert syncphony.ddit.width == harmony.ddit.width == 1152
    assert syncphony.sampling.sync_guidance == 2
    assert (harmony.sampling.steps, harmony.sampling.shift, harmony.sampling.sync_cfg_audio) == (40, 5, 2)
    for name in ("harmony-xl", "harmony-tiny"):  # SyncCFG alone
        assert preset(name).sampling.guidance == 1 and preset(name).sampling.sync_cfg_video == 3
    for tiny in ("syncphony-tiny", "harmony-tiny"):
        assert preset(tiny).ddit.width == preset("syncflow-tiny").ddit.width
        assert preset(tiny).sampling.video_lead == 0


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_agree_with_themselves(name):
    config = preset(name)
    assert config.sequence.latent_fps == config.ddit.latent_fps
    assert config.sequence.audio_rate == config.ddit.audio_rate
    assert config.sequence.patch == config.ddit.patch
    assert config.text_encoder.settings["d_model"] == config.ddit.text_width
