"""Component folders on disk: ``config.json`` beside safetensors. Local files, never pickles, never half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

INSTALL = "install it with `pip install syncflow[codecs]`"
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
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no config.json; a component folder has config.json and safetensors weights"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; it must hold a JSON object")
    return config


def read_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """Tensors of ``<stem>.safetensors`` or of its shards. Raises ``ValueError`` for none or a corrupt one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    paths = sorted({*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")})
    if not paths:
        raise ValueError(f"{folder} holds no {stem}.safetensors; only safetensors weights are read, never pickles")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    return tensors


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Strict load. Raises ``ValueError`` naming the first keys or shapes that do not fit."""
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
    module.load_state_dict(dict(tensors))


def write_component(
    folder: Path, config: Mapping[str, Any], module: nn.Module, stem: str, dtype: torch.dtype | None = None
) -> None:
    """Write weights (in ``dtype``, their own by default), then ``config.json``; each beside its place, then renamed."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():  # a tensor under two names is stored once, under the first
        if tensor.data_ptr() not in seen:
            stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            tensors[name] = tensor.detach().to("cpu", stored).contiguous()
        seen.add(tensor.data_ptr())
    beside = folder / f".{stem}.safetensors.part"
    save_file(tensors, beside, metadata={"format": "pt"})
    os.replace(beside, folder / f"{stem}.safetensors")
    beside = folder / ".config.json.part"
    beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, folder / "config.json")
