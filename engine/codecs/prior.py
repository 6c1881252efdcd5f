"""The prior of a prompt: what JavisDiT reads beside the text, sampled from ImageBind's text states.

Token ids -> ImageBind's text tower (77, 1024) -> a transformer whose queries are 32 spatial and 32 temporal tokens ->
mean and log variance (64, 128), from which the prior is drawn. Tensor names are those of the published
``STIBPriorExtractor``, and of ImageBind behind ``text_encoder.``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..validation import whole_between
from .files import building, load_weights, read_config, read_weights, write_component
from .imagebind import TextTower

CLASS_NAME = "PriorEncoder"
STEM = "model"
MOST = {
    "text_emb_dim": 8192, "hidden_size": 8192, "out_dim": 8192, "nhead": 256, "spatial_token_num": 4096,
    "num_encoder_layers": 64, "num_decoder_layers": 64, "feedforward_scale": 64,
    "text_layers": 128, "text_heads": 256, "text_length": 1024, "vocab_size": 1_000_000,
}  # fmt: skip
SETTINGS: dict[str, int] = {
    "text_emb_dim": 1024, "hidden_size": 512, "out_dim": 128, "nhead": 4, "spatial_token_num": 32,
    "num_encoder_layers": 4, "num_decoder_layers": 4, "feedforward_scale": 4,
    "text_layers": 24, "text_heads": 16, "text_length": 77, "vocab_size": 49408,
}  # fmt: skip


class PriorEncoder(nn.Module):
    """``settings``: sizes of the text tower and of the transformer, of the published names where there are any."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        given = {name: value for name, value in (settings or {}).items() if name in SETTINGS}
        self.config: dict[str, int] = {
            name: whole_between(name, value, 1, MOST[name]) for name, value in (SETTINGS | given).items()
        }
        c = self.config
        width, hidden = c["text_emb_dim"], c["hidden_size"]
        self.tokens, self.width = c["spatial_token_num"], c["out_dim"]
        self.text_encoder = TextTower(c["vocab_size"], c["text_length"], width, c["text_layers"], c["text_heads"])
        self.spatial_query_emb = nn.Parameter(torch.randn(1, self.tokens, hidden))
        self.temporal_query_emb = nn.Parameter(torch.randn(1, self.tokens, hidden))
        self.in_proj = nn.Linear(width, hidden)
        layer: dict[str, Any] = {
            "nhead": c["nhead"],
            "dim_feedforward": c["feedforward_scale"] * hidden,
            "dropout": 0.0,
            "activation": nn.GELU(approximate="tanh"),
            "batch_first": True,
            "norm_first": True,
        }
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(hidden, **layer),
            c["num_encoder_layers"],
            nn.LayerNorm(hidden),
            enable_nested_tensor=False,
        )
        self.prior_extractor = nn.Transformer(
            hidden, num_decoder_layers=c["num_decoder_layers"], custom_encoder=encoder, **layer
        )
        self.out_proj = nn.Linear(hidden, 2 * self.width)

    @classmethod
    def from_pretrained(cls, folder: Path, *, values: bool = True) -> Self:
        """Read ``config.json`` and ``model.safetensors``; without ``values`` an encoder on the meta device.

        Raises ``ValueError`` for a missing, foreign or damaged folder.
        """
        config = read_config(folder)
        if config.get("_class_name") != CLASS_NAME:
            raise ValueError(f"{folder} holds a {config.get('_class_name')!r}; a prior encoder says {CLASS_NAME!r}")
        tensors = read_weights(folder, STEM, values=values)
        with building(folder, tensors, all_stored=True):
            encoder = cls(config)
        load_weights(encoder, tensors, folder)
        return encoder.eval()

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        write_component(folder, self.config | {"_class_name": CLASS_NAME}, self, STEM)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, 2 N, C) of the prior of token ids (B, L), the spatial tokens first."""
        queries = torch.cat((self.spatial_query_emb, self.temporal_query_emb), 1).expand(len(ids), -1, -1)
        states = self.prior_extractor(self.in_proj(self.text_encoder.text_states(ids)), queries)
        mean, logvar = self.out_proj(states).chunk(2, -1)
        return mean, (logvar.clamp(-30, 20) / 2).exp()
