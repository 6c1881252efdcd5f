"""Damaged files are read or refused with a sentence: no crash, no hang, bounded memory.

``SYNCFLOW_FUZZ_MUTATIONS`` asks for more damaged files than the few hundred of a test run, ``SYNCFLOW_FUZZ_SEED`` for
others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz_media import write_samples

pytestmark = pytest.mark.slow


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    write_samples(tmp_path)
    script = Path(__file__).with_name("fuzz_media.py")
    mutations = int(os.environ.get("SYNCFLOW_FUZZ_MUTATIONS", "350"))
    command = [sys.executable, str(script), str(tmp_path), str(mutations), os.environ.get("SYNCFLOW_FUZZ_SEED", "0")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600 + mutations)
    assert finished.returncode == 0, f"{list((tmp_path / 'now').iterdir())}: {finished.stderr[-2000:]}"
    assert f"{mutations} damaged files: " in finished.stdout
