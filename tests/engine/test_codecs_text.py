"""The text encoder: tokens, states, folders with and without a tokenizer of their own, refusals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.codecs import TextEncoder

MICRO: dict[str, Any] = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "dropout_rate": 0.0}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder.build(MICRO, max_tokens=24).eval()


@settings(max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3))
def test_tokens_are_bytes(encoder: TextEncoder, prompts: list[str]) -> None:
    ids, mask = encoder.tokenize(prompts)
    assert ids.shape == mask.shape == (len(prompts), 24)
    for prompt, row, counts in zip(prompts, ids, mask, strict=True):
        written = prompt.encode()
        assert int(counts.sum()) == len(written) + 1
        assert row[: len(written)].tolist() == [byte + 3 for byte in written]


def test_states(encoder: TextEncoder) -> None:
    with torch.inference_mode():
        states, mask = encoder.encode(["a red ball", "a ball"])
        assert states.shape == (2, 24, encoder.width) == (2, 24, 16)
        assert states[~mask].abs().max() == 0
        alone, _ = encoder.encode(["a ball"])
    torch.testing.assert_close(states[1:], alone)


def test_long_prompts_are_cut_with_a_warning(encoder: TextEncoder) -> None:
    with pytest.warns(UserWarning, match="41 tokens and is cut to 24"):
        _, mask = encoder.tokenize(["x" * 40])
    assert mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.tokenize(["x" * 23])


def test_it_can_be_trained() -> None:
    encoder = TextEncoder.build(MICRO).train()
    ids, mask = encoder.tokenize(["a ball"])
    encoder(ids, mask).square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_round_trip_on_disk(encoder: TextEncoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder.save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path)
    assert again.max_tokens == 24
    assert capfd.readouterr().err == ""
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with torch.inference_mode():
        assert torch.equal(again.encode(["a ball"])[0], encoder.encode(["a ball"])[0])


@pytest.mark.parametrize("beside", [False, True])
def test_a_t5_folder_with_its_own_tokenizer(beside: bool, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "ball": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    folder = tmp_path / "text_encoder"
    T5EncoderModel(T5Config(**MICRO, d_kv=8, vocab_size=8)).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "tokenizer" if beside else folder)

    encoder = TextEncoder.from_pretrained(folder, max_tokens=4)
    ids, mask = encoder.tokenize(["a ball", "a blue ball"])
    assert ids.tolist() == [[3, 4, 0, 0], [3, 2, 4, 0]]
    assert mask.sum(1).tolist() == [2, 3]
    encoder.save_pretrained(tmp_path / "saved")
    assert torch.equal(TextEncoder.from_pretrained(tmp_path / "saved").tokenize(["a ball"])[0][:, :4], ids[:1])


def test_refused_folders(encoder: TextEncoder, tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    with pytest.raises(ValueError, match=r"no config\.json"):
        TextEncoder.from_pretrained(tmp_path / "nowhere")
    T5EncoderModel(T5Config(**MICRO, d_kv=8, vocab_size=50)).save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match="no tokenizer"):
        TextEncoder.from_pretrained(tmp_path / "words")

    folder = tmp_path / "bytes"
    encoder.save_pretrained(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    said, whole = config.read_text(), weights.read_bytes()
    for change, message in (
        ({"model_type": "bert"}, "must be a T5"),
        ({"num_layers": 2}, "do not fit"),
    ):
        config.write_text(json.dumps(json.loads(said) | change))
        with pytest.raises(ValueError, match=message):
            TextEncoder.from_pretrained(folder)
    config.write_text(said)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        TextEncoder.from_pretrained(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        TextEncoder.from_pretrained(folder)
