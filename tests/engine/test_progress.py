"""Progress where nobody watches."""

from __future__ import annotations

import pytest

from syncflow.engine import progress


def test_a_log_has_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.progress_bar(total=2, desc="encoding", unit="clip") as bar:
        bar.update()
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("encoding:") for line in lines) and "2/2" in lines[-1]


def test_short_work_is_silent_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(progress.progress_bar(range(3), desc="reading")) == 3
    assert capsys.readouterr().err == ""
