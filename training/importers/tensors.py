"""Tensors in files, one at a time: safetensors, their shards, and PyTorch files read with ``weights_only``.

A checkpoint of many gigabytes is never in memory as a whole: files are memory-mapped, and what is written is written
tensor by tensor.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...engine.package import is_inside, parse_json
from ...engine.validation import shown

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in NAMES.items()}
PICKLES = (".pt", ".pth", ".bin")


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one or several files, by name; ``read`` gives the values of one of them."""

    path: Path
    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a file, or of all weights of a folder: one safetensors file, its shards, or PyTorch files.

    Raises ``ValueError`` for a path without weights, for a damaged or missing file, for a name in two files, and for a
    PyTorch file that holds anything but tensors.
    """
    files = [path] if path.is_file() else _files_of(path)
    infos: dict[str, TensorInfo] = {}
    readers: dict[str, Callable[[str], Tensor]] = {}
    for file in files:
        found, read = _pickled(file) if file.suffix in PICKLES else _safetensors(file)
        if twice := sorted(infos.keys() & found.keys()):
            raise ValueError(f"{path} holds {twice[0]} in two files; a tensor must be in one")
        infos |= found
        readers |= dict.fromkeys(found, read)
    return TensorFiles(path, infos, lambda name: readers[name](name))


def _files_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no file or folder {folder}")
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        values = parse_json(index)
        shards = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ValueError(f"{index} has no weight_map; it must name the file of every tensor")
        files = sorted(set(shards.values()))
        for name in files:
            if not is_inside(name) or not (folder / name).is_file():
                raise ValueError(f"{index} names {shown(name)}, which is not in its folder")
        return [folder / name for name in files]
    files = sorted(folder.glob("*.safetensors")) or sorted(f for s in PICKLES for f in folder.glob(f"*{s}"))
    if not files:
        raise ValueError(f"{folder} holds no weights; it must hold .safetensors, .pt, .pth or .bin files")
    return files


def _safetensors(file: Path) -> tuple[dict[str, TensorInfo], Callable[[str], Tensor]]:
    try:
        opened = safe_open(file, framework="pt")
        infos = {}
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            infos[name] = TensorInfo(DTYPES[part.get_dtype()], tuple(part.get_shape()))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from None
    return infos, opened.get_tensor


def _pickled(file: Path) -> tuple[dict[str, TensorInfo], Callable[[str], Tensor]]:
    try:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of the format before PyTorch 1.6, which cannot be mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parts raise
        raise ValueError(f"{file} cannot be read as tensors ({str(error).splitlines()[0][:200]})") from None
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{file} must hold tensors by name, and nothing else")
    infos = {str(name): TensorInfo(x.dtype, tuple(x.shape)) for name, x in found.items()}
    return infos, found.__getitem__


def write_tensors(
    file: Path,
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a safetensors file of ``infos``, one tensor of ``read`` at a time; beside its place, then renamed.

    ``read`` may raise; then nothing is left of the file.
    """
    order = sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name))  # widest first keeps all aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + infos[name].nbytes
        shape = list(infos[name].shape)
        header[name] = {"dtype": NAMES[infos[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    beside = file.with_name(f".{file.name}.part")
    try:
        with beside.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                tensor = read(name).reshape(-1).contiguous()
                assert tensor.dtype == infos[name].dtype
                stream.write(tensor.view(torch.uint8).numpy().data)
                progress(name)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def mismatches(found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], what: str) -> list[str]:
    """One sentence for each tensor that is missing, unknown, misshapen, or in no floating-point type."""
    sentences = [f"{name} is missing." for name in expected if name not in found]
    for name, info in found.items():
        if name not in expected:
            sentences.append(f"{name} is no tensor of {what}.")
        elif info.shape != expected[name]:
            sentences.append(f"{name} is {_shape(info.shape)}; it must be {_shape(expected[name])}.")
        elif not info.dtype.is_floating_point:
            sentences.append(f"{name} is in {str(info.dtype).removeprefix('torch.')}; it must be floating point.")
    return sentences


def refuse(path: Path, what: str, sentences: Iterable[str], most: int = 10) -> None:
    """Raise ``ValueError`` with up to ``most`` of the ``sentences``, if there are any."""
    if found := list(sentences):
        more = f" And {len(found) - most} more." if len(found) > most else ""
        raise ValueError(f"{path} does not hold {what}. {' '.join(found[:most])}{more}")


def finite(path: Path, tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor of ``path`` in ``dtype``. Raises ``ValueError`` for NaN, infinity, and values that ``dtype`` lacks."""
    if not _is_finite(tensor):
        raise ValueError(f"{path} holds NaN or infinity in {name}; weights must be finite numbers")
    if dtype == tensor.dtype:
        return tensor
    if not _is_finite(stored := tensor.to(dtype)):
        limit = torch.finfo(dtype).max
        raise ValueError(f"{path} holds values in {name} beyond {limit:g}; store it in its own precision")
    return stored


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or all(bool(bound.isfinite()) for bound in tensor.aminmax())


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
