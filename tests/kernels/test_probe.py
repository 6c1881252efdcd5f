"""A probe that imports this package as a top-level ``kernels`` leaves the operations alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import syncflow.kernels

SCRIPT = """
import torch
from syncflow.kernels import gated_residual
import kernels
assert kernels.__version__ == "0" and not hasattr(kernels, "gated_residual")
x = torch.ones(1, 2, 3, 4)
with torch.inference_mode():
    print(gated_residual(x, x, torch.zeros(6, 4), torch.ones(1, 1, 6, 4), 0).sum().item())
"""


@pytest.mark.slow
def test_a_probe_for_another_package_registers_nothing():
    root = Path(syncflow.kernels.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 48.0
