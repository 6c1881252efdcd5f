"""ImageBind (Girdhar et al. 2023): sounds, videos and texts in one space, from the file of its published weights.

Three of its six towers: vision, audio and text. Tensors have the published names, and every tensor of these towers is
accounted for. Widths and depths are the file's; heads are 80 wide in vision and 64 elsewhere, as in the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.codecs.imagebind import EPSILON, TextTower, Trunk
from ..importers.tensors import TensorInfo, finite, mismatches, open_tensors, refuse
from .imagebind_inputs import FRAMES, MEL_BANDS, SIDE, SPECTRA

NAME = "ImageBind"
HEAD_WIDTHS = {"vision": 80, "audio": 64, "text": 64}
PATCH, SOUND_PATCH, SOUND_STRIDE = 14, 16, 10
VIDEO_PATCHES = (SIDE // PATCH) ** 2
SOUND_PATCHES = ((MEL_BANDS - SOUND_PATCH) // SOUND_STRIDE + 1) * ((SPECTRA - SOUND_PATCH) // SOUND_STRIDE + 1)
# The towers of other modalities; the causal mask; scales of whole embeddings, which a cosine ignores.
UNUSED = re.compile(
    r"modality_(preprocessors|trunks|heads|postprocessors)\.(depth|thermal|imu)\."
    r"|modality_preprocessors\.text\.mask$"
    r"|modality_postprocessors\.(text|audio)\.1\.log_logit_scale$"
)


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the trunks by modality, the width of embeddings, and what the text tower reads."""

    widths: Mapping[str, int]
    depths: Mapping[str, int]
    embedding: int
    vocabulary: int
    text_length: int


class PatchEmbedding(nn.Module):
    """A class token and ``count`` patches of a video or a spectrogram, with their positions: (B, 1 + count, W)."""

    def __init__(self, projection: nn.Module, count: int, width: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.rgbt_stem = nn.ModuleDict({"proj": projection} | ({"norm_layer": norm} if norm else {}))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": torch.zeros(1, 1 + count, width)})

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.rgbt_stem["proj"](x).flatten(2).transpose(1, 2)
        if "norm_layer" in self.rgbt_stem:
            tokens = self.rgbt_stem["norm_layer"](tokens)
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), 1)
        return tokens + self.pos_embedding_helper["pos_embed"]


class ImageBindNetwork(TextTower):
    """The towers of vision and audio beside that of text; embeddings have length 1."""

    def __init__(self, sizes: Sizes) -> None:
        widths, depths = sizes.widths, sizes.depths
        heads = {modality: widths[modality] // width for modality, width in HEAD_WIDTHS.items()}
        super().__init__(sizes.vocabulary, sizes.text_length, widths["text"], depths["text"], heads["text"])
        self.last_token = sizes.vocabulary - 1
        vision, audio = widths["vision"], widths["audio"]
        kernel = (FRAMES, PATCH, PATCH)
        # nn.Identity stands where the published model has a layer without weights that is not needed here.
        video_stem = nn.Sequential(nn.Identity(), nn.Conv3d(3, vision, kernel, kernel, bias=False))
        sound_stem = nn.Conv2d(1, audio, SOUND_PATCH, SOUND_STRIDE, bias=False)
        self.modality_preprocessors["vision"] = PatchEmbedding(video_stem, VIDEO_PATCHES, vision)
        self.modality_preprocessors["audio"] = PatchEmbedding(sound_stem, SOUND_PATCHES, audio, nn.LayerNorm(audio))
        self.modality_trunks["vision"] = Trunk(vision, depths["vision"], heads["vision"], pre_norm=True)
        self.modality_trunks["audio"] = Trunk(audio, depths["audio"], heads["audio"], bias_kv=True)

        def head(modality: str, *between: nn.Module) -> nn.Sequential:
            width = widths[modality]
            projection = nn.Linear(width, sizes.embedding, bias=False)
            return nn.Sequential(nn.LayerNorm(width, EPSILON), *between, projection)

        text_head = nn.ModuleDict({"proj": head("text")})
        self.modality_heads = nn.ModuleDict(
            {"vision": head("vision", nn.Identity()), "audio": head("audio", nn.Identity()), "text": text_head}
        )

    def embed(self, modality: str, x: Tensor) -> Tensor:
        """Embeddings (B, E) of ``vision`` (B, 3, frames, side, side) or ``audio`` (B, 1, bands, spectra)."""
        states = self.modality_trunks[modality](self.modality_preprocessors[modality](x))
        return nn.functional.normalize(self.modality_heads[modality](states[:, 0]), dim=-1)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Embeddings (B, E) of token ids (B, L), each of the state of its end, whose id is the largest."""
        ends = self.text_states(ids)[torch.arange(len(ids)), ids.argmax(-1)]
        head = self.modality_heads.get_submodule("text.proj")
        return nn.functional.normalize(head(ends), dim=-1)


def load_imagebind(file: Path) -> ImageBindNetwork:
    """The network of a file such as ``imagebind_huge.pth``, in float32.

    Raises ``ValueError`` with the names of tensors that are missing, unknown, misshapen or not finite.
    """
    files = open_tensors(file)
    infos = {name: info for name, info in files.infos.items() if not UNUSED.match(name)}
    with torch.device("meta"):
        network = ImageBindNetwork(_sizes(file, infos))
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    refuse(file, NAME, mismatches(infos, expected, NAME))
    tensors = {name: finite(file, files.read(name), name, torch.float32) for name in expected}
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def _sizes(file: Path, infos: Mapping[str, TensorInfo]) -> Sizes:
    """What the tensors tell. Raises ``ValueError`` for one that is missing or tells nothing."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in infos:
            refuse(file, NAME, [f"{name} is missing."])
        found = infos[name].shape
        if len(found) != rank or 0 in found:
            refuse(file, NAME, [f"{name} has the shape {found}; it must have {rank} sizes, from 1."])
        return found

    words = "modality_preprocessors.text"
    vocabulary = shape(f"{words}.token_embedding.weight", 2)[0]
    text_length = shape(f"{words}.pos_embed", 3)[1]
    embedding = shape("modality_heads.text.proj.1.weight", 2)[0]
    widths, depths = {}, {}
    for modality, head_width in HEAD_WIDTHS.items():
        trunk = f"modality_trunks.{modality}.blocks."
        name = f"{trunk}0.norm_1.weight"
        widths[modality] = shape(name, 1)[0]
        depths[modality] = len({other.removeprefix(trunk).split(".")[0] for other in infos if other.startswith(trunk)})
        if widths[modality] % head_width:
            refuse(file, NAME, [f"{name} has {widths[modality]} numbers; it must have a multiple of {head_width}."])
    return Sizes(widths, depths, embedding, vocabulary, text_length)
