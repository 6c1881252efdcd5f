"""Exported graphs of a model on disk: reading, checking and writing their folder.

The folder has graph files, ``constants.safetensors`` with the weights that are in no graph, and a ``manifest.json``:
inputs and outputs of every graph, the hash of the model, library versions, the sha256 of every file, and the results
of ``syncflow verify``. It is in the model package (``exports/onnx``, ``exports/aoti/cpu``, ``exports/tensorrt/cuda``)
or, where the package is read-only, in the user's cache under the model's hash. ``.pt2`` and ``.plan`` files are machine
code: load nothing before :meth:`Export.check`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from .package import EXPORTS, MANIFEST, read_json, sha256, write_json
from .replacement import replacement

SCHEMA = 2
CONSTANTS = "constants.safetensors"
STEP = "step"

Format = Literal["onnx", "aoti", "tensorrt"]
Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph: dtype and shape, with dynamic axes by name."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Axis:
    """The range of a dynamic axis: ``least`` to ``most`` (None: no limit) in steps of ``step``.

    ``usual`` is the length for the model's own clip.
    """

    least: int
    most: int | None
    usual: int
    step: int = 1

    def allows(self, length: int) -> bool:
        """Whether the length is in the range."""
        within = self.least <= length and (self.most is None or length <= self.most)
        return within and (length - self.least) % self.step == 0


@dataclass(frozen=True)
class GraphSpec:
    """A graph in ``file``: its inputs and outputs, in order, and the dynamic axes by name."""

    file: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    axes: Mapping[str, Axis]

    def accepts(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether the graph computes inputs of these shapes."""
        return all(
            self.axes[stated].allows(length) if isinstance(stated, str) else stated == length
            for name, shape in shapes.items()
            for stated, length in zip(self.inputs[name].shape, shape, strict=True)
        )


@dataclass(frozen=True)
class VerificationResult:
    """The result of ``syncflow verify`` for one runtime, device and precision on one processor.

    ``version`` of the runtime's library. ``errors`` by graph, relative to the largest element, None for a graph that
    failed; ``bound`` is the largest allowed. ``seconds`` by part (a ``step``, or a codec's graph): in this runtime, and
    without exports. Errors and times hold for this ``processor`` alone.
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
    def key(self) -> tuple[str, Device, Precision, str]:
        """Runtime, device, precision and processor: a later result with the same key replaces this one."""
        return self.runtime, self.device, self.precision, self.processor

    def within_bound(self, graphs: Iterable[str]) -> bool:
        """Whether the errors of all these graphs are known and at most ``bound``."""
        errors = [self.errors.get(name) for name in graphs]
        return all(error is not None and error <= self.bound for error in errors)

    def speedup(self, part: str = STEP) -> float:
        """Time without exports over time in this runtime, for a part; 0 if it was not measured."""
        here, otherwise = self.seconds.get(part, (1.0, 0.0))
        return otherwise / here


@dataclass(frozen=True)
class Export:
    """A folder of exported graphs with a valid manifest; :meth:`check` compares its files with their checksums.

    ``model`` is the hash of the model package; ``device`` and ``machine`` are those that the graphs were compiled for;
    ``missing`` has the graphs that could not be exported, with the reason. ``results`` are ``proofs`` in the manifest.
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
    results: tuple[VerificationResult, ...] = ()

    @classmethod
    def read(cls, path: Path, model: str) -> Self:
        """Read the manifest of an export of the model with this hash.

        Raises ``ValueError`` for a missing or damaged manifest, another schema version, and another model.
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
        if unlisted := sorted(files - export.checksums.keys()):
            raise ValueError(f"{path / MANIFEST} lists no checksum of {unlisted[0]}; the export is damaged")
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
                _specs(graph["inputs"]),
                _specs(graph["outputs"]),
                {axis: Axis(**lengths) for axis, lengths in graph["axes"].items()},
            )
            for name, graph in values.pop("graphs").items()
        }
        results = tuple(VerificationResult(**result) for result in values.pop("proofs"))
        return cls(path, graphs=graphs, checksums=checksums, results=results, **values)

    def check(self) -> Self:
        """Check the sha256 of every file, and return the export.

        Raises ``ValueError`` for a missing or changed file.
        """
        for name, expected in self.checksums.items():
            file = self.path / name
            if not file.is_file():
                raise ValueError(f"{self.path} lacks {name}; the export is incomplete")
            if sha256(file) != expected:
                raise ValueError(f"{file} does not match its checksum; the export is damaged")
        return self

    def write(self) -> None:
        """Write the manifest beside its place, and rename it."""
        values = {"schema": SCHEMA, **asdict(self)}
        del values["path"]
        values["sha256"] = values.pop("checksums")
        values["proofs"] = values.pop("results")
        with replacement(self.path / MANIFEST) as part:
            write_json(part, values)

    def with_result(self, result: VerificationResult) -> Self:
        """A copy with one more result, in place of an earlier one with the same key."""
        return replace(self, results=(*(old for old in self.results if old.key != result.key), result))

    def find_result(
        self, runtime: str, device: Device, precision: Precision, processor: str
    ) -> VerificationResult | None:
        """The result of a runtime on a processor, if there is one."""
        return next((one for one in self.results if one.key == (runtime, device, precision, processor)), None)

    def other_processors(self, runtime: str, device: Device, precision: Precision, processor: str) -> list[str]:
        """Processors other than this one for which there are results of a runtime."""
        wanted = runtime, device, precision
        return [one.processor for one in self.results if one.key[:3] == wanted and one.processor != processor]


@dataclass(frozen=True)
class ExportLocations:
    """Where exports of a model are searched: its package, then the user's cache."""

    package: Path | None
    model: str

    def folders(self, format: Format, device: Device, precision: Precision) -> list[Path]:
        """The candidate folders of an export, the package's first."""
        name = folder_name(format, device, precision)
        in_package = [] if self.package is None else [self.package / EXPORTS / name]
        in_cache = [cache_folder() / self.model / name] if self.model else []
        return [*in_package, *in_cache]

    def find(self, format: Format, device: Device, precision: Precision) -> Path | None:
        """The first folder with a manifest, if there is one."""
        folders = self.folders(format, device, precision)
        return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)

    def all(self) -> list[Path]:
        """The folders of all exports."""
        found = [
            self.find(format, device, precision)
            for format in get_args(Format)
            for device in get_args(Device)
            for precision in get_args(Precision)
        ]
        return list(dict.fromkeys(folder for folder in found if folder is not None))


def folder_name(format: Format, device: Device, precision: Precision) -> str:
    """Folder below ``exports``: ``onnx``, ``aoti/cpu``; with a suffix for a precision other than float32."""
    name = format if format == "onnx" else f"{format}/{device}"
    return name if precision == "float32" else f"{name}-{precision}"


def cache_folder() -> Path:
    """The user's cache: ``$SYNCFLOW_CACHE``, or ``~/.cache/syncflow``."""
    place = os.environ.get("SYNCFLOW_CACHE")
    return Path(place) if place else Path.home() / ".cache" / "syncflow"


def _specs(values: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(spec["dtype"], _lengths(spec["shape"])) for name, spec in values.items()}


def _lengths(shape: Sequence[int | str]) -> tuple[int | str, ...]:
    return tuple(shape)
