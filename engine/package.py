"""The engine package: a model on disk in the diffusers layout, with checksums.

``model_index.json`` names the components and carries the model's configuration; a folder per component holds
``config.json`` and safetensors; ``manifest.json`` holds the schema version and the sha256 of every file. Nothing in a
package is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ModelConfig

SCHEMA = 1
INDEX, MANIFEST = "model_index.json", "manifest.json"
COMPONENTS = ("ddit", "video_vae", "audio_vae", "text_encoder")
EXPORTS = "exports"


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
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != MANIFEST)
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
        if file.is_file() and place.parts[0] != EXPORTS and place.as_posix() not in checksums:
            raise ValueError(f"{file} is not listed in {MANIFEST}; the package was changed")
    for name, expected in checksums.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{path} lacks {name}; the package is incomplete")
        if sha256(file) != expected:
            raise ValueError(f"{file} does not match its checksum; the package is damaged")
    settings = index.get("syncflow")
    if not isinstance(settings, dict):
        raise ValueError(f"{path / INDEX} holds no syncflow configuration")
    return Package(path, ModelConfig.from_dict(settings), _digest(checksums))


def read_json(path: Path, name: str, kind: str = "model package") -> dict[str, Any]:
    """The object in a file of a folder, which is of a ``kind``. Raises ``ValueError`` where there is none."""
    file = path / name
    if not file.is_file():
        raise ValueError(f"{path} is no {kind}: it has no {name}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write an object as a person reads it."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """That of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(checksums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
