"""Text encoder: prompts -> states, a T5 encoder with its tokenizer.

The tiny one reads UTF-8 bytes, for which no vocabulary file is needed, and is trained together with the video tower.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from ..validation import whole_between
from . import captions
from .files import INSTALL, building, read_config, read_weights, write_component
from .prior import PriorEncoder
from .t5 import T5Encoder

BYTE_VOCABULARY = 384
MOST_TOKENS = 65_536
STEM = "model"
PRIOR = "prior"  # folder of the prior encoder, in that of the text encoder

TINY_SETTINGS: dict[str, Any] = {"d_model": 128, "num_layers": 2, "num_heads": 4, "d_ff": 256, "dropout_rate": 0.0}


class Tokenizer(Protocol):
    """What a text encoder asks of a tokenizer; those of transformers have it."""

    def __call__(self, prompts: list[str], **settings: Any) -> Any:
        """``input_ids`` of ``prompts``, and with ``padding`` their ``attention_mask``."""

    def save_pretrained(self, folder: Any) -> Any:
        """Write the tokenizer's files."""


class ByteTokenizer:
    """The bytes of a prompt as ByT5 numbers them, from 3 on, and an end of 1; padding is 0."""

    def __call__(self, prompts: list[str], *, max_length: int | None = None, **_: Any) -> dict[str, Any]:
        """Ids of each prompt, or with a ``max_length`` all of them cut and padded to it, and their mask."""
        most = None if max_length is None else max_length - 1
        found = [[*(byte + 3 for byte in prompt.encode()[:most]), 1] for prompt in prompts]
        if max_length is None:
            return {"input_ids": found}
        ids, mask = (torch.zeros(len(found), max_length, dtype=torch.int64) for _ in range(2))
        for row, numbers in enumerate(found):
            ids[row, : len(numbers)], mask[row, : len(numbers)] = torch.tensor(numbers), 1
        return {"input_ids": ids, "attention_mask": mask}

    def save_pretrained(self, folder: Any) -> None:
        """There is nothing to write."""


