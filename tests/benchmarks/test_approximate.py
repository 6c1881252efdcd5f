"""What an approximate option gains and costs: figures that can be known beforehand, with a small model."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from syncflow import Engine
from syncflow.benchmarks import approximate
from syncflow.benchmarks.approximate import Option, Row
from syncflow.cli import app
from syncflow.engine.cost.request import request_cost

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def rows(engine) -> dict[str, Row]:
    """Short clips with an option of every kind, and with one that changes nothing."""
    kinds = ("branch interval 2", "branch interval 4", "bfloat16", "fp8 linears", "3 steps")
    chosen = [option for option in approximate.options(STEPS) if option.name in kinds]
    assert len(chosen) == len(kinds)
    nothing = Option("nothing", {"branch_interval": 1})
    found = approximate.compare(engine, approximate.requests(1, STEPS, seconds=0.5), [nothing, *chosen])
    return {row.name: row for row in found}


def test_all_options_are_there():
    names = [option.name for option in approximate.options(50)]
    assert names == [
        "guidance from 0.1 to 0.9",
        "guidance from 0.2 to 0.8",
        "branch interval 2",
        "branch interval 3",
        "branch interval 4",
        "bfloat16",
        "fp8 linears",
        "38 steps",
        "34 steps",
        "25 steps",
    ]


def test_a_clip_of_few_steps_has_no_rival_of_as_many():
    assert [option.settings["steps"] for option in approximate.options(2) if "steps" in option.settings] == [1]


def test_what_changes_nothing_has_no_error(rows):
    for name in ("exact", "nothing"):
        row = rows[name]
        assert (row.frames_db, row.sound_db, row.video_err, row.audio_err) == (None, None, 0.0, 0.0)
    assert rows["exact"].work == rows["exact"].gain == rows["nothing"].work == 1


def test_everything_else_has_one(rows):
    for name, row in rows.items():
        if name not in ("exact", "nothing"):
            assert row.video_err > 0 and row.audio_err > 0, name
            assert row.frames_db is not None and row.sound_db is not None, name
            assert row.ms_p50 > 0 and row.gain > 0


def test_work_is_counted(engine, rows):
    """Two branches of which one is left out at every second step: three quarters, and what is computed once."""
    (request,) = approximate.requests(1, STEPS, seconds=0.5)
    assert rows["exact"].flops == request_cost(engine.config, request).total
    assert 1.2 < rows["branch interval 2"].work < 4 / 3
    assert 1.4 < rows["branch interval 4"].work < 8 / 5
    assert rows["bfloat16"].work == rows["fp8 linears"].work == 1


def test_a_shorter_interval_is_nearer(rows):
    assert rows["branch interval 2"].video_err < rows["branch interval 4"].video_err


def test_decibels_and_shares_of_known_errors():
    exact, found = np.zeros((2, 3), np.uint8), np.full((2, 3), 255, np.uint8)
    assert approximate.decibels(255.0, iter([(found, exact), (exact, exact)])) == pytest.approx(3.01)
    assert approximate.decibels(1.0, iter([(exact, exact)])) is None
    ones = torch.ones(4)
    assert approximate._share(iter([(1.5 * ones, ones), (ones, ones)])) == pytest.approx((1 / 8) ** 0.5)


def test_a_table_has_a_line_for_every_row(rows):
    lines = approximate.table(list(rows.values())).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_the_command_prints_json(engine, monkeypatch):
    """With short clips, and this engine rather than another."""
    monkeypatch.setattr(Engine, "from_pretrained", lambda *arguments, **settings: engine)
    monkeypatch.setattr(approximate, "requests", partial(approximate.requests, seconds=0.5))
    monkeypatch.setattr(approximate, "options", lambda steps: [Option(f"{steps - 1} step", {"steps": steps - 1})])
    done = CliRunner().invoke(app, ["bench", "approximate", "--clips", "1", "--steps", "2", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["clips"], said["steps"]) == (1, 2)
    assert [row["name"] for row in said["rows"]] == ["exact", "1 step"]
    assert said["rows"][1]["video_err"] > 0
