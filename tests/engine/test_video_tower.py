"""The video tower: Open-Sora's tensors, positions, patches, and the embedding of time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow import preset
from syncflow.engine.model import DDiT
from syncflow.engine.model.layers import ScalarEmbedding
from syncflow.engine.model.video import VideoTower
from syncflow.engine.types import Conditioning

from .model_cases import ROWS, SMALL, inputs, randomised


@pytest.fixture(scope="module")
def model() -> DDiT:
    return randomised(SMALL)


def open_sora_tensors(width=1152, depth=28, head_width=72, text_width=4096, text_tokens=300):
    """Name and shape of every tensor of a STDiT3-XL/2 checkpoint (docs/method.md section 9)."""
    hidden = 4 * width

    def linear(name, inner, outer):
        return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}

    tensors = {
        "rope.freqs": (head_width // 2,),
        "x_embedder.proj.weight": (width, 4, 1, 2, 2),
        "x_embedder.proj.bias": (width,),
        "y_embedder.y_embedding": (text_tokens, text_width),
        "final_layer.scale_shift_table": (2, width),
        **linear("t_block.1", width, 6 * width),
        **linear("y_embedder.y_proj.fc1", text_width, width),
        **linear("y_embedder.y_proj.fc2", width, width),
        **linear("final_layer.linear", width, 32),
    }
    for embedder in ("t_embedder", "fps_embedder"):
        tensors |= linear(f"{embedder}.mlp.0", 256, width) | linear(f"{embedder}.mlp.2", width, width)
    for kind in ("spatial", "temporal"):
        for i in range(depth):
            block = f"{kind}_blocks.{i}"
            tensors |= {
                f"{block}.scale_shift_table": (6, width),
                f"{block}.attn.q_norm.weight": (head_width,),
                f"{block}.attn.k_norm.weight": (head_width,),
                **linear(f"{block}.attn.qkv", width, 3 * width),
                **linear(f"{block}.attn.proj", width, width),
                **linear(f"{block}.cross_attn.q_linear", width, width),
                **linear(f"{block}.cross_attn.kv_linear", width, 2 * width),
                **linear(f"{block}.cross_attn.proj", width, width),
                **linear(f"{block}.mlp.fc1", width, hidden),
                **linear(f"{block}.mlp.fc2", hidden, width),
            }
    return tensors


def test_the_full_size_video_tower_has_the_tensors_of_open_sora():
    with torch.device("meta"):
        tower = VideoTower(preset("syncflow-xl").ddit)
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    assert shapes == open_sora_tensors()
    assert len(shapes) == 973
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 1) == 1208.9


def positions(config, height, width):
    """Open-Sora's 2-D embedding, number by number: tokens in rows of ``width``, columns before rows."""
    quarter = config.width // 4
    scale = math.sqrt(height * width) * 16 / config.base_size
    base = round(math.sqrt(height * width))
    table = []
    for row in range(height):
        for column in range(width):
            token = []
            for place in (column / scale * base / width, row / scale * base / height):
                angles = [place / 10_000 ** (2 * i / (config.width // 2)) for i in range(quarter)]
                token += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(token)
    return torch.tensor(table)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (1, 1), (1, 5), (3, 2), (8, 4), (7, 11)])
def test_positions_are_those_of_open_sora(model, height, width):
    actual = model.video.positions(height, width)
    torch.testing.assert_close(actual, positions(SMALL, height, width), atol=1e-5, rtol=1e-5)


def test_positions_at_and_above_the_base_size():
    config = SMALL.replace(base_size=64)
    tower = VideoTower(config)
    base = tower.positions(4, 4).view(4, 4, -1)
    double = tower.positions(8, 8).view(8, 8, -1)
    torch.testing.assert_close(base[0, :, 0], torch.arange(4.0).sin())
    torch.testing.assert_close(base[:, 0, 8], torch.arange(4.0).sin())
    torch.testing.assert_close(double[0, :, 0], (torch.arange(8.0) / 2).sin())
    torch.testing.assert_close(double[::2, ::2], base)


def test_a_rectangle_covers_the_same_ground_as_a_square():
    """Both sides of any shape span the side of the square of its area, at the base resolution's scale."""
    tower = VideoTower(SMALL.replace(base_size=64))
    wide = tower.positions(2, 8).view(2, 8, -1)
    torch.testing.assert_close(wide[0, :, 0], (torch.arange(8.0) / 2).sin())
    torch.testing.assert_close(wide[:, 0, 8], (torch.arange(2.0) * 2).sin())


@pytest.mark.slow
@pytest.mark.parametrize("sigma_head", [True, False])
@given(
    place=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 5), st.integers(0, 3)),
    row=st.integers(0, 1),
)
@settings(max_examples=20)
def test_a_pixel_comes_out_where_it_went_in(sigma_head, place, row):
    """Blocks shut, first and last layer set to pass patch values on: one bright latent stays where it is."""
    config = SMALL.replace(sigma_head=sigma_head)
    tower = VideoTower(config).requires_grad_(False)
    channels, patch = config.video_channels, config.patch
    for block in (*tower.spatial_blocks, *tower.temporal_blocks):
        for linear in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
            linear.weight.zero_()
    tower.final_layer.scale_shift_table.zero_()
    for linear in (tower.t_embedder.mlp[2], tower.fps_embedder.mlp[2], tower.x_embedder.proj, tower.final_layer.linear):
        linear.weight.zero_()
        linear.bias.zero_()
    outputs = channels * (2 if sigma_head else 1)
    for p in range(patch):
        for q in range(patch):
            for c in range(channels):
                slot = (p * patch + q) * channels + c
                tower.x_embedder.proj.weight[slot, c, 0, p, q] = 1
                tower.final_layer.linear.weight[(p * patch + q) * outputs + c, slot] = 1
    z = torch.zeros(2, channels, 3, 6, 4)
    z[(row, *place)] = 1e4
    text = tower.condition(torch.randn(2, config.text_tokens, config.text_width), torch.tensor([6, 6]))
    velocity, _ = tower(z, tower.modulation(torch.zeros(2, 1), torch.ones(2)), text, torch.arange(2))
    assert velocity.shape == z.shape
    assert tuple(torch.unravel_index(velocity.argmax(), velocity.shape)) == (row, *place)


