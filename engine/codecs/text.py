"""Text encoder: prompts -> T5 encoder states.

The tiny encoder reads bytes (``ByT5Tokenizer`` needs no vocabulary file) and is trained with the video tower; a full-size one is any local
T5 directory with its own tokenizer files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from .files import load_weights, read_config, read_weights, write_component

STEM = "model"
CLASS_NAME = "T5EncoderModel"
BYTE_VOCABULARY = 384
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")

TINY_SETTINGS: dict[str, Any] = {
    "vocab_size": BYTE_VOCABULARY,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}


class TextEncoder(nn.Module):
    """Prompts to states (P, L, W) and a mask (P, L), L = ``max_tokens``. A longer prompt is cut with a warning.

    ``settings`` are those of ``transformers.T5Config``; ``tokenizer`` a transformers tokenizer, bytes by default.
    """

    def __init__(self, settings: dict[str, Any] | None = None, max_tokens: int = 64, tokenizer: Any = None) -> None:
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

        super().__init__()
        self.model = T5EncoderModel(T5Config(**(TINY_SETTINGS if settings is None else {**TINY_SETTINGS, **settings})))
        self.max_tokens = max_tokens
        self.tokenizer = ByT5Tokenizer() if tokenizer is None else tokenizer

    @property
    def config(self) -> dict[str, Any]:
        """``T5Config`` and ours, as ``config.json`` holds them."""
        return {**self.model.config.to_diff_dict(), "_class_name": CLASS_NAME, "max_tokens": self.max_tokens}

    @classmethod
    def build(cls, settings: dict[str, Any], max_tokens: int) -> Self:
        """An untrained byte-level encoder."""
        return cls(settings, max_tokens)

    @classmethod
    def from_pretrained(cls, folder: str | Path, max_tokens: int | None = None) -> Self:
        """Read a T5 directory; tokenizer files in it, or in ``tokenizer`` beside it, are used, else bytes. Raises ``ValueError``."""
        folder = Path(folder)
        config = read_config(folder)
        homes = [home for home in (folder, folder.parent / "tokenizer") if any((home / n).is_file() for n in TOKENIZER_FILES)]
        tokenizer = None
        if homes:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(homes[0]), local_files_only=True)
        length = max_tokens or int(config.get("max_tokens", 300))
        ours = {"_class_name", "max_tokens", "architectures", "transformers_version", "model_type", "dtype", "torch_dtype"}
        encoder = cls({k: v for k, v in config.items() if k not in ours}, length, tokenizer)
        own = encoder.state_dict()
        tensors = {
            name if name.startswith("model.") else f"model.{name}": tensor
            for name, tensor in read_weights(folder, STEM).items()
        }
        shared = next((tensors[n] for n in ("model.shared.weight", "model.encoder.embed_tokens.weight") if n in tensors), None)
        if shared is not None:
            tensors |= {n: shared for n in ("model.shared.weight", "model.encoder.embed_tokens.weight") if n in own}
        load_weights(encoder, {name: t for name, t in tensors.items() if ".decoder." not in name and "lm_head" not in name}, folder)
        return encoder.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and safetensors; a tokenizer with files of its own goes along."""
        write_component(Path(folder), self.config, self, STEM)
        if type(self.tokenizer).__name__ != "ByT5Tokenizer":
            self.tokenizer.save_pretrained(str(folder))

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask (P, L), both int64."""
        encoded = self.tokenizer(list(prompts), padding="max_length", truncation=False, max_length=self.max_tokens)
        rows, masks = [], []
        for prompt, ids, mask in zip(prompts, encoded["input_ids"], encoded["attention_mask"], strict=True):
            if len(ids) > self.max_tokens:
                end = ids[len(ids) - 1]
                ids, mask = [*ids[: self.max_tokens - 1], end], mask[: self.max_tokens]
                warnings.warn(f"the prompt {prompt[:40]!r}… is cut to {self.max_tokens} tokens", UserWarning, stacklevel=2)
            rows.append(ids)
            masks.append(mask)
        return torch.tensor(rows), torch.tensor(masks)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (P, L, W)."""
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (P, L, W) and mask (P, L) of prompts, on the module's device."""
        device = self.model.shared.weight.device
        ids, mask = (x.to(device) for x in self.tokenize(prompts))
        return self(ids, mask), mask