class TextEncoder(nn.Module):
    """A :class:`~.t5.T5Encoder` with its ``tokenizer``; prompts are padded or cut to ``max_tokens`` (L).

    ``caption_style`` names what is done to a prompt before it is tokenized (:mod:`.captions`); nothing without a name.
    ``prior`` encodes the prior of a prompt, whose tokens are ``prior_tokenizer``'s, for a model that reads one.
    """

    def __init__(
        self,
        encoder: T5Encoder,
        tokenizer: Tokenizer,
        max_tokens: int,
        caption_style: str | None = None,
        prior: PriorEncoder | None = None,
        prior_tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.caption_style, self._caption = caption_style, captions.caption_style(caption_style)
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.prior, self.prior_tokenizer = prior, prior_tokenizer

    @property
    def width(self) -> int:
        """W, the width of the states."""
        return int(self.encoder.config["d_model"])

    @classmethod
    def build(cls, settings: dict[str, Any] | None = None, max_tokens: int = 64) -> Self:
        """A byte-level encoder with fresh weights; ``settings`` are those of ``T5Config``, the tiny one by default."""
        values = dict(TINY_SETTINGS if settings is None else settings)
        values.setdefault("vocab_size", BYTE_VOCABULARY)
        values.setdefault("d_kv", values["d_model"] // values["num_heads"])
        return cls(T5Encoder(values), ByteTokenizer(), max_tokens)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        tokenizer: str | Path | None = None,
        max_tokens: int | None = None,
        *,
        values: bool = True,
        forms: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Read a local T5 folder.

        The tokenizer is looked for in ``tokenizer``, in the folder itself and in a ``tokenizer`` folder beside it; a
        model with a byte vocabulary needs none. ``max_tokens`` defaults to what the folder says, or 300. Without
        ``values`` the encoder is on the meta device; ``forms`` as in :func:`~.files.read_weights`. Raises
        ``ValueError`` for a missing, foreign or damaged folder; only local safetensors are read.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config.get("model_type") not in ("t5", "mt5"):
            raise ValueError(f"{folder} holds a {config.get('model_type')!r} model; a text encoder must be a T5 ('t5')")
        try:
            tensors = read_weights(folder, STEM, forms, values=values)
        except ValueError as error:
            raise ValueError(f"{folder} cannot be read as a T5 encoder in safetensors: {error}") from None
        with building(folder, tensors, all_stored=True):
            encoder = T5Encoder(config)
            limit = whole_between("max_tokens", max_tokens or config.get("max_tokens", 300), 1, MOST_TOKENS)
        _load(encoder, tensors, folder)
        prior: PriorEncoder | None = None
        prior_tokenizer: Tokenizer | None = None
        if (folder / PRIOR).is_dir():
            prior = PriorEncoder.from_pretrained(folder / PRIOR, values=values)
            prior_tokenizer = _tokenizer(folder / PRIOR, None, prior.config)
        return cls(
            encoder.eval(),
            _tokenizer(folder, tokenizer, config),
            limit,
            config.get("caption_style"),
            prior,
            prior_tokenizer,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder in the transformers layout, with ``max_tokens`` in ``config.json``, and the files of its
        tokenizer.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as beside:
            self.tokenizer.save_pretrained(beside)
            for path in Path(beside).iterdir():
                os.replace(path, folder / path.name)
        config = self.encoder.config | {"architectures": ["T5EncoderModel"], "max_tokens": self.max_tokens}
        if self.caption_style is not None:
            config["caption_style"] = self.caption_style
        write_component(folder, config, self.encoder, STEM)
        if self.prior is not None and self.prior_tokenizer is not None:
            self.prior.save_pretrained(folder / PRIOR)
            self.prior_tokenizer.save_pretrained(folder / PRIOR)

    def encode_prior(self, prompt: str) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation (2 N, C) of the prior of a prompt; None without a prior encoder."""
        if self.prior is None or self.prior_tokenizer is None:
            return None
        prompt = prompt if self._caption is None else self._caption(prompt)
        mean, deviation = self.prior(self.prior.text_encoder.padded(self.prior_tokenizer([prompt])["input_ids"]))
        return mean[0], deviation[0]

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) int64 and mask (B, L) bool of ``prompts``; one that is too long is cut with a warning."""
        prompts = prompts if self._caption is None else [self._caption(prompt) for prompt in prompts]
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
        states = self.encoder(ids, mask)
        return states * mask.unsqueeze(-1).to(states.dtype)

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """States (B, L, W) and mask (B, L) of ``prompts``, on the encoder's device."""
        device = next(self.encoder.parameters()).device
        ids, mask = (x.to(device) for x in self.tokenize(prompts))
        return self(ids, mask), mask


def _load(encoder: T5Encoder, tensors: dict[str, Tensor], folder: Path) -> None:
    """Take the encoder's tensors out of those of a whole T5, in their own precision where they share one.

    Raises ``ValueError``.
    """
    found = dict(tensors)
    if "encoder.embed_tokens.weight" in found:
        found.setdefault("shared.weight", found["encoder.embed_tokens.weight"])
    own = encoder.state_dict()
    wrong = sorted(name for name, tensor in own.items() if name not in found or found[name].shape != tensor.shape)
    if wrong:
        raise ValueError(
            f"the weights in {folder} do not fit their config.json: {len(wrong)} tensors, first {wrong[0]}"
        )
    kept = {name: found[name] for name in own}
    # Products take one precision; ``wo`` may have another, to which its input is converted.
    if len({tensor.dtype for name, tensor in kept.items() if not name.endswith(".wo.weight")}) > 1:
        kept = {name: tensor.float() for name, tensor in kept.items()}
    encoder.load_state_dict(kept, assign=True)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".wo.weight") and parameter.dtype == torch.float16:  # beyond float16 in the MLPs of T5 XXL
            parameter.data = parameter.data.float()


def _tokenizer(folder: Path, given: str | Path | None, config: dict[str, Any]) -> Tokenizer:
    places = [Path(given)] if given is not None else [folder, folder.parent / "tokenizer"]
    for place in places:
        if any((place / name).exists() for name in ("tokenizer_config.json", "tokenizer.json", "spiece.model")):
            return _vocabulary(place)
    if given is None and config.get("vocab_size") == BYTE_VOCABULARY:
        return ByteTokenizer()
    raise ValueError(f"no tokenizer in {' or '.join(map(str, places))}; it needs tokenizer.json or spiece.model")


def _vocabulary(folder: Path) -> Any:
    """A tokenizer of transformers, from its files."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(f"the tokenizer in {folder} needs transformers; {INSTALL}") from None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from None