def test_scalars_become_cosines_and_sines():
    embedding, seen = ScalarEmbedding(16), []
    embedding.mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    embedding(torch.tensor([0.0, 3.5, 1000.0]))
    expected = [
        [trig(x * 10_000 ** (-i / 128)) for trig in (math.cos, math.sin) for i in range(128)]
        for x in (0.0, 3.5, 1000.0)
    ]
    torch.testing.assert_close(seen[0], torch.tensor(expected), atol=2e-4, rtol=0)


def test_time_runs_backwards_in_the_embedding(model):
    """Open-Sora counts from 1000 at noise to 0 at data; flow time runs from 0 to 1."""
    seen = []
    hook = model.video.t_embedder.register_forward_hook(lambda _, x, __: seen.append(x[0]))
    model.video.modulation(torch.tensor([[0.0], [0.25], [1.0]]), torch.ones(3))
    hook.remove()
    torch.testing.assert_close(seen[0].flatten(), torch.tensor([1000.0, 750.0, 0.0]))


def test_text_is_projected_once_for_all_blocks(model):
    given = inputs()
    text = model.video.condition(given["states"], given["lengths"])
    assert isinstance(text, Conditioning)
    assert text.keys.shape == text.values.shape == (2 * SMALL.depth, ROWS, SMALL.text_tokens, 2, 8)
    block = model.video.temporal_blocks[1].cross_attn
    keys, values = block.keys_values(model.video.y_embedder(given["states"]))
    torch.testing.assert_close(text.keys[3], keys, rtol=0, atol=0)
    torch.testing.assert_close(text.values[3], values, rtol=0, atol=0)
