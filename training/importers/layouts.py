"""What a folder of weights is: an engine package, a published layout, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.codecs.files import read_config
from ...engine.codecs.opensora import CLASS_NAME as VAE
from ...engine.package import INDEX, MANIFEST, open_package
from . import javisdit, opensora
from .tensors import TensorFiles, mismatches, open_tensors
from .transformer import OPTIONAL, Layout

LAYOUTS = {layout.name: layout for layout in (opensora.LAYOUT, javisdit.LAYOUT)}


@dataclass(frozen=True)
class Description:
    """``kind``: ``package``, ``published`` or ``unknown``; ``what`` in one sentence; ``details`` by name; ``problems``
    in a sentence each."""

    kind: str
    what: str
    details: Mapping[str, Any]
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return {"kind": self.kind, "what": self.what, **self.details, "problems": list(self.problems)}

    def __str__(self) -> str:
        lines = [self.what, *(f"  {name}: {value}" for name, value in self.details.items()), *self.problems]
        return "\n".join(lines)


def describe(path: Path) -> Description:
    """What ``path``, a folder or a file of weights, holds. Weights are not read, only their names, types and shapes.

    Raises ``ValueError`` for a path that is not there and for a damaged file.
    """
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    if path.is_dir() and ((path / MANIFEST).is_file() or (path / INDEX).is_file()):
        return _package(path)
    config = read_config(path) if path.is_dir() and (path / "config.json").is_file() else {}
    try:
        files = open_tensors(path)
    except ValueError as error:
        return Description("unknown", f"{path} is no model that this version knows.", {}, (f"{error}.",))
    kind = config.get("model_type")
    details = _sizes(files)
    known = kind in [layout.architecture for layout in LAYOUTS.values()]
    if known or (not config and "x_embedder.proj.weight" in files.infos):
        return _transformer(layout_of(path), path, config, files, details)
    if kind == VAE:
        return Description(
            "published", f"{path} is Open-Sora's video autoencoder, for `syncflow import --vae`.", details
        )
    if kind == "t5":
        what = f"{path} is a T5 text encoder, for `syncflow import --text-encoder`."
        return Description("published", what, {"width": config.get("d_model")} | details)
    said = f"It says it is a {kind!r} model." if kind else "It has no config.json that names a model."
    return Description("unknown", f"{path} is no model that this version knows.", details, (said,))


def _package(path: Path) -> Description:
    try:
        package = open_package(path)
    except ValueError as error:
        return Description("unknown", f"{path} is a damaged model package.", {}, (f"{error}.",))
    config, sequence = package.config, package.config.sequence
    parts = {
        name: sum(info.nbytes for info in open_tensors(package.component(name)).infos.values())
        for name in ("ddit", "video_vae", "audio_vae", "text_encoder")
        if any(package.component(name).glob("*.safetensors"))
    }
    details = {
        "name": config.name,
        "bridge": config.ddit.bridge,
        "width and depth": f"{config.ddit.width} and {config.ddit.depth}",
        "clip": f"{sequence.seconds:g} s, {sequence.width}x{sequence.height}, {sequence.fps} fps",
        "weights": ", ".join(f"{name} {_megabytes(size)}" for name, size in parts.items()),
        "hash": package.digest,
    }
    return Description("package", f"{path} is a model package; every file matches its checksum.", details)


def layout_of(path: Path) -> Layout:
    """The layout of the transformer in a folder or file. Raises ``ValueError`` for one that is not known."""
    config = read_config(path) if path.is_dir() and (path / "config.json").is_file() else {}
    kind = config.get("model_type")
    if not config:
        kind = (javisdit if "ax_embedder.proj.weight" in open_tensors(path).infos else opensora).ARCHITECTURE
    found = next((layout for layout in LAYOUTS.values() if layout.architecture == kind), None)
    if found is None:
        known = " or ".join(f"{layout.architecture!r} ({layout.title})" for layout in LAYOUTS.values())
        raise ValueError(f"{path} holds a {kind!r} model; a transformer says {known}")
    return found


def _transformer(
    layout: Layout, path: Path, published: Mapping[str, Any], files: TensorFiles, details: dict[str, Any]
) -> Description:
    what = f"{path} is the transformer of {layout.title} ({layout.architecture}), for `syncflow import`."
    try:
        config = layout.config_of(published or layout.infer(files.infos))
    except ValueError as error:
        return Description("published", what, details, (f"{error}.",))
    found = mismatches(files.infos, layout.shapes(config), layout.what)
    problems = tuple(sentence for sentence in found if sentence != f"{OPTIONAL} is missing.")
    return Description("published", what, {"width and depth": f"{config.width} and {config.depth}"} | details, problems)


def _sizes(files: TensorFiles) -> dict[str, Any]:
    kinds = sorted({str(info.dtype).removeprefix("torch.") for info in files.infos.values()})
    size = sum(info.nbytes for info in files.infos.values())
    return {"tensors": len(files.infos), "size": _megabytes(size), "precision": ", ".join(kinds)}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
