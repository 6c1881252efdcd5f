"""Scores of clips in the space of a pretrained network: Frechet distances (FAD, FVD), CLAP and ImageBind scores, KL.

Any object with the methods of an embedder below will do. Those here read the networks from a folder in the layout of
transformers, and ImageBind from its file; the weights are the user's to bring. What a score means depends on the
network: name it beside the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ...engine.codecs.files import INSTALL
from ...engine.media import conform, resample
from .imagebind import load_imagebind
from .imagebind_inputs import cleaned_prompt, sound_inputs, video_inputs

if TYPE_CHECKING:
    from ...engine.types import Clip

BATCH = 8
LEAST_CLIPS = 2  # for a covariance


class SoundEmbedder(Protocol):
    """Sounds and texts in one space, such as CLAP's."""

    def sounds(self, clips: Sequence[Clip]) -> np.ndarray:
        """The sounds of N clips. -> (N, E)."""

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """N prompts. -> (N, E)."""


class VideoEmbedder(Protocol):
    """Videos, such as VideoMAE's or I3D's features."""

    def videos(self, clips: Sequence[Clip]) -> np.ndarray:
        """The frames of N clips. -> (N, E)."""


class JointEmbedder(SoundEmbedder, VideoEmbedder, Protocol):
    """Sounds, videos and texts in one space, such as ImageBind's."""


class SoundClassifier(Protocol):
    """What is heard in a sound."""

    def probabilities(self, clips: Sequence[Clip]) -> np.ndarray:
        """Of every class, for the sounds of N clips. -> (N, C), rows that sum to 1."""


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of embeddings (N, E) and (M, E) (Heusel et al. 2017).

    With fewer clips than dimensions it is biased upwards: compare only sets of the same size. Raises ``ValueError`` for
    fewer than two.
    """
    if min(len(a), len(b)) < LEAST_CLIPS:
        counts = f"{len(a)} and {len(b)}"
        raise ValueError(f"a Frechet distance needs at least {LEAST_CLIPS} clips on both sides, not {counts}")
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    mean_a, mean_b = a.mean(0), b.mean(0)
    of_a, of_b = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (a, b))
    values, vectors = np.linalg.eigh(of_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ of_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(of_a) + np.trace(of_b) - 2 * cross)


def mean_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine between the rows of (N, E) and (N, E), in pairs: the CLAP score of sounds and their prompts, the
    ImageBind score of sounds and their videos.
    """
    a, b = (values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12) for values in (a, b))
    return float((a * b).sum(1).mean())


