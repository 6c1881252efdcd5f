"""What importing syncflow costs and what it needs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import syncflow

ROOT = Path(syncflow.__file__).parent
PACKAGES = ("cli", "engine", "kernels", "export", "training", "benchmarks")
OF_A_HOST = {"triton_python_backend_utils", "opensora"}  # what loads the file brings it, or its user
HEAVY = {"av", "diffusers", "librosa", "matplotlib", "scipy", "torch", "transformers"}


def test_import_leaves_heavy_libraries_alone():
    code = "import syncflow, sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "syncflow" in loaded
    assert not loaded & HEAVY


def test_the_public_names_are_there():
    assert set(syncflow.__all__) <= set(dir(syncflow))
    for name in syncflow.__all__:
        assert getattr(syncflow, name) is not None
    assert {"Engine", "load_clip", "probe", "Handle", "Full", "Closed", "Cancelled", "Expired"} <= set(syncflow.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        syncflow.nothing  # noqa: B018


DISTRIBUTIONS = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "opentelemetry": "opentelemetry_sdk",
}  # names that differ from those of their modules


@pytest.mark.slow
def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    declared = {re.split(r"[^\w-]", text, maxsplit=1)[0].replace("-", "_") for group in groups for text in group}
    files = [ROOT / "__init__.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    assert "torch" in declared
    undeclared = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in _imports(file)
        if DISTRIBUTIONS.get(name, name) not in declared | sys.stdlib_module_names | OF_A_HOST | {"syncflow"}
    }
    assert not undeclared


def _imports(file: Path) -> set[str]:
    """Top-level names of the libraries that a file imports, wherever in the file that is."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
