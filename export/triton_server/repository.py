"""A model repository on disk: a model that makes clips, and the graphs of an export as models of their own.

::

    syncflow/config.pbtxt                        prompts in, clips out
    syncflow/1/model.py, package/                the Python backend, and a copy of the model
    syncflow_denoise_video/config.pbtxt          one for every graph
    syncflow_denoise_video/1/model.onnx
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ...engine.exports import Export
from ...engine.package import Package
from .config import DEFAULT_FILE, graph_config, pipeline_config

NAME, VERSION = "syncflow", "1"
BACKEND = Path(__file__).with_name("model.py")


def write_repository(package: Package, export: Export, target: Path, *, runtime: str = "auto") -> list[str]:
    """Write a repository with a model and its ONNX graphs into a new folder. -> the names of its models.

    ``runtime`` computes the passes of clips; the exports that lie in the package go with it. Raises ``ValueError`` for
    a target that is there already, and for an export that is damaged or holds no ONNX graphs.
    """
    if export.format != "onnx":
        raise ValueError(f"{export.path} holds {export.format} graphs; a model repository is made of onnx ones")
    check_target(target)
    export.check()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {target.parent} cannot be made ({error.strerror})") from None
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as beside:
        part = Path(beside) / target.name
        version = _version(part / NAME, pipeline_config(NAME, runtime))
        shutil.copy(BACKEND, version)
        shutil.copytree(package.path, version / "package")
        names = [NAME]
        for graph, spec in export.graphs.items():
            names.append(f"{NAME}_{graph}")
            version = _version(part / names[-1], graph_config(names[-1], spec))
            shutil.copy(export.path / spec.file, version / DEFAULT_FILE)
            weights = f"{spec.file}.data"  # a graph reads them under the name that it was written with
            if weights in export.checksums:
                shutil.copy(export.path / weights, version)
        os.replace(part, target)
    return names


def check_target(target: Path) -> None:
    """Refuse a place for a repository before any work is done."""
    if target.exists():
        raise ValueError(f"{target} is there already; a model repository goes into a new folder")


def _version(model: Path, config: str) -> Path:
    """The folder of a model's one version, beside its configuration."""
    folder = model / VERSION
    folder.mkdir(parents=True)
    (model / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder
