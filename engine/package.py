"""The engine package: a model on disk in the diffusers layout, with checksums.

``model_index.json`` names the components and carries the model's configuration; a folder per component holds
``config.json`` and safetensors; ``manifest.json`` holds the schema version and the sha256 of every file. Nothing in a
package is ever executed or unpickled. What file managers and version control leave beside its files is not looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ModelConfig
from .validation import shown

SCHEMA = 1
INDEX, MANIFEST = "model_index.json", "manifest.json"
COMPONENTS = ("ddit", "video_vae", "audio_vae", "text_encoder")
EXPORTS = "exports"
# Beside names that begin with a dot (.DS_Store, ._x, .git, .cache).
LEFT_BEHIND = ("Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "__MACOSX")
MOST_JSON = 64 << 20  # bytes


@dataclass(frozen=True)
class Package:
    """A verified package on disk. ``digest`` is the sha256 over all checksums: the model hash of provenance records."""

    path: Path
    config: ModelConfig
    digest: str

    def component(self, name: str) -> Path:
        """The folder of a component."""
        return self.path / name


def write_manifest(path: Path, config: ModelConfig) -> Package:
    """Complete a folder whose components are written: index and manifest. Returns the package."""
    index = {
        "_class_name": "SyncFlowPipeline",
        "ddit": ["syncflow", "DDiT"],
        "video_vae": ["diffusers", config.video_vae.class_name],
        "audio_vae": ["syncflow", config.audio_vae.class_name],
        "text_encoder": ["transformers", config.text_encoder.class_name],
        "syncflow": config.to_dict(),
    }
    write_json(path / INDEX, index)
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != MANIFEST and not _foreign(f, path))
    checksums = {f.relative_to(path).as_posix(): sha256(f) for f in files}
    write_json(path / MANIFEST, {"schema": SCHEMA, "sha256": checksums})
    return Package(path, config, _digest(checksums))


def open_package(path: str | Path) -> Package:
    """Check a package whole and read its configuration.

    Raises ``ValueError`` for a folder that is missing, is no package, is of another schema, or has a file missing,
    changed or, in one of its folders, added (``exports`` aside, which has a manifest of its own).
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"there is no model folder {path}")
    if not (path / MANIFEST).is_file() and (path / "config.json").is_file():
        raise ValueError(
            f"{path} is no model package: it has no {MANIFEST}; `syncflow import` makes a package of published weights"
        )
    if not (path / MANIFEST).is_file() and (path / "model" / MANIFEST).is_file():
        raise ValueError(f"{path} is the folder of a training run; its model is {path / 'model'}")
    manifest, index = read_json(path, MANIFEST), read_json(path, INDEX)
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"{path} has package schema {manifest.get('schema')}; this version reads schema {SCHEMA}")
    checksums = manifest.get("sha256")
    if not isinstance(checksums, dict) or INDEX not in checksums:
        raise ValueError(f"{path / MANIFEST} lists no checksums; the package is damaged")
    for component in COMPONENTS:
        if f"{component}/config.json" not in checksums:
            raise ValueError(f"{path / MANIFEST} lists no {component}/config.json; the package is incomplete")
    for file in path.glob("*/**/*"):
        place = file.relative_to(path)
        if (
            file.is_file()
            and place.parts[0] != EXPORTS
            and place.as_posix() not in checksums
            and not _foreign(file, path)
        ):
            raise ValueError(f"{file} is not listed in {MANIFEST}; the package was changed")
    for name, expected in checksums.items():
        if not is_inside(name):
            raise ValueError(f"{path / MANIFEST} lists {shown(name)}; it must list files of its own folder")
        file = path / name
        if not os.path.isfile(file):
            raise ValueError(f"{path} lacks {shown(name)[1:-1]}; the package is incomplete")
        try:
            found = sha256(file)
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror})") from None
        if found != expected:
            raise ValueError(f"{file} does not match its checksum; the package is damaged")
    settings = index.get("syncflow")
    if not isinstance(settings, dict):
        raise ValueError(f"{path / INDEX} holds no syncflow configuration")
    return Package(path, ModelConfig.from_dict(settings), _digest(checksums))


def read_json(path: Path, name: str, kind: str = "model package", *, finite: bool = True) -> dict[str, Any]:
    """The object in a file of a folder, which is of a ``kind``. Raises ``ValueError`` where there is none."""
    file = path / name
    if not file.is_file():
        raise ValueError(f"{path} is no {kind}: it has no {name}")
    values = parse_json(file, finite=finite)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return values


def parse_json(file: Path, *, finite: bool = True) -> Any:
    """The value in a file, with ``finite`` numbers alone. Raises ``ValueError`` for anything that is not JSON."""
    number = _finite if finite else float
    try:
        if file.stat().st_size > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON >> 20} MB")
        return json.loads(file.read_text(encoding="utf-8"), parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError(f"{file} cannot be read as JSON (it is nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from None


def is_inside(name: str) -> bool:
    """Whether a relative name, with slashes, stays in the folder that it is of, on every system."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not any(sign in name for sign in "\\:\0")


def _finite(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:20]} is no finite number")


def _foreign(file: Path, folder: Path) -> bool:
    """Whether a file is none of a package's: hidden, or left behind by a file manager."""
    return any(part.startswith(".") or part in LEFT_BEHIND for part in file.relative_to(folder).parts)


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write an object as a person reads it."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """That of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(checksums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
