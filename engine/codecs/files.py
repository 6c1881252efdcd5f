"""Component folders on disk: ``config.json`` beside safetensors. Local files, never pickles, never half-written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..package import parse_json
from ..quantization import converted
from ..replacement import replacement

INSTALL = "install it with `pip install syncflow[codecs]`"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
MAPPED_BYTES = 256 << 20  # read of a file before what was read is let go
LARGE_BYTES = 1 << 30
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand)
SPARE_ELEMENTS, SPARE_CALLS = 1 << 24, 1000  # tables and buffers that are not stored
INITIALISERS = (Tensor.normal_, Tensor.uniform_)


class skip_initialization(TorchFunctionMode):
    """A ``with`` block whose modules keep parameters as they were allocated: for weights that are read right after.

    As fast as the meta device, but without PyTorch's shape rules in Python, whose import alone takes two seconds.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The tensor as it is, in place of its initialisation."""
        if getattr(function, "__module__", None) == "torch.nn.init" or function in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a component folder. Raises ``ValueError`` when it is missing or is not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json; a component folder has config.json and safetensors weights")
    config = parse_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; it must hold a JSON object")
    return config


class bounded(TorchFunctionMode):
    """A ``with`` block that builds a module for ``tensors``: it makes about as many tensors, of about as many elements.

    A configuration that asks for more than its weights hold is refused before memory or minutes are spent on it, and
    what else a foreign configuration makes a module raise becomes one ``ValueError`` too.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.folder = folder
        self.elements = 2 * sum(tensor.numel() for tensor in tensors.values()) + SPARE_ELEMENTS
        self.calls = 4 * len(tensors) + SPARE_CALLS

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The call itself, counted where it makes a tensor of a size."""
        if function in FACTORIES:
            sizes = args or (kwargs or {}).get("size", ())
            self.calls -= 1
            self.elements -= math.prod(sizes[0] if sizes and not isinstance(sizes[0], int) else sizes)
            if self.calls < 0 or self.elements < 0:
                raise ValueError(f"{self.folder / 'config.json'} describes a larger model than its weights hold")
        return function(*args, **(kwargs or {}))

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Leave the mode; errors of the block as one sentence."""
        super().__exit__(kind, error, traceback)
        if isinstance(error, Exception) and not isinstance(error, ValueError):
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{self.folder / 'config.json'} describes no model that can be built ({said})") from None


def check_weights(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse weights that are no finite floating-point numbers. Raises ``ValueError`` with the name of the first."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"{file} holds {name} in {str(tensor.dtype).removeprefix('torch.')}; weights must be in "
                "float16, bfloat16, float32 or float64"
            )
        if tensor.numel() and not tensor.is_meta and not all(bound.isfinite() for bound in tensor.aminmax()):
            raise ValueError(f"{file} holds NaN or infinity in {name}; weights must be finite numbers")


def check_statistics(shift: Tensor, scale: Tensor, folder: Path) -> None:
    """Refuse means and deviations of latents that would make every latent infinite. Raises ``ValueError``."""
    if not shift.is_meta and not (shift.isfinite().all() and scale.isfinite().all() and (scale != 0).all()):
        raise ValueError(f"{folder / 'config.json'} gives means or deviations of latents that are not finite or are 0")


def read_weights(
    folder: Path, stem: str, forms: Mapping[str, Tensor] | None = None, *, values: bool = True
) -> dict[str, Tensor]:
    """Tensors of ``<stem>.safetensors`` or of its shards, memory-mapped. Raises ``ValueError`` for none or a corrupt
    one.

    A tensor that ``forms`` names is converted while it is read, to the type of the one there
    (:func:`~syncflow.engine.quantization.converted`), and what was read of the file is let go, so that the file is
    never in memory as a whole beside its conversion. Without ``values`` tensors are on the meta device, and
    only the header of the file is read.
    """
    from safetensors import SafetensorError

    paths = sorted({*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")})
    if not paths:
        raise ValueError(f"{folder} holds no {stem}.safetensors; only safetensors weights are read, never pickles")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            for name, tensor in _stored_tensors(path) if values else _outlines(path):
                check_weights({name: tensor}, path)
                tensors[name] = converted(tensor, (forms or {}).get(name, tensor))
                del tensor  # before the next one is read: it holds the file
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    return tensors


def _stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, mapped into memory; after every ``MAPPED_BYTES`` by another mapping."""
    from safetensors import safe_open

    names: list[str] | None = None
    while names is None or names:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys()) if names is None else names
            left = MAPPED_BYTES
            while names and left > 0:
                tensor = file.get_tensor(names[0])
                left -= tensor.nbytes
                yield names.pop(0), tensor
                del tensor


def _outlines(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file on the meta device."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            found = file.get_slice(name)
            dtype = STORED.get(found.get_dtype(), torch.int64)
            yield name, torch.empty(found.get_shape(), dtype=dtype, device="meta")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Strict load. Tensors that have the type of the module's become its own, the others are converted.

    Raises ``ValueError`` naming the first keys or shapes that do not fit.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"the weights in {folder} do not fit their config.json: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    wrong = [name for name, tensor in own.items() if tensor.shape != tensors[name].shape]
    if wrong:
        raise ValueError(
            f"the weights in {folder} do not fit their config.json: {wrong[0]} is {tuple(tensors[wrong[0]].shape)}, "
            f"it must be {tuple(own[wrong[0]].shape)}"
        )
    module.load_state_dict({name: tensors[name].to(tensor.dtype) for name, tensor in own.items()}, assign=True)


@contextmanager
def building(
    folder: Path, tensors: Mapping[str, Tensor], *, initialized: bool = False, all_stored: bool = False
) -> Iterator[None]:
    """A ``with`` block that builds a module for ``tensors``, as :class:`bounded`.

    Tensors without values get a module on the meta device. So do those of a large model where ``all_stored`` says that
    they take the place of every tensor of the module. Others get one without initialisation, unless ``initialized``.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    on_meta = any(tensor.is_meta for tensor in tensors.values()) or (all_stored and size > LARGE_BYTES)
    place = torch.device("meta") if on_meta else nullcontext() if initialized else skip_initialization()
    with bounded(folder, tensors), place:
        yield


def stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as it is written: in ``dtype``, or in float32 where that would make values infinite; contiguous."""
    own = tensor.detach().cpu()
    if dtype is None or not own.is_floating_point():
        return own.contiguous()
    smaller = own.to(dtype)
    if smaller.isinf().any() and not own.isinf().any():
        return own.float().contiguous()
    return smaller.contiguous()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions of any new file; the library's own can be read by their owner alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata)
    path.chmod(mode)


def write_component(
    folder: Path, config: Mapping[str, Any], module: nn.Module, stem: str, dtype: torch.dtype | None = None
) -> None:
    """Write weights (``stored`` in ``dtype``), then ``config.json``; each beside its place, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():  # a tensor under two names is stored once, under the first
        if tensor.data_ptr() not in seen:
            tensors[name] = stored(tensor, dtype)
        seen.add(tensor.data_ptr())
    with replacement(folder / f"{stem}.safetensors") as part:
        save_tensors(tensors, part, {"format": "pt"})
    with replacement(folder / "config.json") as part:
        part.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
