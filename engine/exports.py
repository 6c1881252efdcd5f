"""Graphs that were exported from a model, on disk: read, checked, written.

A folder of them holds graph files, ``constants.safetensors`` with the weights that no graph holds, and a
``manifest.json`` of its own: what every graph takes and gives, the hash of the model that they belong to, the versions
that wrote them, the sha256 of every file, and what ``syncflow verify`` found. It stands in the package
(``exports/onnx``, ``exports/aoti/cpu``, ``exports/tensorrt/cuda``) or, for a package that must not be written to, in
the user's cache under the model's hash. ``.pt2`` and ``.plan`` files are machine code: nothing of a folder is loaded
before :meth:`Export.check`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from .package import EXPORTS, MANIFEST, read_json, sha256, write_json

SCHEMA = 2
CONSTANTS = "constants.safetensors"
STEP = "step"

Format = Literal["onnx", "aoti", "tensorrt"]
Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Port:
    """A tensor that a graph takes or gives: its type, and its lengths, free ones by name."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Axis:
    """Lengths that a free axis may have: from ``least`` to ``most`` (None: no limit) in steps of ``step``; ``usual``
    is that of the model's own clip."""

    least: int
    most: int | None
    usual: int
    step: int = 1

    def allows(self, length: int) -> bool:
        """Whether a graph computes this length."""
        within = self.least <= length and (self.most is None or length <= self.most)
        return within and (length - self.least) % self.step == 0


