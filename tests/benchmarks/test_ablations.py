"""Ablations: statistics against hand computation, cells that resume, and the real command's parts on tiny cells."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest

from syncflow.benchmarks.ablations.__main__ import main
from syncflow.benchmarks.ablations.ablation import LOWER, Ablation, Score, Variant
from syncflow.benchmarks.ablations.catalogue import ABLATIONS, BY_NAME, select
from syncflow.benchmarks.ablations.cells import Cell, cell_file, finished, measured
from syncflow.benchmarks.ablations.measuring import Measurement
from syncflow.benchmarks.ablations.report import as_json, estimate, markdown, rows, write_tables
from syncflow.benchmarks.ablations.scoring import Size, start_model, train_config
from syncflow.engine.engine import bundled_model
from syncflow.engine.types import Request
from syncflow.training.evaluation.evaluate import GenerationScores, SoundScores, VideoScores
from syncflow.training.stages import check_stage

TINY = Size(clips=2, sampling_steps=1, steps=1, batch=2)
TOY = Ablation(
    "toy",
    "Is it?",
    "a paper",
    (Variant("off"), Variant("on", sign=1, reported="1 to 2"), Variant("twice", sign=-1), Variant("said nowhere")),
    (Score("f1", "F1"), Score("loss", "loss", LOWER), Score("color", "colour", compared=False)),
    ("prompts",),
    model="syncflow-tiny",
)


def cells(variant, f1, loss=(), first=0):
    """Cells of a variant with the seeds from ``first`` on."""
    losses = loss or [0.0] * len(f1)
    return [
        Cell("toy", variant, first + i, {}, {"f1": a, "loss": b, "color": 1.0}, 0.0)
        for i, (a, b) in enumerate(zip(f1, losses, strict=True))
    ]


def test_an_interval_is_students():
    found = estimate([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # the 97.5 % quantile of two degrees of freedom; deviation 1
    assert (found.mean, found.seeds) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert found.sign == 0 and estimate([1.0, 1.1, 1.2]).sign == 1 and estimate([-1.0, -1.1, -1.2]).sign == -1


def test_one_seed_has_no_interval_and_no_sign():
    found = estimate([0.5])
    assert (found.mean, found.sign, str(found)) == (0.5, 0, "0.500") and math.isnan(found.low)


def test_differences_pair_the_seeds():
    """Seeds vary by far more than the variants: only pairs of the same seed show the difference."""
    found = rows(TOY, cells("off", [0.1, 0.5, 0.9]) + cells("on", [0.2, 0.59, 1.0]))
    base, on = (row for row in found if row.score == "F1")
    assert base.difference is None and base.agreement == ""
    assert on.difference.mean == pytest.approx(0.29 / 3) and on.difference.low > 0
    assert (on.ours, on.paper, on.agreement) == (1, 1, "the same")


def test_differences_are_of_seeds_that_both_have():
    found = rows(TOY, cells("off", [0.1, 0.2]) + cells("on", [0.5, 0.6], first=1))
    (on,) = (row for row in found if row.score == "F1" and row.variant == "on")
    assert (on.value.seeds, on.difference.seeds) == (2, 1) and on.difference.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("variant", "f1", "agreement"),
    [
        ("on", (0.5, 0.51, 0.52), "the same"),
        ("on", (0.1, 0.11, 0.12), "the opposite"),
        ("on", (0.1, 0.3, 0.5), "undecided"),
        ("twice", (0.1, 0.11, 0.12), "the same"),
        ("said nowhere", (0.1, 0.11, 0.12), ""),
    ],
)
def test_signs_are_set_beside_those_of_the_paper(variant, f1, agreement):
    found = rows(TOY, cells("off", [0.3, 0.3, 0.3]) + cells(variant, f1))
    assert [row.agreement for row in found if row.score == "F1" and row.variant == variant] == [agreement]


def test_a_lower_loss_is_better():
    found = rows(TOY, cells("off", [0, 0, 0], [1.0, 1.1, 1.2]) + cells("on", [0, 0, 0], [0.5, 0.61, 0.7]))
    (on,) = (row for row in found if row.score == "loss" and row.variant == "on")
    assert on.difference.mean < 0 and (on.ours, on.agreement) == (1, "the same")


def test_a_score_that_the_paper_does_not_measure_has_no_sign_of_it():
    found = rows(TOY, cells("off", [0.0] * 3) + cells("on", [1.0] * 3))
    assert all(row.paper == 0 for row in found if row.score == "colour")


def test_the_table_has_a_line_for_each_variant_and_score():
    given = cells("off", [0.1, 0.2]) + cells("on", [0.3, 0.4])
    lines = [line for line in markdown(TOY, given).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * 3 and len({line.count("|") for line in lines}) == 1
    assert lines[3] == (
        "| on | F1 | 0.350 (-0.285 to 0.985) | 2 | 0.200 (0.200 to 0.200) | better | better: 1 to 2 | the same |"
    )


def test_json_has_null_for_the_interval_of_one_seed():
    found = json.loads(json.dumps(as_json(TOY, cells("off", [0.1])), allow_nan=False))
    assert found["rows"][0]["value"] == {"mean": 0.1, "low": None, "high": None, "seeds": 1}


def test_a_finished_cell_is_not_measured_again(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"f1": 0.5, "name": "left out", "interval": [0, 1], "nothing": None}

    found = [measured(tmp_path, TOY, TOY.variants[1], 2, {"clips": 4}, measure) for _ in range(2)]
    assert found[0] == found[1] and len(calls) == 1
    assert found[0].scores == {"f1": 0.5} and (found[0].variant, found[0].seed) == ("on", 2)
    assert finished(tmp_path, TOY) == [found[0]]


def test_a_cell_with_other_settings_is_refused(tmp_path):
    measure = partial(measured, tmp_path, TOY, TOY.variants[0], 0, measure=lambda: {"f1": 1.0})
    measure({"clips": 4})
    with pytest.raises(ValueError, match=r"clips 4 not 8.*another folder"):
        measure({"clips": 8})


def test_a_damaged_cell_is_said(tmp_path):
    file = cell_file(tmp_path, TOY, TOY.variants[0], 0)
    file.parent.mkdir(parents=True)
    file.write_text('{"ablation": ')
    with pytest.raises(ValueError, match="remove it to measure it again"):
        finished(tmp_path, TOY)


def test_seeds_are_in_the_order_of_numbers(tmp_path):
    for seed in (10, 9, 0):
        measured(tmp_path, TOY, TOY.variants[0], seed, {}, lambda: {"f1": 1.0})
    assert [cell.seed for cell in finished(tmp_path, TOY)] == [0, 9, 10]


def test_ablations_are_chosen_by_name():
    assert select(None) == list(ABLATIONS) and len(BY_NAME) == len(ABLATIONS)
    assert [one.name for one in select("steps, guidance")] == ["steps", "guidance"]
    with pytest.raises(ValueError, match=r"no ablation nonsense; there are .*adaptor"):
        select("steps,nonsense")


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda one: one.name)
def test_every_variant_can_be_asked_for(ablation):
    known = {name for kind in (GenerationScores, SoundScores, VideoScores) for name in kind.__dataclass_fields__}
    known |= {f"loss_{name}" for name in ("video", "audio", "video_driven", "audio_driven") if ablation.training}
    assert {score.name for score in ablation.scores} <= known
    assert bool(ablation.model) != bool(ablation.training)
    assert ablation.variants[0].sign == 0, "the baseline has no sign"
    for variant in ablation.variants:
        Request("a ball", **{"steps": 8} | ablation.request | variant.request)
        assert ablation.training or not (variant.ddit or variant.train)


@pytest.mark.parametrize("ablation", [one for one in ABLATIONS if one.training], ids=lambda one: one.name)
def test_variants_of_a_training_take_as_many_steps_and_begin_alike(ablation):
    configs = [train_config(ablation.training, variant, 3, TINY) for variant in ablation.variants]
    assert {(one.steps, one.batch, one.seed, one.minutes) for one in configs} == {(1, 2, 3, 0.0)}
    models = [start_model(ablation.training, variant, bundled_model(), 3) for variant in ablation.variants]
    for config, model in zip(configs, models, strict=True):
        check_stage(config, model.config.ddit)
    first, *others = (model.ddit.state_dict() for model in models)
    for other in others:
        shared = [name for name, value in other.items() if name in first and first[name].shape == value.shape]
        assert len(shared) > 100 and all(first[name].equal(other[name]) for name in shared)


def test_what_begins_anew_differs_from_the_bundled_model():
    training = BY_NAME["adaptor"].training
    begun, bundled = (start_model(one, Variant("x"), bundled_model(), 0).ddit.audio.state_dict()
                      for one in (training, BY_NAME["joint-fine-tuning"].training))  # fmt: skip
    changed = {name for name, value in bundled.items() if not value.equal(begun[name])}
    assert any("adaptors.0.attn" in name for name in changed) and any("cross_attn.q_linear" in name for name in changed)
    assert all("adaptors." in name or "cross_attn." in name for name in changed)


def test_a_model_that_is_not_there_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"error: there is no ablation x"):
        main(tmp_path, only="x", seeds=1)
    missing = Measurement(tmp_path, TINY, data=None, models={"syncflow-tiny": tmp_path / "none"}, runtime="torch")
    assert not missing.has_model(BY_NAME["guidance"])
    with pytest.raises(ValueError, match=r"--model syncflow-tiny=FOLDER"):
        missing.measure(BY_NAME["guidance"], BY_NAME["guidance"].variants[0], 0)


@pytest.mark.slow
def test_the_command_measures_once_and_writes_the_tables(tmp_path, capsys, monkeypatch):
    arguments = dict(only="guidance", seeds=2, clips=2, sampling_steps=1, runtime="torch")
    main(tmp_path, **arguments)
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "ablations.md").read_text().strip() == write_tables(tmp_path)
    (table,) = json.loads((tmp_path / "ablations.json").read_text())
    assert table["ablation"] == "guidance" and len(table["rows"]) == 4 * 2
    monkeypatch.setattr("syncflow.benchmarks.ablations.measuring.score", None)  # nothing is left to be measured
    main(tmp_path, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptor", "motion-aware-loss"])
def test_a_trained_cell_has_the_scores_of_its_ablation(tmp_path, monkeypatch, name):
    monkeypatch.setattr("syncflow.benchmarks.ablations.measuring.CLIPS", 4)
    monkeypatch.setattr("syncflow.benchmarks.ablations.measuring.UNSEEN", 2)
    measurement = Measurement(tmp_path, TINY, data=None, models={}, runtime="torch")
    ablation = BY_NAME[name]
    for variant in ablation.variants:
        measurement.measure(ablation, variant, 0)
    found = finished(tmp_path, ablation)
    assert [cell.variant for cell in found] == [variant.name for variant in ablation.variants]
    assert all(score.name in cell.scores for cell in found for score in ablation.scores)
    losses = {cell.scores[ablation.scores[1].name] for cell in found}
    assert len(losses) == len(found), "variants were trained alike"
    assert not any((tmp_path / "runs").iterdir())
