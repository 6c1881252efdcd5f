"""Scores by pretrained networks: distances with known answers, and networks of random weights in the real layouts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from syncflow import Clip
from syncflow.training.evaluation.embeddings import (
    Clap,
    ImageBind,
    Networks,
    SpectrogramTransformer,
    VideoMae,
    frechet_distance,
    kl_divergence,
    mean_similarity,
)


@given(st.integers(2, 6), st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31))
def test_frechet_distance_is_scipys_square_root(width: int, first: int, second: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(1, 2, (first, width)), rng.normal(0, 1, (second, width)) @ rng.normal(0, 1, (width, width))
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(of_a @ of_b + 0j).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(of_a + of_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3, abs=1e-3 * (1 + np.trace(of_a) + np.trace(of_b)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * (1 + np.trace(of_a)))


def test_frechet_distance_of_known_gaussians() -> None:
    """Of independent coordinates: the squared distances of means and of standard deviations."""
    a = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    scale = np.sqrt(4 / 3)  # the standard deviation of each coordinate
    assert frechet_distance(a, 3 * a + [5, 0]) == pytest.approx(25 + 2 * (2 * scale) ** 2)
    with pytest.raises(ValueError, match="at least 2 clips on both sides, not 1 and 4"):
        frechet_distance(a[:1], a)


def test_divergence_and_similarity_are_the_definitions() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 7), rng.dirichlet(np.ones(5), 7)
    assert kl_divergence(p, q) == pytest.approx(np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)]))
    assert kl_divergence(p, p) == 0
    assert mean_similarity(np.array([[2.0, 0], [0, 1]]), np.array([[1.0, 0], [0, -3]])) == 0
    assert mean_similarity(p, 4 * p) == pytest.approx(1)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    return [
        Clip(rng.integers(0, 255, (20, 24, 32, 3), np.uint8), rng.normal(0, 0.1, 16_000).astype(np.float32), 10, 8000)
        for _ in range(10)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three networks with random weights and few of them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "depths": [1, 1],
        "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32, "window_size": 4,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config={**small, "vocab_size": 9}, audio_config=audio, projection_dim=8)
    transformers.ClapModel(config).save_pretrained(root / "clap")
    words = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "ball", "bounces"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(root / "clap")
    transformers.ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="rand_trunc").save_pretrained(
        root / "clap"
    )
    video = transformers.VideoMAEConfig(**small, image_size=32, patch_size=16, num_frames=4)
    transformers.VideoMAEModel(video).save_pretrained(root / "videomae")
    ast = transformers.ASTConfig(**small, max_length=128, num_mel_bins=32, num_labels=5)
    transformers.ASTForAudioClassification(ast).save_pretrained(root / "ast")
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128).save_pretrained(root / "ast")
    return {name: root / name for name in ("clap", "videomae", "ast")}


@pytest.mark.slow
def test_networks_of_transformers_score_clips(clips: list[Clip], folders: dict[str, Path]) -> None:
    clap, videos, classes = Clap(folders["clap"]), VideoMae(folders["videomae"]), SpectrogramTransformer(folders["ast"])
    prompts = ["a ball", "a ball bounces"] * 5
    sounds = clap.sounds(clips)
    assert sounds.shape == (10, 8) == clap.texts(prompts).shape  # more than a batch of 8
    np.testing.assert_allclose(clap.sounds(clips[8:])[1], sounds[9], atol=1e-5)
    assert videos.videos(clips).shape == (10, 16)
    probabilities = classes.probabilities(clips)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    scores = Networks(clap, videos, classes).scores(clips, prompts, clips, clips, clips)
    assert scores.keys() == {"clap_score", "fad", "fvd", "v2a_kl"}
    assert scores["fad"] == pytest.approx(0, abs=1e-6) and scores["fvd"] == pytest.approx(0, abs=1e-4)
    assert scores["v2a_kl"] == 0 and -1 <= scores["clap_score"] <= 1
    louder = [Clip(clip.frames[::-1].copy(), clip.waveform[::-1] ** 3, clip.fps, clip.sample_rate) for clip in clips]
    other = Networks(clap, videos, classes).scores(louder, prompts, clips, louder, clips)
    assert other["fad"] > 0 and other["fvd"] > 0 and other["v2a_kl"] > 0
    assert Networks(clap).scores(clips, prompts, [], [], []).keys() == {"clap_score"}


@pytest.mark.slow
def test_evaluate_prints_what_networks_say(folders: dict[str, Path], run) -> None:
    arguments = [part for name, folder in folders.items() for part in (f"--{name}", folder)]
    code, out, err = run("evaluate", "--count", 2, "--v2a-count", 2, "--steps", 1, *arguments, "--json")
    assert code == 0, err
    assert json.loads(out).keys() >= {"clap_score", "fad", "fvd", "v2a_kl", "impact_f1"}


def test_a_folder_without_the_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no ClapModel in the layout of transformers"):
        Clap(tmp_path)


@pytest.mark.parametrize("library", ["transformers", "ftfy"])
@pytest.mark.parametrize("network", [Clap, VideoMae, SpectrogramTransformer, ImageBind])
def test_a_missing_library_is_named(
    network: Callable[[Path], Any], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    message = f"need {library}; install it with `pip install syncflow\\[codecs\\]`"
    with pytest.raises(ValueError, match=message):
        network(tmp_path)