def kl_divergence(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean KL(truth | found) between the class probabilities (N, C) of true and generated sounds, in pairs, in nats."""
    p, q = (np.asarray(values, dtype=float).clip(1e-10) for values in (truth, found))
    return float((p * np.log(p / q)).sum(1).mean())


@dataclass(frozen=True)
class Networks:
    """The networks to score with; those that are ``None`` give no score."""

    sounds: SoundEmbedder | None = None
    videos: VideoEmbedder | None = None
    classes: SoundClassifier | None = None
    joint: JointEmbedder | None = None

    def check(self, count: int, *, against_rendered: bool) -> None:
        """Raise ``ValueError`` where ``count`` clips are too few for a Frechet distance to as many rendered ones."""
        if against_rendered and 0 < count < LEAST_CLIPS and (self.sounds is not None or self.videos is not None):
            raise ValueError(f"there is {count} clip; FAD and FVD need at least {LEAST_CLIPS} (count)")

    def scores(
        self,
        clips: Sequence[Clip],
        prompts: Sequence[str],
        reference: Sequence[Clip],
        dubbed: Sequence[Clip],
        recorded: Sequence[Clip],
    ) -> dict[str, float]:
        """``clap_score`` of ``clips`` with their ``prompts``, ``fad`` and ``fvd`` of these clips against ``reference``,
        clips of the same prompts, and ``v2a_kl`` of the sounds ``dubbed`` to videos against those ``recorded`` with
        them. ``imagebind_av``, ``imagebind_tv`` and ``imagebind_ta``: videos of ``clips`` with their own sounds, with
        their prompts, and sounds with prompts; ``v2a_imagebind_av``: videos with the sounds ``dubbed`` to them; and
        beside each the score ``…_truth`` of ``reference`` and ``recorded``. A score whose clips are missing is left
        out.
        """
        found: dict[str, float] = {}
        if self.sounds is not None and clips:
            sounds = self.sounds.sounds(clips)
            found["clap_score"] = mean_similarity(sounds, self.sounds.texts(prompts))
            if reference:
                found["fad"] = frechet_distance(sounds, self.sounds.sounds(reference))
        if self.videos is not None and clips and reference:
            found["fvd"] = frechet_distance(self.videos.videos(clips), self.videos.videos(reference))
        if self.classes is not None and dubbed:
            found["v2a_kl"] = kl_divergence(self.classes.probabilities(recorded), self.classes.probabilities(dubbed))
        if self.joint is not None:
            texts = self.joint.texts(prompts) if clips else None
            found |= _imagebind_scores(self.joint, "imagebind", clips, reference, texts)
            found |= _imagebind_scores(self.joint, "v2a_imagebind", dubbed, recorded)
        return found


def _imagebind_scores(
    joint: JointEmbedder, name: str, clips: Sequence[Clip], truth: Sequence[Clip], texts: np.ndarray | None = None
) -> dict[str, float]:
    """``name`` with ``_av``, and with the embeddings of ``texts`` ``_tv`` and ``_ta``, each beside its ``…_truth``."""
    found: dict[str, float] = {}
    for group, suffix in ((clips, ""), (truth, "_truth")):
        if group:
            videos, sounds = joint.videos(group), joint.sounds(group)
            found[f"{name}_av{suffix}"] = mean_similarity(videos, sounds)
            if texts is not None:
                found[f"{name}_tv{suffix}"] = mean_similarity(texts, videos)
                found[f"{name}_ta{suffix}"] = mean_similarity(texts, sounds)
    return found


class Clap:
    """CLAP (Wu et al. 2023) from a folder that ``ClapModel.save_pretrained`` and its processor wrote."""

    def __init__(self, folder: str | Path) -> None:
        transformers = _transformers()
        self._model = _loaded(transformers.ClapModel, folder).eval()
        self._tokenizer = _loaded(transformers.AutoTokenizer, folder)
        self._features = _loaded(transformers.AutoFeatureExtractor, folder)

    def sounds(self, clips: Sequence[Clip]) -> np.ndarray:
        """The sounds of N clips. -> (N, E)."""
        rate = self._features.sampling_rate

        def embed(batch: Sequence[Clip]) -> torch.Tensor:
            waves = [resample(clip.waveform, clip.sample_rate, rate) for clip in batch]
            return self._model.get_audio_features(**self._features(waves, sampling_rate=rate, return_tensors="pt"))

        return _in_batches(embed, clips)

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """N prompts. -> (N, E)."""

        def embed(batch: Sequence[str]) -> torch.Tensor:
            return self._model.get_text_features(**self._tokenizer(list(batch), padding=True, return_tensors="pt"))

        return _in_batches(embed, prompts)


class VideoMae:
    """Mean features of VideoMAE (Tong et al. 2022), a common network for FVD, from a folder of transformers."""

    def __init__(self, folder: str | Path) -> None:
        self._model = _loaded(_transformers().VideoMAEModel, folder).eval()

    def videos(self, clips: Sequence[Clip]) -> np.ndarray:
        """The frames of N clips, as many as the network takes, evenly chosen. -> (N, E)."""
        config = self._model.config
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

        def embed(batch: Sequence[Clip]) -> torch.Tensor:
            pixels = []
            for clip in batch:
                side = (config.image_size, config.image_size)
                sized = conform(clip, fps=clip.fps, size=side, sample_rate=clip.sample_rate, seconds=clip.seconds)
                chosen = np.linspace(0, len(sized.frames) - 1, config.num_frames).round().astype(int)
                frames = torch.from_numpy(sized.frames[chosen]).permute(0, 3, 1, 2) / 255
                pixels.append((frames - mean) / std)
            return self._model(torch.stack(pixels)).last_hidden_state.mean(1)

        return _in_batches(embed, clips)


class SpectrogramTransformer:
    """The audio spectrogram transformer (Gong et al. 2021), a classifier, from a folder of transformers."""

    def __init__(self, folder: str | Path) -> None:
        transformers = _transformers()
        self._model = _loaded(transformers.ASTForAudioClassification, folder).eval()
        self._features = _loaded(transformers.AutoFeatureExtractor, folder)

    def probabilities(self, clips: Sequence[Clip]) -> np.ndarray:
        """Of every class, for the sounds of N clips. -> (N, C)."""
        rate = self._features.sampling_rate

        def embed(batch: Sequence[Clip]) -> torch.Tensor:
            waves = [resample(clip.waveform, clip.sample_rate, rate) for clip in batch]
            return self._model(**self._features(waves, sampling_rate=rate, return_tensors="pt")).logits.softmax(-1)

        return _in_batches(embed, clips)


class ImageBind:
    """ImageBind (Girdhar et al. 2023) from the file of its weights, ``imagebind_huge.pth``, and the folder of CLIP's
    tokenizer, by default that of the file. The embedding of a clip is the mean of those of its parts.
    """

    def __init__(self, file: str | Path, tokenizer: str | Path | None = None) -> None:
        folder = Path(file).parent if tokenizer is None else Path(tokenizer)
        transformers = _transformers()
        self._network = load_imagebind(Path(file))
        self._tokenizer = _loaded(transformers.AutoTokenizer, folder)
        end = self._network.last_token
        if list(self._tokenizer("")["input_ids"])[-1:] != [end]:
            raise ValueError(f"{folder} holds no tokenizer of CLIP, whose texts end with token {end}")

    def sounds(self, clips: Sequence[Clip]) -> np.ndarray:
        """The sounds of N clips. -> (N, E)."""

        def embed(batch: Sequence[Clip]) -> torch.Tensor:
            return torch.stack([self._network.embed("audio", sound_inputs(clip)).mean(0) for clip in batch])

        return _in_batches(embed, clips)

    def videos(self, clips: Sequence[Clip]) -> np.ndarray:
        """The frames of N clips. -> (N, E)."""

        def embed(batch: Sequence[Clip]) -> torch.Tensor:
            return torch.stack([self._network.embed("vision", video_inputs(clip)).mean(0) for clip in batch])

        return _in_batches(embed, clips)

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """N prompts. -> (N, E)."""

        def embed(batch: Sequence[str]) -> torch.Tensor:
            ids = self._tokenizer([cleaned_prompt(prompt) for prompt in batch])["input_ids"]
            return self._network.embed_text(self._network.padded(ids))

        return _in_batches(embed, prompts)


def _transformers() -> Any:
    try:
        import ftfy  # noqa: F401
        import transformers
    except ImportError as error:
        raise ValueError(f"scores by pretrained networks need {error.name}; {INSTALL}") from error
    return transformers


def _loaded(kind: Any, folder: str | Path) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        name = kind.__name__.removeprefix("Auto")
        raise ValueError(f"{folder} holds no {name} in the layout of transformers: {reason}") from error


@torch.inference_mode()
def _in_batches(embed: Any, items: Sequence[Any]) -> np.ndarray:
    found = [embed(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
    tensors = [getattr(value, "pooler_output", value) for value in found]
    return torch.cat(tensors).float().numpy()
