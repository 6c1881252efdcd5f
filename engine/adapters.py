"""Adapters (LoRA) of a model: read from peft's folders, used by single requests, or merged into the weights.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, whose names are
``base_model.model.<layer>.lora_A.weight`` (r, in) and ``.lora_B.weight`` (out, r). The layer is named as in the d-DiT
(``video.spatial_blocks.0.attn.qkv``) or as in Open-Sora's STDiT3, without ``video.``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .codecs.files import read_weights, save_tensors
from .model import DDiT
from .model.lora import AdaptedModel, LowRank, merge, target_layers
from .package import read_json
from .quantization import is_quantized
from .replacement import replacement
from .validation import shown, text, whole_between

CONFIG, STEM = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
PARTS = {".lora_A.weight": "down", ".lora_B.weight": "up"}
REFUSED = ("use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication")
MOST_RANK = 4096


@dataclass(frozen=True)
class Adapter:
    """The branches of an adapter by the name of their layer, its scale in them."""

    branches: Mapping[str, LowRank]

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: DDiT) -> Adapter:
        """Read a folder in peft's format for the layers of ``model``.

        Raises ``ValueError`` for a folder of another kind, for settings that are not supported, and for tensors that
        are unknown (all of them are listed), missing, misshapen or not finite.
        """
        folder = Path(folder)
        config = read_json(folder, CONFIG, "adapter in peft's format")
        if config.get("peft_type") != "LORA":
            raise ValueError(f"{folder} holds a {config.get('peft_type')!r} adapter; it must be 'LORA'")
        if used := [name for name in REFUSED if config.get(name)]:
            raise ValueError(f"{folder} uses {', '.join(used)}; adapters are plain low-rank branches")
        if config.get("bias", "none") != "none":
            raise ValueError(f"{folder} trains biases ({config['bias']!r}); bias must be 'none'")
        tensors, layers = read_weights(folder, STEM), target_layers(model)
        found: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for key, tensor in tensors.items():
            part = next((part for part in PARTS if key.endswith(part)), None)
            name = key.removeprefix(PREFIX).removesuffix(part or "")
            name = name if name in layers else f"video.{name}"
            if part is None or name not in layers:
                unknown.append(key)
            else:
                found.setdefault(name, {})[PARTS[part]] = tensor
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ValueError(f"{folder} has tensors of no layer that an adapter can change: {names}")
        if not found:
            raise ValueError(f"{folder} has no tensors; an adapter has at least one layer")
        return cls({name: _branch(folder, config, name, parts, layers[name]) for name, parts in found.items()})

    def save_pretrained(self, folder: str | Path, alpha: float | None = None) -> None:
        """Write a folder in peft's format, which :meth:`from_pretrained` and peft read; the scale goes into B.

        ``alpha`` is the numerator of the scale that readers apply, by default the rank, a scale of 1.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ranks = {name: len(branch.down) for name, branch in self.branches.items()}
        rank = max(ranks.values())
        scales = {name: (alpha or rank) / size for name, size in ranks.items()}
        tensors = {}
        for name, branch in self.branches.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = branch.down.detach().cpu().contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = (branch.up.detach() / scales[name]).cpu().contiguous()
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": alpha or rank,
            "rank_pattern": {name: size for name, size in ranks.items() if size != rank},
            "target_modules": sorted(self.branches),
            "bias": "none",
            "lora_dropout": 0.0,
        }
        with replacement(folder / f"{STEM}.safetensors") as part:
            save_tensors(tensors, part, {"format": "pt"})
        with replacement(folder / CONFIG) as part:
            part.write_text(json.dumps(config, indent=2) + "\n")


def _branch(
    folder: Path, config: Mapping[str, Any], name: str, parts: Mapping[str, Tensor], layer: torch.nn.Linear
) -> LowRank:
    """The branch of one layer, scaled by alpha / r (or alpha / sqrt(r))."""
    for part in PARTS.values():
        if part not in parts:
            raise ValueError(f"{folder} has only one of lora_A and lora_B for {name}; a layer needs both")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if down.ndim == 2 else 0
    if rank < 1 or down.shape != (rank, layer.in_features) or up.shape != (layer.out_features, rank):
        raise ValueError(
            f"{folder} has matrices {tuple(down.shape)} and {tuple(up.shape)} for {name}; they must be "
            f"(r, {layer.in_features}) and ({layer.out_features}, r)"
        )
    whole_between(f"the rank of {name}", rank, 1, MOST_RANK)
    alpha = _of_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", rank))
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"{folder} says lora_alpha {alpha!r} for {name}; it must be a number")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(down.float(), up.float() * scale)


def _of_pattern(pattern: Any, name: str, otherwise: Any) -> Any:
    """The value for a layer: of the first key that is its name or the end of it, as peft matches them."""
    for key, value in (pattern or {}).items():
        if name == key or name.endswith(f".{key}"):
            return value
    return otherwise


class Adapters:
    """The adapters of an engine, by name; numbers never change, so that running requests keep theirs."""

    def __init__(self, model: DDiT) -> None:
        self.model = model
        self.adapted: AdaptedModel | None = None
        self.loaded: dict[str, Adapter] = {}
        self.numbers: dict[str, int] = {}
        self._next = 0

    def load(self, folder: str | Path, name: str | None = None) -> str:
        """Read an adapter and keep it under ``name``, by default that of its folder. -> the name.

        Raises ``ValueError`` for a name in use and as :meth:`Adapter.from_pretrained`.
        """
        name = text("name", Path(folder).resolve().name if name is None else name)
        if not name or name in self.loaded:
            raise ValueError(f"the name {shown(name)} is taken or empty; give the adapter another")
        adapter = Adapter.from_pretrained(folder, self.model)
        if self.adapted is None:
            self.adapted = AdaptedModel(self.model)
        self.numbers[name], self._next = self._next, self._next + 1
        self.adapted.add(self.numbers[name], adapter.branches)
        self.loaded[name] = adapter
        return name

    def unload(self, name: str) -> None:
        """Forget an adapter. Raises ``ValueError`` for a name that is not loaded."""
        self.check([name])
        assert self.adapted is not None
        self.adapted.remove(self.numbers.pop(name))
        del self.loaded[name]

    def merge(self, name: str, weight: float = 1.0) -> None:
        """Add an adapter to the weights of the model for good, and forget it."""
        self.check([name])
        if is_quantized(self.model):
            raise ValueError("quantized weights take no merged adapter; name the adapter in requests instead")
        merge(self.model, self.loaded[name].branches, weight)
        self.unload(name)

    def check(self, names: Iterable[str]) -> None:
        """Raise ``ValueError`` for the first name that is not loaded."""
        for name in names:
            if name not in self.loaded:
                known = ", ".join(sorted(self.loaded)) or "none"
                raise ValueError(f"there is no adapter {shown(name)}; loaded are {known}")

    def rows(self, weights: Tensor | None) -> AbstractContextManager[None]:
        """A context in which the rows of a pass have these weights (R, K)."""
        return nullcontext() if self.adapted is None else self.adapted.rows.set(weights)

    def weights(self, of_texts: Sequence[Sequence[tuple[str, float]]]) -> Tensor:
        """The weights (P, K) of K numbers for P texts; an adapter that was unloaded counts nothing."""
        table = torch.zeros(len(of_texts), self._next)
        for row, used in enumerate(of_texts):
            for name, weight in used:
                if name in self.numbers:
                    table[row, self.numbers[name]] += weight
        return table
