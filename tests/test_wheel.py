"""The wheel has every file of the packages, and nothing else of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import syncflow

ROOT = Path(syncflow.__file__).parent
PACKAGES = ("benchmarks", "cli", "engine", "export", "kernels", "training")
FILES = ("__init__.py", "__main__.py", "py.typed")
BUILD = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SCRIPTS = {"benchmarks/gpu/run"}  # for a checkout


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(tmp_path, monkeypatch):
    """Built from a copy, since setuptools writes beside the sources, and without the native part, which is compiled."""
    pytest.importorskip("setuptools")
    monkeypatch.setenv("SYNCFLOW_NATIVE", "0")
    source = tmp_path / "source"
    source.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*FILES, *BUILD):
        shutil.copy(ROOT / file, source)
    expected = {
        str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()
    }

    command = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "syncflow = syncflow.__main__:console" in archive.read(entry_points).decode()
    assert names == {f"syncflow/{name}" for name in (expected - SCRIPTS) | set(FILES)}
