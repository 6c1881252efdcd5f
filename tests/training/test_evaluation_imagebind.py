"""ImageBind of small random weights beside the outputs of its own code, and what its file and its clips must be.

The weights and clips are computed (``published_imagebind.py``), the outputs are frozen in ``imagebind.safetensors``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from syncflow.training.evaluation.embeddings import ImageBind, Networks, mean_similarity
from syncflow.training.evaluation.imagebind import load_imagebind
from syncflow.training.evaluation.imagebind_inputs import sound_inputs, video_inputs, window_starts

from .importers.frozen import Frozen
from .published_imagebind import CLIPS, SIZES, TEXTS, imagebind_tensors, make_clip, unused_tensors, write_published

FROZEN = Frozen(Path(__file__).with_name("imagebind.safetensors"))
AUDIO_SCALE, TEXT_SCALE = 20, 1 / 0.07  # of the published postprocessors
MISSING, MISSHAPEN = "modality_trunks.audio.blocks.1.attn.bias_k", "modality_heads.vision.2.weight"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def imagebind(file: Path) -> ImageBind:
    return ImageBind(file)


def distinct(rows: Tensor) -> Tensor:
    """The rows without those that equal an earlier one; the frozen inputs are without them."""
    kept: list[Tensor] = []
    for row in rows:
        if not any(torch.equal(row, other) for other in kept):
            kept.append(row)
    return torch.stack(kept)


@pytest.mark.parametrize("name", CLIPS)
def test_inputs_are_those_of_the_published_code(name: str) -> None:
    pytest.importorskip("transformers")
    clip = make_clip(name)
    FROZEN.assert_close(distinct(sound_inputs(clip))[:, :, ::5, ::7], f"{name}.audio.input")
    FROZEN.assert_close(distinct(video_inputs(clip))[:, :, :, ::37, ::41], f"{name}.vision.input")


@pytest.mark.parametrize("name", CLIPS)
def test_embeddings_of_clips_are_those_of_the_published_code(imagebind: ImageBind, name: str) -> None:
    clip = make_clip(name)
    FROZEN.assert_close(torch.from_numpy(imagebind.sounds([clip])) * AUDIO_SCALE, f"{name}.audio")
    FROZEN.assert_close(torch.from_numpy(imagebind.videos([clip])), f"{name}.vision")


@torch.inference_mode()
def test_embeddings_of_texts_are_those_of_the_published_code(file: Path) -> None:
    network = load_imagebind(file)
    FROZEN.assert_close(network.embed_text(network.padded(TEXTS)) * TEXT_SCALE, "text")


def test_texts_are_tokenized_and_embedded_each_alone(imagebind: ImageBind) -> None:
    texts = ["a ball bounces on wood"] * 8 + ["a ball", "wood on a ball"]  # more than a batch
    found = imagebind.texts(texts)
    assert found.shape == (10, SIZES.embedding)
    np.testing.assert_allclose(found[9], imagebind.texts(texts[9:])[0], atol=1e-6)
    assert mean_similarity(found[:1], found[7:8]) == pytest.approx(1)
    assert mean_similarity(found[:1], found[8:9]) < 0.999
    np.testing.assert_array_equal(imagebind.texts(["a &lt; ball"]), imagebind.texts(["a < ball"]))


def test_windows_are_even_and_the_last_one_is_at_the_end() -> None:
    assert window_starts(5, 3) == [0, Fraction(3, 2), 3]
    assert window_starts(2, 5) == window_starts(0.3, 3) == [0]


def test_a_clip_without_sound_or_frames_is_refused() -> None:
    pytest.importorskip("transformers")
    clip = make_clip("short")
    with pytest.raises(ValueError, match=r"a sound has 399 samples at 16000 Hz; ImageBind needs at least 400 \(25 ms"):
        sound_inputs(replace(clip, waveform=clip.waveform[:399]))
    with pytest.raises(ValueError, match="a clip has no frames"):
        video_inputs(replace(clip, frames=clip.frames[:0]))


class Directions:
    """Embeddings along one axis each: of videos, of sounds, and of texts, which lie between the two."""

    def videos(self, clips: object) -> np.ndarray:
        return np.array([[2.0, 0.0]] * 2)

    def sounds(self, clips: object) -> np.ndarray:
        return np.array([[0.0, 3.0]] * 2)

    def texts(self, prompts: object) -> np.ndarray:
        return np.array([[1.0, 1.0]] * 2)


class Same(Directions):
    sounds = Directions.videos


def test_scores_are_cosines() -> None:
    clips, prompts = [make_clip("short")] * 2, ["a ball", "wood"]
    half = pytest.approx(np.sqrt(0.5))
    scores = Networks(joint=Directions()).scores(clips, prompts, [], clips, clips)
    assert scores == {
        "imagebind_av": 0, "imagebind_tv": half, "imagebind_ta": half,
        "v2a_imagebind_av": 0, "v2a_imagebind_av_truth": 0,
    }  # fmt: skip
    scores = Networks(joint=Same()).scores(clips, prompts, clips, [], [])
    assert scores == {
        "imagebind_av": 1, "imagebind_tv": half, "imagebind_ta": half,
        "imagebind_av_truth": 1, "imagebind_tv_truth": half, "imagebind_ta_truth": half,
    }  # fmt: skip
    assert Networks(joint=Same()).scores([], [], [], [], []) == {}


@pytest.mark.slow
def test_evaluate_prints_the_scores_beside_those_of_ground_truth(file: Path, run) -> None:
    arguments = ("evaluate", "--count", 2, "--v2a-count", 2, "--steps", 1, "--imagebind", file)
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    scores = json.loads(out)
    names = ("imagebind_av", "imagebind_tv", "imagebind_ta", "v2a_imagebind_av")
    assert all(-1 <= scores[name + end] <= 1 for name in names for end in ("", "_truth"))
    assert not any("clap" in name for name in scores)


@pytest.mark.slow
def test_evaluate_shows_the_scores_in_its_table_and_on_its_page(file: Path, tmp_path: Path, run) -> None:
    arguments = ("evaluate", "--count", 2, "--v2a-count", 0, "--steps", 1, "--imagebind", file)
    code, out, err = run(*arguments, "--imagebind-tokenizer", file.parent, "--output", tmp_path / "page")
    assert code == 0, err
    head, *rows = out.split("by pretrained networks", 1)[1].split("\n\n", 1)[0].splitlines()
    assert head.split() == ["score", "ground", "truth"]
    assert [row.split()[0] for row in rows] == ["imagebind_av", "imagebind_tv", "imagebind_ta"]
    page = (tmp_path / "page" / "index.html").read_text()
    assert all(f"<td>{value}</td>" in page for row in rows for value in row.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({MISSING: None}, f"does not hold ImageBind. {MISSING} is missing."),
        ({"modality_trunks.smell.x": torch.zeros(2)}, "modality_trunks.smell.x is no tensor of ImageBind."),
        ({MISSHAPEN: torch.zeros(2, 160)}, f"{MISSHAPEN} is 2x160; it must be 24x160."),
        ({MISSHAPEN: torch.full((24, 160), torch.nan)}, f"NaN or infinity in {MISSHAPEN}"),
        (
            {"modality_trunks.vision.blocks.0.norm_1.weight": torch.ones(100)},
            "blocks.0.norm_1.weight has 100 numbers; it must have a multiple of 80.",
        ),
        (
            {"modality_preprocessors.text.pos_embed": torch.ones(128)},
            r"text.pos_embed has the shape (128,); it must have 3 sizes, from 1.",
        ),
        (dict.fromkeys(imagebind_tensors()), "modality_preprocessors.text.token_embedding.weight is missing."),
    ],
    ids=["missing", "unknown", "misshapen", "nan", "width", "rank", "foreign"],
)
def test_a_file_of_something_else_is_refused_by_name(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = imagebind_tensors() | unused_tensors() | changes
    torch.save({name: x for name, x in tensors.items() if x is not None}, tmp_path / "other.pth")
    with pytest.raises(ValueError) as refused:
        load_imagebind(tmp_path / "other.pth")
    assert message in str(refused.value) and "other.pth" in str(refused.value)


def test_the_command_refuses_wrong_files_in_one_line(file: Path, tmp_path: Path, run) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for arguments, message in (
        (("--imagebind", tmp_path / "text.pth"), "text.pth cannot be read as tensors"),
        (("--imagebind", tmp_path / "none.pth"), "there is no file or folder"),
        (("--imagebind", file, "--imagebind-tokenizer", tmp_path), "holds no Tokenizer in the layout of transformers"),
        (("--imagebind-tokenizer", tmp_path), "name its file too (--imagebind)"),
    ):
        code, out, err = run("evaluate", "--count", 2, *arguments)
        assert (code, out) == (2, "") and message in " ".join(err.split()) and "Traceback" not in err


def test_a_tokenizer_without_an_end_of_text_is_refused(file: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer of CLIP, whose texts end with token 319"):
        ImageBind(file, tmp_path)
