"""Decoding by images and by overlapping tiles against decoding the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.codecs import VideoCodec
from syncflow.engine.codecs.tiles import CHOICES, OVERLAP, decode_tiles, starts
from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.engine.types import WHOLE, DecodeTiles

IMAGES = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,
}


@given(st.integers(1, 200), st.integers(4, 64))
def test_tiles_cover_everything_and_overlap(length, side):
    found = starts(length, side)
    assert found[0] == 0
    assert found[-1] + min(side, length) == length
    assert all(0 < later - first <= side - side // OVERLAP for first, later in itertools.pairwise(found))


@given(st.integers(5, 40), st.integers(5, 40), st.integers(4, 16))
def test_a_decoder_of_single_latents_is_decoded_exactly(height, width, side):
    """Whatever the tiles are, the weights of every pixel sum to 1."""
    latents = torch.randn(1, 3, 2, height, width, dtype=torch.float64)

    def decode(part):
        return part.repeat_interleave(2, -1).repeat_interleave(2, -2)

    found = decode_tiles(decode, latents, side, 2)
    torch.testing.assert_close(found, decode(latents), rtol=1e-12, atol=1e-12)


def test_a_tile_is_no_larger_than_asked():
    sizes = []

    def decode(part):
        sizes.append(tuple(part.shape[3:]))
        return part

    decode_tiles(decode, torch.zeros(1, 3, 1, 30, 9), 8, 1)
    assert set(sizes) == {(8, 8)}
    assert len(sizes) == len(starts(30, 8)) * 2


def test_images_at_once_change_nothing():
    torch.manual_seed(0)
    codec = VideoCodec.build("AutoencoderKL", IMAGES).eval()
    latents = torch.randn(1, 4, 6, 4, 6)
    with torch.inference_mode():
        whole, one = (codec.pixels(latents, 6, images) for images in (4, 1))
        torch.testing.assert_close(one, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "decibel"), [(96, 30), (128, 34)])
def test_tiles_of_the_bundled_model(side, decibel):
    """Latents of a bounce at four times the model's width, by tiles, beside the whole."""
    torch.manual_seed(0)
    codec = Components.load(bundled_model()).video
    frames = torch.zeros(1, 8, 128, 256, 3)
    frames[:, :, 90:] = 0.4
    frames[:, :, 30:70, 100:150] = torch.tensor([0.8, -0.5, -0.6])
    with torch.inference_mode():
        latents = codec.encode(frames)
        whole, tiled = (codec.decode(latents, 8, tiles).float() for tiles in (WHOLE, DecodeTiles(1, side)))
    error = (whole - tiled).square().mean()
    assert error > 0
    assert 10 * torch.log10(255**2 / error) > decibel


@pytest.mark.parametrize("values", [{"images": 0}, {"side": 8}, {"side": 10_000}], ids=str)
def test_refusals(values):
    with pytest.raises(ValueError, match="must be"):
        DecodeTiles(**values)


def test_choices_take_less_and_less():
    assert CHOICES[0] == WHOLE
    sides = [choice.side or 10_000 for choice in CHOICES]
    assert sides == sorted(sides, reverse=True)
