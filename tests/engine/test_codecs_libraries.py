"""Codecs and text encoder against the classes of diffusers and transformers that they stand for: equal to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.encodec import modeling_encodec

from syncflow.engine.codecs import AudioCodec, TextEncoder, VideoCodec, ltx, seanet, t5
from syncflow.engine.codecs.audio import TINY_SETTINGS as AUDIO
from syncflow.engine.codecs.files import skip_initialization
from syncflow.engine.codecs.text import ByteTokenizer
from syncflow.engine.codecs.video import TINY_SETTINGS as VIDEO

pytestmark = pytest.mark.slow

NARROW = {"latent_channels": 4, "block_out_channels": [4, 8], "decoder_block_out_channels": [8, 4]}
LTX: dict[str, dict[str, Any]] = {
    "tiny": VIDEO | NARROW,
    "causal": VIDEO | NARROW | {"encoder_causal": True, "decoder_causal": True, "patch_size_t": 1},
    "scaled twice": VIDEO
    | NARROW
    | {"spatio_temporal_scaling": [True, True], "decoder_spatio_temporal_scaling": [True, True], "patch_size": 2},
}
SEANET: dict[str, dict[str, Any]] = {
    "tiny": AUDIO | {"num_filters": 2, "hidden_size": 8},
    "causal": {"num_filters": 2, "hidden_size": 8, "upsampling_ratios": [3, 2], "num_residual_layers": 2},
    "normed": AUDIO | {"num_filters": 2, "hidden_size": 8, "norm_type": "time_group_norm", "pad_mode": "constant"},
    "trimmed": {"num_filters": 2, "hidden_size": 4, "upsampling_ratios": [5], "trim_right_ratio": 0.5},
    "plain": AUDIO | {"num_filters": 2, "hidden_size": 8, "use_conv_shortcut": False, "residual_kernel_size": 5},
}
T5: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3}


@pytest.mark.parametrize("name", LTX)
def test_the_video_autoencoder_of_diffusers(name: str) -> None:
    theirs = diffusers.AutoencoderKLLTXVideo.from_config(LTX[name]).eval()
    assert ltx.supported(dict(theirs.config))
    ours = ltx.LTXVideoVAE(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict())
    assert ours.factors == (theirs.temporal_compression_ratio, theirs.spatial_compression_ratio)
    time, side = ours.factors
    frames = 2 * time + int(LTX[name].get("encoder_causal", False))
    channels = theirs.config["in_channels"] // theirs.config["patch_size_t"]
    pixels, latents = torch.randn(2, channels, frames, 2 * side, side), torch.randn(2, 4, 3, 2, 1)
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        made, known = ours.encode(pixels).latent_dist, theirs.encode(pixels).latent_dist
        assert torch.equal(made.mean, known.mean)
        assert torch.equal(made.logvar, known.logvar)
        decoded = ours.decode(latents).sample
        assert torch.equal(decoded, theirs.decode(latents).sample)
    assert decoded.shape[2] == 3 * time - ours.cropped_frames
    with torch.inference_mode():  # of one clip diffusers takes oneDNN for large layers alone
        torch.testing.assert_close(ours.decode(latents[:1]).sample, decoded[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.encode(pixels[:1]).latent_dist.mean, made.mean[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"timestep_conditioning": True},
        {"decoder_inject_noise": [True, False, False]},
        {"upsample_residual": [True, False]},
        {"upsample_factor": [2, 1]},
    ],
)
def test_what_is_left_out_is_refused(change: dict[str, Any]) -> None:
    assert ltx.supported(VIDEO)
    assert not ltx.supported(VIDEO | change)


def test_what_is_left_out_is_left_to_diffusers(tmp_path: Path) -> None:
    codec = VideoCodec.build(settings=VIDEO | NARROW | {"upsample_residual": [True, False]})
    codec.save_pretrained(tmp_path)
    for one in (codec, VideoCodec.from_pretrained(tmp_path)):
        assert type(one.vae) is diffusers.AutoencoderKLLTXVideo


@pytest.mark.parametrize("name", LTX)
def test_strides_are_those_of_the_class_of_diffusers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = VideoCodec.build(settings=LTX[name])
    monkeypatch.setattr(ltx, "supported", lambda config: False)
    theirs = VideoCodec.build(settings=LTX[name])
    assert type(theirs.vae) is diffusers.AutoencoderKLLTXVideo
    assert ours.strides == theirs.strides


@pytest.mark.parametrize("name", SEANET)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_audio_codec_of_transformers(name: str, length: int) -> None:
    settings = {key: value for key, value in SEANET[name].items() if key != "latent_channels"}
    theirs = transformers.EncodecConfig(**settings)
    config = seanet.SeanetConfig.from_dict(SEANET[name])
    assert config.hop == theirs.hop_length
    waveform, states = torch.randn(2, 1, length * config.hop), torch.randn(2, config.hidden_size, length)
    for made, known, inputs in (
        (seanet.Encoder(config), modeling_encodec.EncodecEncoder(theirs), waveform),
        (seanet.Decoder(config), modeling_encodec.EncodecDecoder(theirs), states),
    ):
        _fold_norms(known)
        made.load_state_dict(known.state_dict())
        with torch.inference_mode():
            torch.testing.assert_close(made(inputs), known(inputs), rtol=1e-5, atol=1e-5)


def test_refused_settings_of_the_audio_codec() -> None:
    with pytest.raises(ValueError, match="norm_type is 'batch_norm'"):
        AudioCodec(AUDIO | {"norm_type": "batch_norm"})
    with pytest.raises(ValueError, match="must be 1 without use_causal_conv"):
        AudioCodec(AUDIO | {"trim_right_ratio": 0.5})


@pytest.mark.parametrize("kind", ["relu", "gated-gelu", "gated-silu"])
def test_the_text_encoder_of_transformers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = transformers.T5EncoderModel(transformers.T5Config(**T5, feed_forward_proj=kind)).eval()
    nn.init.normal_(known.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    known.save_pretrained(tmp_path)
    _name_vocabulary(tmp_path)
    made = TextEncoder.from_pretrained(tmp_path, max_tokens=150).encoder
    ids, mask = torch.randint(0, 40, (2, 150)), torch.ones(2, 150, dtype=torch.bool)
    mask[1, 90:] = False
    with torch.inference_mode():
        states = known(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if kind == "gated-gelu":  # which transformers computes by its formula
            torch.testing.assert_close(made(ids, mask), states)
        else:
            assert torch.equal(made(ids, mask), states)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=8).filter(lambda text: "<" not in text), min_size=1, max_size=3))
def test_tokens_of_bytes_are_those_of_byt5(prompts: list[str]) -> None:
    ours, theirs = ByteTokenizer(), BYT5
    assert ours(prompts)["input_ids"] == theirs(prompts)["input_ids"]
    made = ours(prompts, max_length=6, padding="max_length", truncation=True, return_tensors="pt")
    known = theirs(prompts, max_length=6, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(made["input_ids"], known["input_ids"])
    assert torch.equal(made["attention_mask"], known["attention_mask"])


def test_transformers_reads_our_folder(tmp_path: Path) -> None:
    made = TextEncoder.build({"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16}, max_tokens=9).eval()
    made.save_pretrained(tmp_path)
    known = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
    ids, mask = made.tokenize(["a ball"])
    with torch.inference_mode():
        assert torch.equal(made.encoder(ids, mask), known(input_ids=ids, attention_mask=mask.long()).last_hidden_state)


def test_the_encoder_of_a_whole_t5_in_half_precision(tmp_path: Path) -> None:
    """Published ones hold a decoder too, and the embedding by its name in the encoder; ``wo`` overflows in float16."""
    from safetensors.torch import save_file

    known = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    whole = {name: tensor.half() for name, tensor in known.state_dict().items() if name != "shared.weight"}
    save_file(whole | {"decoder.final_layer_norm.weight": torch.ones(16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(T5 | {"model_type": "t5"}))
    _name_vocabulary(tmp_path)
    made = TextEncoder.from_pretrained(tmp_path, max_tokens=5).encoder
    kinds = {name: parameter.dtype for name, parameter in made.named_parameters()}
    assert {kind for name, kind in kinds.items() if name.endswith(".wo.weight")} == {torch.float32}
    assert kinds["shared.weight"] == kinds["encoder.block.1.layer.1.DenseReluDense.wi.weight"] == torch.float16
    with torch.inference_mode():
        assert made(torch.tensor([[3, 1]]), torch.ones(1, 2)).isfinite().all()


def test_refused_activation() -> None:
    with pytest.raises(ValueError, match="feed_forward_proj is 'gated-swish'"):
        t5.T5Encoder(T5 | {"feed_forward_proj": "gated-swish"})


def test_parameters_are_left_as_they_are_where_weights_follow() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with skip_initialization():
        AudioCodec(AUDIO), ltx.LTXVideoVAE(VIDEO), t5.T5Encoder(T5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert nn.Linear(64, 64).weight.std() > 0.05


BYT5 = transformers.ByT5Tokenizer()


def _fold_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")


def _name_vocabulary(folder: Path) -> None:
    """A tokenizer of few words, so that the folder is whole."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
