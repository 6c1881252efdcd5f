"""The whole recipe in one call, interrupted and called again, is the recipe without the interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncflow.engine.package import open_package
from syncflow.training.average import Average
from syncflow.training.data import latents, render_impacts

pytestmark = pytest.mark.slow

SETTINGS = ("--steps", 2, "--batch", 2, "--set", "checkpoint_minutes=0", "--set", "sample_minutes=0")


class Killed(Exception):
    pass


def test_an_interrupted_recipe_goes_on(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at the second step of the second stage, the last of the recipe of syncflow-tiny."""
    data = render_impacts(tmp_path / "data", 3, seed=0, workers=1, progress=False)
    encoded, create = [], latents._create
    with monkeypatch.context() as patch:
        patch.setattr(latents, "_create", lambda path, shape: encoded.append(path.name) or create(path, shape))
        code, out, err = run("train", data, "--run", tmp_path / "straight", *SETTINGS)
    assert code == 0, err
    assert encoded == ["video.part.npy", "audio.part.npy"]  # once for all stages
    assert out.splitlines() == [f"{tmp_path}/straight/model: after stage {stage}" for stage in ("video", "audio")]
    update, steps = Average.update, []

    def kill(self: Average, step: int) -> None:
        steps.append(step)
        if len(steps) == 4:
            raise Killed
        update(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Average, "update", kill)
        run("train", data, "--run", tmp_path / "killed", *SETTINGS)
    assert (tmp_path / "killed" / "audio" / "checkpoint.pt").is_file()
    code, _, err = run("train", data, "--run", tmp_path / "killed", *SETTINGS)
    assert code == 0, err
    assert "stage video was finished before" in err and "stage audio was finished" not in err
    packages = [open_package(tmp_path / name / "model") for name in ("straight", "killed")]
    assert packages[0].digest == packages[1].digest