@dataclass(frozen=True)
class GraphSpec:
    """A graph in ``file``, with what it takes and gives, in order, and the free axes among it by name."""

    file: str
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    axes: Mapping[str, Axis]

    def takes(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes have lengths that the graph computes."""
        return all(
            self.axes[stated].allows(length) if isinstance(stated, str) else stated == length
            for name, shape in shapes.items()
            for stated, length in zip(self.inputs[name].shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Proof:
    """What ``syncflow verify`` found of one runtime of this ``version``, computing in this precision on this device.

    ``errors`` by graph, relative to the largest element, None for a graph that failed; ``bound`` is what they may be.
    ``seconds`` that a ``step`` took, here and without exports, and every codec, here and in PyTorch. ``processor`` is
    where all of that was found: on another one a library may compute other numbers, in another time.
    """

    runtime: str
    version: str
    device: Device
    precision: Precision
    errors: Mapping[str, float | None]
    bound: float
    seconds: Mapping[str, Sequence[float]]
    processor: str = ""

    @property
    def of(self) -> tuple[str, Device, Precision, str]:
        """Of what, whatever the version."""
        return self.runtime, self.device, self.precision, self.processor

    def holds(self, graphs: Iterable[str]) -> bool:
        """Whether the errors of these graphs are known and within their bound."""
        errors = [self.errors.get(name) for name in graphs]
        return all(error is not None and error <= self.bound for error in errors)

    def speed(self, part: str = STEP) -> float:
        """How often this runtime does a part while it is done once without exports; 0 if nobody measured it."""
        here, otherwise = self.seconds.get(part, (1.0, 0.0))
        return otherwise / here


@dataclass(frozen=True)
class Export:
    """A folder of graphs whose manifest was read; its files are not yet checked.

    ``model`` is the hash of the package that they belong to, ``device`` and ``machine`` what code in them was compiled
    for, ``missing`` the graphs that could not be exported and why.
    """

    path: Path
    model: str
    format: Format
    device: Device | Literal["any"]
    precision: Precision
    graphs: Mapping[str, GraphSpec]
    versions: Mapping[str, str]
    checksums: Mapping[str, str]
    machine: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()

    @classmethod
    def read(cls, path: Path, model: str) -> Self:
        """The export in a folder, of the model with this hash.

        Raises ``ValueError`` for a folder that is none, was written by a newer version, belongs to another model or has
        a manifest that does not say what it should.
        """
        manifest = read_json(path, MANIFEST, "export", finite=False)  # an error may be infinite
        if manifest.get("schema") != SCHEMA:
            raise ValueError(
                f"{path} has export schema {manifest.get('schema')}; this version reads schema {SCHEMA}: "
                "export the model again with `syncflow export`"
            )
        if manifest.get("model") != model:
            raise ValueError(f"{path} belongs to another model; export this one with `syncflow export`")
        try:
            export = cls._from_dict(path, manifest)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path / MANIFEST} is damaged ({type(error).__name__}: {error})") from None
        files = {CONSTANTS, *(graph.file for graph in export.graphs.values())}
        if strangers := sorted(files - export.checksums.keys()):
            raise ValueError(f"{path / MANIFEST} lists no checksum of {strangers[0]}; the export is damaged")
        return export

    @classmethod
    def _from_dict(cls, path: Path, manifest: dict[str, Any]) -> Self:
        values = {name: value for name, value in manifest.items() if name != "schema"}
        for name, kind in (("format", Format), ("precision", Precision)):
            if values[name] not in get_args(kind):
                raise ValueError(f"{name} is {values[name]!r}")
        checksums = values.pop("sha256")
        for name in ("versions", "missing"):
            if not isinstance(values[name], dict):
                raise ValueError(f"{name} is {values[name]!r}")
        if not isinstance(checksums, dict) or any(Path(name).name != name for name in checksums):
            raise ValueError("its checksums are not those of files in its folder")
        graphs = {
            name: GraphSpec(
                graph["file"],
                _ports(graph["inputs"]),
                _ports(graph["outputs"]),
                {axis: Axis(**lengths) for axis, lengths in graph["axes"].items()},
            )
            for name, graph in values.pop("graphs").items()
        }
        proofs = tuple(Proof(**proof) for proof in values.pop("proofs"))
        return cls(path, graphs=graphs, checksums=checksums, proofs=proofs, **values)

    def check(self) -> Self:
        """The same, whose files are all there and as they were written.

        Raises ``ValueError`` for a file that is missing or changed.
        """
        for name, expected in self.checksums.items():
            file = self.path / name
            if not file.is_file():
                raise ValueError(f"{self.path} lacks {name}; the export is incomplete")
            if sha256(file) != expected:
                raise ValueError(f"{file} does not match its checksum; the export is damaged")
        return self

    def write(self) -> None:
        """Put the manifest in its place, whole."""
        values = {"schema": SCHEMA, **asdict(self)}
        del values["path"]
        values["sha256"] = values.pop("checksums")
        part = self.path / f".{MANIFEST}.part"
        write_json(part, values)
        os.replace(part, self.path / MANIFEST)

    def proven(self, proof: Proof) -> Self:
        """The same with what was found of a runtime, in place of what was found of it before."""
        return replace(self, proofs=(*(p for p in self.proofs if p.of != proof.of), proof))

    def proof(self, runtime: str, device: Device, precision: Precision, processor: str) -> Proof | None:
        """What was found of a runtime on a processor, if anything was."""
        return next((p for p in self.proofs if p.of == (runtime, device, precision, processor)), None)

    def elsewhere(self, runtime: str, device: Device, precision: Precision, processor: str) -> list[str]:
        """The other processors on which something was found of a runtime."""
        wanted = runtime, device, precision
        return [p.processor for p in self.proofs if p.of[:3] == wanted and p.processor != processor]


@dataclass(frozen=True)
class Places:
    """Where exports of a model may lie: its package, and the cache of the user."""

    package: Path | None
    model: str

    def folders(self, format: Format, device: Device, precision: Precision) -> list[Path]:
        """Every folder in which such an export may lie, the package's first."""
        name = folder_name(format, device, precision)
        in_package = [] if self.package is None else [self.package / EXPORTS / name]
        in_cache = [cache_folder() / self.model / name] if self.model else []
        return [*in_package, *in_cache]

    def find(self, format: Format, device: Device, precision: Precision) -> Path | None:
        """The folder of such an export, if there is one."""
        folders = self.folders(format, device, precision)
        return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)

    def all(self) -> list[Path]:
        """The folders of all exports that there are."""
        found = [
            self.find(format, device, precision)
            for format in get_args(Format)
            for device in get_args(Device)
            for precision in get_args(Precision)
        ]
        return list(dict.fromkeys(folder for folder in found if folder is not None))


def folder_name(format: Format, device: Device, precision: Precision) -> str:
    """Within ``exports``: ONNX graphs serve every device, compiled ones theirs. Other precisions carry their name."""
    name = format if format == "onnx" else f"{format}/{device}"
    return name if precision == "float32" else f"{name}-{precision}"


def cache_folder() -> Path:
    """The user's cache: ``$SYNCFLOW_CACHE``, or ``~/.cache/syncflow``."""
    place = os.environ.get("SYNCFLOW_CACHE")
    return Path(place) if place else Path.home() / ".cache" / "syncflow"


def _ports(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Port]:
    return {name: Port(port["dtype"], _lengths(port["shape"])) for name, port in values.items()}


def _lengths(shape: Sequence[int | str]) -> tuple[int | str, ...]:
    return tuple(shape)
