"""A published transformer to the d-DiT of a package, tensor by tensor, and back.

Tensors are renamed and otherwise kept. What a package has no place for, the published configuration and whether
``rope.freqs`` was stored, is kept in ``ddit/source.json``, from which :func:`export_transformer` writes the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.codecs.files import read_config
from ...engine.components import DDIT_WEIGHTS
from ...engine.config import DDiTConfig
from ...engine.model import DDiT
from ...engine.model.layers import rope_frequencies
from ...engine.package import open_package, read_json, write_json
from .parts import Progress, stored
from .tensors import TensorInfo, finite, mismatches, open_tensors, refuse, write_tensors

OPTIONAL = "rope.freqs"
SOURCE = "source.json"
PREFIX = "video."


@dataclass(frozen=True)
class Layout:
    """A published layout of transformers.

    ``name`` in ``ddit/source.json``; ``architecture`` that its ``config.json`` says; ``title`` of the model.
    ``config_of`` a ``config.json`` and ``infer`` one from the tensors of a bare file, which both raise ``ValueError``.
    ``prefixes``: published beginnings of names, and what they are in the d-DiT; other names are behind ``video.``.
    """

    name: str
    architecture: str
    title: str
    config_of: Callable[[Mapping[str, Any]], DDiTConfig]
    infer: Callable[[Mapping[str, TensorInfo]], dict[str, Any]]
    prefixes: Mapping[str, str]

    @property
    def what(self) -> str:
        """The architecture with its article."""
        return f"{'an' if self.architecture.startswith('S') else 'a'} {self.architecture}"

    def own_name(self, published: str) -> str:
        """The name in the d-DiT of a published tensor."""
        for before, after in self.prefixes.items():
            if published.startswith(before):
                return after + published.removeprefix(before)
        return PREFIX + published

    def published_name(self, own: str) -> str:
        """The inverse of :meth:`own_name`."""
        for before, after in self.prefixes.items():
            if own.startswith(after):
                return before + own.removeprefix(after)
        return own.removeprefix(PREFIX)

    def shapes(self, config: DDiTConfig) -> dict[str, tuple[int, ...]]:
        """The tensors of a published transformer, by name."""
        with torch.device("meta"):
            model = DDiT(config)
        return {self.published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def import_transformer(
    layout: Layout, source: Path, folder: Path, dtype: torch.dtype | None, progress: Progress
) -> DDiTConfig:
    """Write the ``ddit`` folder of a package.

    Raises ``ValueError`` for a model of another kind and for each tensor that is missing, unknown, misshapen or not
    finite.
    """
    files = open_tensors(source)
    published = read_config(source) if (source / "config.json").is_file() else layout.infer(files.infos)
    kind = published.get("model_type")
    if kind != layout.architecture:
        raise ValueError(
            f"{source} holds a {kind!r} model; the transformer of {layout.title} says {layout.architecture!r}"
        )
    config, what = layout.config_of(published), layout.what
    found, table = dict(files.infos), rope_frequencies(config.head_width, config.rope_theta)
    if not (has_table := OPTIONAL in found):
        found[OPTIONAL] = TensorInfo(table.dtype, tuple(table.shape))
    refuse(source, what, mismatches(found, layout.shapes(config), what))
    infos = {name: stored(info, None if name == OPTIONAL else dtype) for name, info in found.items()}

    def read(own: str) -> Tensor:
        name = layout.published_name(own)
        tensor = table if name == OPTIONAL and not has_table else files.read(name)
        return finite(source, tensor, name, infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / DDIT_WEIGHTS, {layout.own_name(name): info for name, info in infos.items()}, read, progress)
    write_json(folder / "config.json", config.to_dict())
    write_json(folder / SOURCE, {"layout": layout.name, OPTIONAL: has_table, "config": published})
    return config


def export_transformer(
    layouts: Mapping[str, Layout], package_folder: Path, target: Path, progress: Progress = lambda name: None
) -> Path:
    """Write the transformer of a package back as ``config.json`` and ``model.safetensors``, the bits of the tensors as
    they are in the package. -> the file.

    Raises ``ValueError`` for a package that was not imported, and for an existing folder.
    """
    package = open_package(package_folder)
    folder = package.component("ddit")
    source = read_json(folder, SOURCE) if (folder / SOURCE).is_file() else {}
    layout = layouts.get(str(source.get("layout")))
    if layout is None:
        raise ValueError(f"{package_folder} was not imported from published weights; it has no ddit/{SOURCE}")
    if target.exists():
        raise ValueError(f"{target} exists already; name a new folder")
    files = open_tensors(folder / DDIT_WEIGHTS)
    infos = {layout.published_name(name): info for name, info in files.infos.items()}
    if not source.get(OPTIONAL):
        infos.pop(OPTIONAL, None)
    target.mkdir(parents=True)
    write_json(target / "config.json", source.get("config", {}))
    read = files.read
    write_tensors(target / "model.safetensors", infos, lambda name: read(layout.own_name(name)), progress)
    return target / "model.safetensors"
