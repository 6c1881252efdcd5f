"""Text encoder: prompts -> states, a T5 encoder with its tokenizer.

The tiny one reads UTF-8 bytes (``ByT5Tokenizer``, no vocabulary file) and is trained together with the video tower.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from .files import read_config

BYTE_VOCABULARY = 384

TINY_SETTINGS: dict[str, Any] = {"d_model": 128, "num_layers": 2, "num_heads": 4, "d_ff": 256, "dropout_rate": 0.0}


class TextEncoder(nn.Module):
    """``encoder`` is a ``T5EncoderModel`` with its ``tokenizer``; prompts are padded or cut to ``max_tokens`` (L)."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, max_tokens: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.config: Any = encoder.config

    @property
    def width(self) -> int:
        """W, the width of the states."""
        return int(self.config.d_model)

    @classmethod
    def build(cls, settings: dict[str, Any] | None = None, max_tokens: int = 64) -> Self:
        """A byte-level encoder with fresh weights; ``settings`` are those of ``T5Config``, the tiny one by default."""
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

        values = dict(TINY_SETTINGS if settings is None else settings)
        values.setdefault("vocab_size", BYTE_VOCABULARY)
        values.setdefault("d_kv", values["d_model"] // values["num_heads"])
        return cls(T5EncoderModel(T5Config(**values)), ByT5Tokenizer(), max_tokens)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, tokenizer: str | Path | None = None, max_tokens: int | None = None
    ) -> Self:
        """Read a local T5 folder.

        The tokenizer is looked for in ``tokenizer``, in the folder itself and in a ``tokenizer`` folder beside it; a
        model with a byte vocabulary needs none. ``max_tokens`` defaults to what the folder says, or 300. Raises
        ``ValueError`` for a missing, foreign or damaged folder; only local safetensors are read.
        """
        from safetensors import SafetensorError
        from transformers import T5EncoderModel

        folder = Path(folder)
        config = read_config(folder)
        if config.get("model_type") not in ("t5", "mt5"):
            raise ValueError(f"{folder} holds a {config.get('model_type')!r} model; a text encoder must be a T5 ('t5')")
        try:
            with _no_bars():
                loaded: Any = T5EncoderModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
                encoder, report = loaded
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} cannot be read as a T5 encoder in safetensors: {error}") from None
        if report["missing_keys"] or report["mismatched_keys"]:
            wrong = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
            raise ValueError(
                f"the weights in {folder} do not fit their config.json: {len(wrong)} tensors, first {wrong[0]}"
            )
        limit = max_tokens or int(config.get("max_tokens", 300))
        return cls(encoder.eval(), _tokenizer(folder, tokenizer, config), limit)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder in the transformers layout, with ``max_tokens`` in ``config.json``, and the files of its
        tokenizer.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.max_tokens = self.max_tokens
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as beside, _no_bars():
            self.encoder.save_pretrained(beside)  # type: ignore[operator]
            if not _reads_bytes(self.tokenizer):
                self.tokenizer.save_pretrained(beside)
            for path in sorted(Path(beside).iterdir(), key=lambda p: p.name == "config.json"):
                os.replace(path, folder / path.name)

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) int64 and mask (B, L) bool of ``prompts``; one that is too long is cut with a warning."""
        found = self.tokenizer(prompts)["input_ids"]
        for prompt, ids in zip(prompts, found, strict=True):
            if len(ids) > self.max_tokens:
                warnings.warn(
                    f"the prompt has {len(ids)} tokens and is cut to {self.max_tokens}: {prompt[:40]!r}…", stacklevel=2
                )
        batch = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (B, L, W); those of padding are zero."""
        states = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states * mask.unsqueeze(-1).to(states.dtype)

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """States (B, L, W) and mask (B, L) of ``prompts``, on the encoder's device."""
        device = next(self.encoder.parameters()).device
        ids, mask = (x.to(device) for x in self.tokenize(prompts))
        return self(ids, mask), mask


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' own progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(folder: Path, given: str | Path | None, config: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer, ByT5Tokenizer

    places = [Path(given)] if given is not None else [folder, folder.parent / "tokenizer"]
    for place in places:
        if any((place / name).exists() for name in ("tokenizer_config.json", "tokenizer.json", "spiece.model")):
            try:
                return AutoTokenizer.from_pretrained(place, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(f"the tokenizer in {place} cannot be read: {error}") from None
    if given is None and config.get("vocab_size") == BYTE_VOCABULARY:
        return ByT5Tokenizer()
    raise ValueError(f"no tokenizer in {' or '.join(map(str, places))}; it needs tokenizer.json or spiece.model")


def _reads_bytes(tokenizer: Any) -> bool:
    return type(tokenizer).__name__ == "ByT5Tokenizer"
