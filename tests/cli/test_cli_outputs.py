"""Where the command line writes: standard output, names, and nothing after a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syncflow.cli import results
from syncflow.engine.media import probe

from .interrupted_generate import check

pytestmark = pytest.mark.slow

GENERATE = [sys.executable, "-m", "syncflow", "generate", "a ball", "--steps", "1", "--runtime", "torch-plain"]


def test_standard_output_takes_an_mp4(tmp_path: Path) -> None:
    made = subprocess.run([*GENERATE, "--seconds", "0.25", "-o", "-"], capture_output=True, timeout=300)
    assert made.returncode == 0 and b"-: 0.25 s" in made.stderr
    (tmp_path / "out.mp4").write_bytes(made.stdout)
    assert probe(tmp_path / "out.mp4").seconds == pytest.approx(0.25)


def test_what_standard_output_cannot_take_is_refused() -> None:
    for takes, suffixes, keep in ((2, (".mp4",), False), (1, (".mp4",), True), (1, (".wav",), False)):
        with pytest.raises(ValueError, match="standard output takes"):
            results.outputs(Path("-"), takes, *suffixes, keep_latents=keep)
    with pytest.raises(ValueError, match="--json prints to standard output"):
        results.check_json(Path("-"), json=True)


def test_names_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for name, takes, keep in (("a" * 300, 1, False), ("a" * 250, 2, False), ("a" * 240, 1, True)):
        with pytest.raises(ValueError, match=r"the name has \d+ bytes"):
            results.outputs(tmp_path / f"{name}.mp4", takes, ".mp4", keep_latents=keep)
    assert results.outputs(tmp_path / ("a" * 251 + ".mp4"), 1, ".mp4", keep_latents=False)


def test_a_signal_leaves_nothing_half_written(tmp_path: Path) -> None:
    command = [*GENERATE, "--seconds", "6", "--size", "64x64", "-o", str(tmp_path / "x.mp4")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not os.listdir(tmp_path) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and b"syncflow: ended by SIGTERM" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, 0.5), (signal.SIGTERM, 2.5)])
def test_a_signal_at_any_moment_leaves_nothing_half_written(
    tmp_path: Path, number: signal.Signals, after: float
) -> None:
    """The bounded form of ``python tests/cli/interrupted_generate.py``."""
    check(tmp_path / "moment", number, after)
