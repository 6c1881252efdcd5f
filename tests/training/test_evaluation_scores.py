"""Scores of sets of clips, and the report of one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow import Engine, preset
from syncflow.engine.engine import bundled_model
from syncflow.engine.types import Clip
from syncflow.training.data.impacts import sample_clip
from syncflow.training.evaluation import (
    Matches,
    blind_baselines,
    draw_report,
    evaluate_a2v,
    evaluate_generation,
    evaluate_v2a,
    inspect_clip,
    match_times,
)
from syncflow.training.evaluation.embeddings import Networks
from syncflow.training.evaluation.evaluate import exchanges
from syncflow.training.evaluation.intervals import f1_interval
from syncflow.training.evaluation.lag import sound_lag
from syncflow.training.evaluation.matching import count_matches
from syncflow.training.evaluation.run import run_evaluation
from syncflow.training.recipes import with_towers


@pytest.fixture(scope="module")
def rendered() -> tuple[list[Clip], list[str], list[list[float]]]:
    made = [sample_clip(6, index, "unseen") for index in range(12)]
    return (
        [clip for clip, _, _ in made],
        [text for _, text, _ in made],
        [[e.time for e in events] for *_, events in made],
    )


def silenced(clip: Clip) -> Clip:
    return replace(clip, waveform=np.zeros_like(clip.waveform))


@pytest.mark.slow
def test_rendered_clips_score_high_and_shuffled_ones_low(rendered) -> None:
    clips, prompts, _ = rendered
    scores = evaluate_generation(clips, prompts, seed=1)
    assert scores.impact_f1 >= 0.95
    assert scores.color_accuracy is not None and scores.color_accuracy >= 0.95
    assert scores.impact_f1_shuffled is not None and scores.impact_f1_shuffled <= 0.4
    assert scores == evaluate_generation(clips, prompts, seed=1)
    assert json.loads(json.dumps(scores.to_dict()))["impact_f1"] == scores.impact_f1
    assert f"{scores.impact_f1:.3f}" in scores.table() and f"{scores.impact_f1_shuffled:.3f}" in scores.table()


@pytest.mark.slow
def test_each_fault_lowers_the_score_it_should(rendered) -> None:
    clips, prompts, _ = rendered
    whole = evaluate_generation(clips, prompts)
    half = [silenced(clip) if i % 2 else clip for i, clip in enumerate(clips)]
    muted = evaluate_generation(half, prompts)
    assert muted.precision >= 0.95
    assert muted.recall < whole.recall
    late = [replace(clip, waveform=np.roll(clip.waveform, clip.sample_rate // 6)) for clip in clips]
    assert evaluate_generation(late, prompts).impact_f1 < 0.3
    assert evaluate_generation(late, prompts, tolerance_frames=3).impact_f1 > 0.8
    assert evaluate_generation(clips, ["a purple thing"] * len(clips)).color_accuracy < 0.5
    assert evaluate_generation(clips, ["a thing"] * len(clips)).color_accuracy is None


def test_silent_and_empty_clips_score_nothing() -> None:
    clip = Clip(np.full((16, 32, 32, 3), 30, dtype=np.uint8), np.zeros(16_000, dtype=np.float32), 16.0, 16_000)
    scores = evaluate_generation([clip, clip], ["a red ball", "a ball"])
    assert (scores.impact_f1, scores.impact_f1_shuffled, scores.color_accuracy) == (0, 0, 0)


def test_video_to_audio_is_scored_against_the_true_times(rendered) -> None:
    clips, _, times = rendered
    scores = evaluate_v2a(clips, times)
    assert scores.v2a_onset_f1 >= 0.97
    assert scores.v2a_onset_f1_shuffled is not None and scores.v2a_onset_f1_shuffled <= 0.4
    assert scores.to_dict()["clips"] == len(clips)
    assert evaluate_v2a(clips[:1], times[:1]).v2a_onset_f1_shuffled is None
    assert evaluate_v2a([silenced(clip) for clip in clips], times).v2a_onset_f1 == 0


@pytest.mark.slow
def test_each_kind_of_event_has_its_own_f1(rendered) -> None:
    clips, prompts, times = rendered
    half = len(clips) // 2
    kinds = ["bounce"] * half + ["hammer"] * (len(clips) - half)
    silent = [silenced(clip) for clip in clips[half:]]
    scores = evaluate_generation(clips[:half] + silent, prompts, kinds=kinds)
    alone = evaluate_generation(clips[:half], prompts[:half])
    assert scores.by_kind == {"impact_f1_bounce": alone.impact_f1, "impact_f1_hammer": 0}
    assert scores.intervals["impact_f1_bounce"] == alone.intervals["impact_f1"]
    assert scores.to_dict()["impact_f1_hammer"] == 0 and "by_kind" not in scores.to_dict()
    lines = scores.table(evaluate_generation(clips, prompts, kinds=kinds)).splitlines()
    assert lines[3].split()[:3] == ["hammer", "alone", "0.000"] and float(lines[3].split()[-1]) > 0.9
    sounds = evaluate_v2a(clips[:half] + silent, times, kinds=kinds)
    assert list(sounds.by_kind) == ["v2a_onset_f1_bounce", "v2a_onset_f1_hammer"] and sounds.rows()[2][2] == 0
    with pytest.raises(ValueError, match="12 clips and 2 kinds"):
        evaluate_v2a(clips, times, kinds=["bounce", "hammer"])


def test_what_blind_sounds_score_is_beside_it(rendered) -> None:
    clips, prompts, times = rendered
    scores = evaluate_generation(clips, prompts, seed=1)
    assert scores.impact_f1_shuffled < scores.impact_f1_fixed_track < scores.impact_f1
    assert scores.impact_f1_metronome <= scores.impact_f1_fixed_track + 0.1
    line = next(line for line in scores.table().splitlines() if "best metronome" in line)
    assert line.endswith(f" {scores.impact_f1_metronome:.3f}")
    said = evaluate_v2a(clips, times).to_dict()
    assert 0 < said["v2a_onset_f1_metronome"] < said["v2a_onset_f1"] > said["v2a_onset_f1_fixed_track"] > 0
    alone = evaluate_v2a(clips[:1], times[:1])
    assert alone.v2a_onset_f1_metronome is None and alone.v2a_onset_f1_fixed_track is None
    none = evaluate_v2a(clips, [[] for _ in clips])
    assert none.v2a_onset_f1_metronome is None


def test_the_best_blind_sounds_are_found() -> None:
    """Clips that all strike at the same times are scored wholly by a sound that sees nothing."""
    same = [np.array([0.25, 0.75, 1.25, 1.75])] * 3
    blind = blind_baselines(same, [2.0] * 3, [1 / 16] * 3)
    assert blind.metronome == blind.fixed_track == 1
    assert abs(blind.period - 0.5) < 0.05 and len(blind.track) == 4
    uneven = [np.array([0.1, 0.9, 1.0, 1.7])] * 3
    blind = blind_baselines(uneven, [2.0] * 3, [0.02] * 3)
    assert blind.metronome < 1 == blind.fixed_track


@given(
    st.lists(st.integers(0, 60), max_size=8, unique=True), st.lists(st.integers(0, 60), max_size=8, unique=True),
    st.integers(0, 9),
)  # fmt: skip
def test_matches_are_counted_as_they_are_matched(first: list[int], second: list[int], tolerance: int) -> None:
    a, b = np.sort(np.array(first, float)), np.sort(np.array(second, float))
    assert count_matches(a, b, tolerance) == match_times(a, b, tolerance).hits


@pytest.mark.slow
def test_the_interval_of_a_score_is_that_of_other_clips(rendered) -> None:
    """Around the score, and narrower with more clips; of clips that are all alike it is the score."""
    clips, prompts, _ = rendered
    mixed = [silenced(clip) if i % 3 else clip for i, clip in enumerate(clips)]
    few, many = evaluate_generation(mixed, prompts), evaluate_generation(mixed * 4, prompts * 4)
    assert few.impact_f1 == pytest.approx(many.impact_f1)
    (low, high), (lower, higher) = few.intervals["impact_f1"], many.intervals["impact_f1"]
    assert low < few.impact_f1 < high
    assert (higher - lower) == pytest.approx((high - low) / 2, rel=0.25)
    assert few.to_dict()["impact_f1_interval"] == [low, high]
    right = evaluate_generation(clips, prompts)
    assert right.count_within_one == 1 and right.intervals["count_within_one"] == (1, 1)
    assert evaluate_generation(clips[:1], prompts[:1]).intervals == {}


@pytest.mark.slow
def test_a_score_of_a_single_clip_has_no_interval(rendered) -> None:
    """Of one prompt with a colour, one inferred sound, one clip of a kind: JSON has no NaN."""
    clips, prompts, _ = rendered
    scores = evaluate_generation(clips[:2], [prompts[0], "a thing"], inferred=clips[:1], kinds=["bounce", "hammer"])
    said = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert {"impact_f1_interval", "lag_interval"} <= said.keys()
    alone = {f"{name}_interval" for name in ("color_accuracy", "cyclesync", "impact_f1_bounce", "impact_f1_hammer")}
    assert not alone & said.keys() and {name.removesuffix("_interval") for name in alone} <= said.keys()
    assert "nan" not in scores.table()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20), st.integers(0, 9))
def test_an_interval_is_within_what_clips_score(counts: list[tuple[int, int]], seed: int) -> None:
    matches = [Matches(hits=min(pair), reference=pair[0], found=pair[1]) for pair in counts]
    interval = f1_interval(matches, seed)
    assert interval is not None
    low, high = interval
    single = [m.f1 for m in matches if m.reference + m.found] or [0.0]
    assert min(0.0 if len(single) < len(matches) else 1.0, *single, 1.0) - 1e-9 <= low <= high <= max(single) + 1e-9


@pytest.mark.slow
def test_the_lag_of_a_sound_is_found(rendered) -> None:
    clips, _, _ = rendered
    own = [sound_lag(clip) for clip in clips]
    for seconds in (-0.1, 0.1):
        moved = [replace(c, waveform=np.roll(c.waveform, round(seconds * c.sample_rate))) for c in clips]
        found = [(sound_lag(clip) or 0) - (lag or 0) for clip, lag in zip(moved, own, strict=True)]
        assert np.median(found) == pytest.approx(seconds, abs=0.01)
    assert sound_lag(silenced(clips[0])) is None
    assert sound_lag(replace(clips[0], frames=clips[0].frames[:1].repeat(32, 0))) is None
    flicker = np.zeros((32, 16, 16, 3), np.uint8)
    flicker[::2] = 200
    assert sound_lag(replace(clips[0], frames=flicker)) is None  # the motion is the same in every frame


@pytest.mark.slow
def test_sounds_inferred_from_the_video_are_compared(rendered) -> None:
    clips, prompts, _ = rendered
    assert evaluate_generation(clips, prompts).cyclesync is None
    assert evaluate_generation(clips, prompts, inferred=clips).cyclesync == 1
    assert evaluate_generation(clips, prompts, inferred=[silenced(clip) for clip in clips]).cyclesync == 0
    half = [silenced(clip) if i % 2 else clip for i, clip in enumerate(clips)]
    scores = evaluate_generation(clips, prompts, inferred=half)
    assert scores.cyclesync == 0.5 and scores.intervals["cyclesync"][0] < 0.5 < scores.intervals["cyclesync"][1]


@pytest.mark.slow
def test_an_evaluation_leaves_its_clips_on_a_page(tmp_path: Path) -> None:
    """Scores beside those of rendered clips; every file that the page names is there."""
    settings = {"steps": 2, "width": 32, "height": 32}
    evaluation = run_evaluation(Engine.from_pretrained(), count=3, v2a_count=2, keep=tmp_path, **settings)
    said = json.loads(json.dumps(evaluation.to_dict()))
    names = ("impact_f1", "color_accuracy", "v2a_onset_f1", "count_within_one", "cyclesync", "av_align")
    for name in names:
        low, high = said[f"{name}_interval"]
        assert low <= said[name] <= high and 0 <= said[f"{name}_truth"] <= 1, name
    assert said["impact_f1_truth"] > 0.9 and said["v2a_onset_f1_truth"] > 0.9
    assert "ground truth" in str(evaluation)
    page = (tmp_path / "index.html").read_text()
    named = set(re.findall(r'src="([^"]+)"', page))
    assert {"clip_002.mp4", "clip_002.png", "v2a_001.mp4", "contact_sheet.png"} <= named
    assert {path.name for path in tmp_path.iterdir()} == named | {"index.html"}
    assert f"{said['impact_f1']:.3f}" in page


def test_what_cannot_be_scored_is_refused_before_anything_is_generated(tmp_path: Path, run, monkeypatch) -> None:
    engine = Engine.from_pretrained()
    monkeypatch.setattr(engine, "generate", lambda *_: pytest.fail("a clip was generated"))
    with pytest.raises(ValueError, match="audio-to-video needs a model whose video reads the audio"):
        run_evaluation(engine, count=2, v2a_count=1, a2v_count=1)
    networks = Networks(videos=object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there is 1 clip; FAD and FVD need at least 2 \(count\)"):
        run_evaluation(engine, count=1, v2a_count=1, networks=networks)
    (tmp_path / "file").write_text("")
    code, _, err = run("evaluate", "-o", tmp_path / "file")
    assert code == 2 and str(tmp_path / "file") in err and len(err.splitlines()) == 1


def test_prompts_of_ones_own_have_no_ground_truth() -> None:
    settings = {"steps": 1, "width": 32, "height": 32}
    evaluation = run_evaluation(Engine.from_pretrained(), ["a ball", "<b>"], count=2, v2a_count=0, **settings)
    assert list(evaluation.tasks) == [""] and evaluation.tasks[""].truth is None
    assert "impact_f1_truth" not in evaluation.to_dict() and "ground truth" not in str(evaluation)
    with pytest.raises(ValueError, match="there is nothing to score"):
        run_evaluation(Engine.from_pretrained(), count=0, v2a_count=0)


@pytest.mark.slow
def test_videos_for_sounds_are_scored_by_their_impacts(rendered, tmp_path: Path) -> None:
    clips, _, times = rendered
    scores = evaluate_a2v(clips, times)
    assert scores.a2v_impact_f1 >= 0.95 and scores.a2v_impact_f1_shuffled <= 0.4
    low, high = scores.intervals["a2v_impact_f1"]
    assert low <= scores.a2v_impact_f1 <= high
    assert scores.impacts_per_clip == pytest.approx(scores.events_per_clip, abs=0.25)
    late = [replace(clip, frames=np.roll(clip.frames, 4, 0)) for clip in clips]
    assert evaluate_a2v(late, times).a2v_impact_f1 < 0.4
    with_towers(preset("harmony-tiny"), bundled_model()).save(tmp_path / "model")
    engine = Engine.from_pretrained(tmp_path / "model")
    settings = {"steps": 1, "width": 32, "height": 32}
    kinds = ("swing", "bounce")
    said = run_evaluation(
        engine, count=0, v2a_count=0, a2v_count=2, kinds=kinds, keep=tmp_path / "page", **settings
    ).to_dict()
    assert all(said[f"a2v_impact_f1_{kind}_truth"] > 0.9 for kind in kinds)
    assert "swing alone" in (tmp_path / "page" / "index.html").read_text()
    assert said["a2v_impact_f1_truth"] > 0.9 and 0 <= said["a2v_impact_f1"] <= 1 and said["a2v_clips"] == 2
    assert (tmp_path / "page" / "a2v_001.mp4").is_file() and (tmp_path / "page" / "contact_sheet.png").is_file()


def test_wrong_input_is_named(rendered) -> None:
    clips, prompts, times = rendered
    with pytest.raises(ValueError, match="no clips"):
        evaluate_generation([], [])
    with pytest.raises(ValueError, match="12 clips and 11 prompts"):
        evaluate_generation(clips, prompts[1:])
    with pytest.raises(ValueError, match="12 clips and 11 lists"):
        evaluate_v2a(clips, times[1:])
    with pytest.raises(ValueError, match="-1 frames"):
        evaluate_v2a(clips, times, tolerance_frames=-1)


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**32))
def test_an_exchange_leaves_nothing_in_place(count: int, rounds: int, seed: int) -> None:
    drawn = list(exchanges(count, rounds, seed))
    assert len(drawn) == rounds
    for exchange in drawn:
        assert sorted(exchange) == list(range(count))
        assert all(i != j for i, j in enumerate(exchange))


def test_inspection_of_a_rendered_clip(rendered) -> None:
    clips, _, times = rendered
    inspection = inspect_clip(clips[0])
    assert inspection.event_kind == "impact"
    assert inspection.onsets == pytest.approx(times[0], abs=0.01)
    assert inspection.f1 == 1 and abs(inspection.mean_offset or 1) < 0.03
    assert len(inspection.motion) == len(inspection.motion_times) == inspection.frames - 1
    assert inspection.peak_db == pytest.approx(20 * np.log10(np.abs(clips[0].waveform).max()), abs=0.01)
    parsed = json.loads(json.dumps(inspection.to_dict()))
    assert parsed["onsets"] == list(inspection.onsets)
    assert "matched" in str(inspection)


def odd_clip(name: str) -> Clip:
    rng = np.random.default_rng(0)
    frames, fps, sound = {
        "one frame": (np.zeros((1, 32, 32, 3)), 16.0, np.zeros(3000)),
        "no sound": (rng.integers(0, 255, (20, 36, 64, 3)), 25.0, np.zeros(0)),
        "large and tall": (rng.integers(0, 255, (6, 400, 250, 3)), 29.97, rng.uniform(-1, 1, 3000)),
        "sound outlasts the picture": (np.zeros((8, 32, 32, 3)), 16.0, rng.uniform(-0.1, 0.1, 16_000)),
    }[name]
    return Clip(frames.astype(np.uint8), sound.astype(np.float32), fps, 16_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one frame", "no sound", "large and tall", "sound outlasts the picture"])
def test_any_clip_can_be_inspected_and_drawn(name: str, tmp_path: Path) -> None:
    clip = odd_clip(name)
    inspection = inspect_clip(clip)
    assert (inspection.width, inspection.height) == (clip.frames.shape[2], clip.frames.shape[1])
    json.dumps(inspection.to_dict(), allow_nan=False)
    draw_report(clip, inspection, tmp_path / "report.png")
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


@pytest.mark.slow
def test_the_report_is_a_picture_with_the_prompt_in_it(rendered, tmp_path: Path) -> None:
    from matplotlib.image import imread

    clip = replace(
        rendered[0][0], provenance={"prompt": "a long $x_{$ " * 30, "seed": 3, "guidance": 6.0, "hash": "f" * 64}
    )
    path = draw_report(clip, inspect_clip(clip), tmp_path / "new" / "report.png")
    picture = imread(path)
    assert picture.shape[1] > 1000 and picture.std() > 0.05
    blank = imread(draw_report(replace(clip, provenance={}), inspect_clip(clip), tmp_path / "other.png"))
    assert not np.array_equal(picture, blank)


def test_a_report_that_cannot_be_written_is_one_sentence(rendered, tmp_path: Path) -> None:
    clip = rendered[0][0]
    inspection = inspect_clip(clip)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        draw_report(clip, inspection, tmp_path / "file" / "report.png")
    with pytest.raises(ValueError, match=r"\.png"):
        draw_report(clip, inspection, tmp_path / "report.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
