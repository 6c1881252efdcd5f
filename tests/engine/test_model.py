"""The d-DiT: Open-Sora's tensors, the one-way rule, time, positions, patches, and rows that do not see each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow import preset
from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT, audio
from syncflow.engine.model.denoiser import Sight
from syncflow.engine.model.layers import ScalarEmbedding
from syncflow.engine.model.video import VideoTower
from syncflow.engine.types import Conditioning
from syncflow.kernels import rope_table

SMALL = DDiTConfig(
    width=16,
    depth=2,
    heads=2,
    audio_heads=2,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
)
ROWS, FRAMES, SIDE, AUDIO = 2, 2, 4, 9


def randomised(config: DDiTConfig, seed: int = 0) -> DDiT:
    """A model none of whose weights is zero; fresh ones are silent."""
    model = DDiT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> DDiT:
    return randomised(SMALL)


def inputs(rows=ROWS, frames=FRAMES, height=SIDE, width=SIDE, config=SMALL, seed=0):
    """z_v, z_a, t_v, t_a, fps, states of a text for every row, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "z_v": torch.randn(rows, config.video_channels, frames, height, width, generator=generator),
        "z_a": torch.randn(rows, AUDIO, config.audio_channels, generator=generator),
        "t_v": torch.rand(rows, generator=generator),
        "t_a": torch.rand(rows, generator=generator),
        "fps": torch.full((rows,), 16.0),
        "states": torch.randn(rows, config.text_tokens, config.text_width, generator=generator),
        "lengths": torch.randint(1, config.text_tokens + 1, (rows,), generator=generator),
    }


def run(model, *, states, lengths, text_of_row=None, **given):
    text = model.video.condition(states, lengths)
    row = torch.arange(len(given["z_v"])) if text_of_row is None else text_of_row
    return model(**given, text=text, text_of_row=row)


def passes(model, given):
    """What the video pass and the audio pass take: latents, times, text, and the text of every row."""
    text, rows = model.condition(given["states"], given["lengths"]), torch.arange(len(given["z_v"]))
    times = model.modulation(given["t_v"][:, None], given["fps"]), model.audio_time(given["t_a"])
    return (given["z_v"], times[0], text, rows), (given["z_a"], times[1], text, rows)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


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


def test_the_full_size_audio_tower_is_as_deep_as_the_video_tower():
    with torch.device("meta"):
        tower = DDiT(preset("syncflow-xl").ddit).audio
    assert len(tower.layers) == len(tower.adaptors) == 28
    assert tower.x_embedder.in_features == tower.final_linear.out_features == 128


def test_a_fresh_model_is_silent():
    velocities = run(DDiT(SMALL), **inputs())
    assert not velocities.video.any()
    assert not velocities.audio.any()


def test_shapes(model):
    given = inputs(rows=3, frames=4, height=6, width=8)
    velocities = run(model, **given)
    assert velocities.video.shape == given["z_v"].shape
    assert velocities.audio.shape == given["z_a"].shape


def test_the_video_does_not_hear_the_audio(model):
    given = inputs()
    before = run(model, **given)
    after = run(model, **given | {"z_a": given["z_a"] + 1, "t_a": 1 - given["t_a"]})
    torch.testing.assert_close(before.video, after.video, rtol=0, atol=0)
    assert not torch.allclose(before.audio, after.audio)


@pytest.mark.parametrize("what", ["z_v", "t_v"])
def test_the_audio_sees_the_video(model, what):
    given = inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    assert not torch.allclose(before.audio, after.audio, atol=1e-4)


@pytest.mark.parametrize("what", ["z_a", "t_a"])
def test_the_audio_hears_itself(model, what):
    given = inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    assert not torch.allclose(before.audio, after.audio, atol=1e-4)


@pytest.mark.parametrize("what", ["t_v", "fps", "states"])
def test_the_video_depends_on(model, what):
    given = inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    assert not torch.allclose(before.video, after.video, atol=1e-4)


def test_equal_times_of_all_frames_are_one_time(model):
    given = inputs()
    per_frame = given["t_v"][:, None].expand(-1, FRAMES)
    one, many = run(model, **given), run(model, **given | {"t_v": per_frame})
    torch.testing.assert_close(one.video, many.video)
    torch.testing.assert_close(one.audio, many.audio)


def test_frames_have_times_of_their_own(model):
    given = inputs()
    earlier = torch.stack((given["t_v"], given["t_v"] * 0.5), 1)
    one, two = run(model, **given), run(model, **given | {"t_v": earlier})
    assert not torch.allclose(one.video, two.video, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(model):
    given = inputs(rows=4)
    together = run(model, **given)
    for row in range(4):
        alone = run(model, **{name: value[row : row + 1] for name, value in given.items()})
        torch.testing.assert_close(together.video[row], alone.video[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.audio[row], alone.audio[0], rtol=1e-4, atol=1e-5)


def test_rows_may_share_a_text(model):
    given = inputs(rows=3)
    shared = torch.tensor([1, 0, 1])
    texts = {"states": given.pop("states"), "lengths": given.pop("lengths")}
    apart = run(model, **given, **{name: value[shared] for name, value in texts.items()})
    together = run(model, **given, **texts, text_of_row=shared)
    torch.testing.assert_close(apart.video, together.video)
    torch.testing.assert_close(apart.audio, together.audio)


def test_words_beyond_the_length_do_not_count(model):
    given = inputs() | {"lengths": torch.tensor([2, 4])}
    changed = given["states"].clone()
    changed[0, 2:] += 1
    changed[1, 4:] += 1
    before, after = run(model, **given), run(model, **given | {"states": changed})
    torch.testing.assert_close(before.video, after.video, rtol=0, atol=0)


@pytest.mark.parametrize("adaptor_tokens", ["all", "frame", "none"])
@pytest.mark.parametrize("audio_text", [False, True])
def test_every_way_to_read_the_video(adaptor_tokens, audio_text):
    config = SMALL.replace(adaptor_tokens=adaptor_tokens, audio_text=audio_text)
    model, given = randomised(config), inputs(frames=3)
    assert len(model.audio.adaptors) == (0 if adaptor_tokens == "none" else config.depth)
    velocities = run(model, **given)
    assert velocities.audio.shape == given["z_a"].shape
    assert velocities.audio.isfinite().all()
    changed = run(model, **given | {"z_v": given["z_v"] * 0.5})
    assert not torch.allclose(velocities.audio, changed.audio, atol=1e-4)


@pytest.mark.parametrize("adaptor_tokens", ["all", "frame", "none"])
def test_contexts_are_keys_and_values_of_the_adapted_tokens(adaptor_tokens):
    config = SMALL.replace(adaptor_tokens=adaptor_tokens)
    model = randomised(config)
    (z, times, text, rows), _ = passes(model, inputs(frames=3))
    _, features = model.video(z, *times, text, rows, keep=lambda _, x: x)
    _, contexts = model.video_pass(z, times, text, rows, seen=rows)
    tokens = 3 if adaptor_tokens == "frame" else 3 * (SIDE // 2) ** 2
    rope = rope_table(model.sight_positions(3, (SIDE // 2) ** 2)[:, None] * model.audio.freqs)
    assert len(contexts) == len(features) == config.depth
    for i, (context, feature) in enumerate(zip(contexts, features, strict=True)):
        x = feature.mean(2) if adaptor_tokens == "frame" else feature.flatten(1, 2)
        x = x if adaptor_tokens == "none" else model.audio.adaptors[i](x, rope)
        assert context.shape == (ROWS, tokens, 2, config.audio_heads, config.audio_head_width)
        close(context.unbind(2), model.audio.layers[i].cross_attn.keys_values(x))


@given(st.data())
@settings(max_examples=30)
def test_a_video_pass_gives_what_it_is_asked_for(model, data):
    """Velocities of the rows that are drawn, contexts of the rows that are seen."""
    rows = data.draw(st.integers(1, 4))
    num_outputs = data.draw(st.none() | st.integers(0, rows))
    seen = data.draw(st.none() | st.lists(st.integers(0, rows - 1), min_size=1, max_size=4))
    given, _ = passes(model, inputs(rows))
    whole, contexts = model.video_pass(*given, seen=torch.arange(rows))
    velocity, found = model.video_pass(
        *given, num_outputs=num_outputs, seen=None if seen is None else torch.tensor(seen)
    )
    assert len(velocity) >= (rows if num_outputs is None else num_outputs)
    close(velocity[:num_outputs], whole[:num_outputs])
    assert len(found) == (0 if seen is None else SMALL.depth)
    for one, every in zip(found, contexts, strict=False):
        close(one, every[seen])


@given(st.data())
@settings(max_examples=30)
def test_audio_rows_read_the_contexts_that_they_are_given(model, data):
    """One by one the same as together: each its own context, another's, or none."""
    rows, contexts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    of_row = data.draw(st.lists(st.integers(-1, contexts - 1), min_size=rows, max_size=rows))
    num_outputs = data.draw(st.none() | st.integers(0, rows))
    (video, _), (_, audio) = passes(model, inputs(contexts)), passes(model, inputs(rows, seed=1))
    _, context = model.video_pass(*video, seen=torch.arange(contexts))
    positions = model.sight_positions(FRAMES, (SIDE // 2) ** 2)
    sight = Sight(positions, torch.tensor(of_row))
    together, heard = model.audio_pass(*audio, context=context, sight=sight, num_outputs=num_outputs)
    assert heard == []
    z, times, text, row = audio
    for r in range(rows)[:num_outputs]:
        c = of_row[r]
        own = {"context": [part[c : c + 1] for part in context], "sight": Sight(positions)} if c >= 0 else {}
        alone, _ = model.audio_pass(z[r : r + 1], times[r : r + 1], text, row[r : r + 1], **own)
        close(together[r], alone[0])


@pytest.mark.parametrize("audio_text", [False, True])
def test_the_audio_tower_reads_text_when_it_is_told_to(audio_text):
    model, given = randomised(SMALL.replace(audio_text=audio_text)), inputs()
    shape = (ROWS, FRAMES, 2, SMALL.audio_heads, SMALL.audio_head_width)
    context = [torch.randn(shape) for _ in range(SMALL.depth)]
    sight = Sight(model.sight_positions(FRAMES, tokens=1))

    def velocity(states):
        _, audio = passes(model, given | {"states": states})
        return model.audio_pass(*audio, context=context, sight=sight)[0]

    before, after = velocity(given["states"]), velocity(given["states"] + 1)
    assert torch.equal(before, after) is not audio_text


def test_the_bridge_carries_features_after_temporal_attention(model):
    """Layer l hands over what its temporal block's attention makes, before text and MLP."""
    given, _ = passes(model, inputs())
    seen = {}
    hooks = []
    for i, block in enumerate(model.video.temporal_blocks):
        hooks.append(block.cross_attn.q_linear.register_forward_hook(lambda _, x, __, i=i: seen.update({i: x[0]})))
    z, times, text, rows = given
    _, features = model.video(z, *times, text, rows, keep=lambda _, x: x)
    for hook in hooks:
        hook.remove()
    assert len(features) == SMALL.depth
    for i, feature in enumerate(features):
        torch.testing.assert_close(feature.flatten(1, 2), seen[i], rtol=0, atol=0)


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
    rows, embedded = tower.modulation(torch.zeros(2, 1), torch.ones(2))
    velocity, _ = tower(z, rows, embedded, text, torch.arange(2))
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


def test_audio_positions_are_seconds_on_both_sides(model, monkeypatch):
    """Audio token k sounds at k / 50 s, a latent frame stands in the middle of its quarter second.

    The time token is the tail, which stands at 0.
    """
    clocks = []
    attend = audio.rope_cross_attention
    monkeypatch.setattr(audio, "rope_cross_attention", lambda *args: clocks.append(args[3:]) or attend(*args))
    given = inputs()
    run(model, **given)
    assert len(clocks) == SMALL.depth
    tokens = (SIDE // SMALL.patch) ** 2
    for layer, (sounds, context, frequencies, window, _, *tail) in zip(model.audio.layers, clocks, strict=True):
        torch.testing.assert_close(sounds, torch.arange(float(AUDIO)))
        torch.testing.assert_close(context, torch.tensor([6.25] * tokens + [18.75] * tokens))
        torch.testing.assert_close(frequencies, 1e4 ** (-torch.arange(0, 8, 2) / 8))
        assert window < 0
        torch.testing.assert_close(tail, list(layer.cross_attn.keys_values(model.audio_time(given["t_a"])[:, None])))


def test_text_is_projected_once_for_all_blocks(model):
    given = inputs()
    text = model.video.condition(given["states"], given["lengths"])
    assert isinstance(text, Conditioning)
    assert text.keys.shape == text.values.shape == (2 * SMALL.depth, ROWS, SMALL.text_tokens, 2, 8)
    block = model.video.temporal_blocks[1].cross_attn
    keys, values = block.keys_values(model.video.y_embedder(given["states"]))
    torch.testing.assert_close(text.keys[3], keys, rtol=0, atol=0)
    torch.testing.assert_close(text.values[3], values, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_run(dtype):
    model = randomised(SMALL).to(dtype)
    given = {name: value.to(dtype) if name in ("z_v", "z_a", "states") else value for name, value in inputs().items()}
    velocities = run(model, **given)
    assert velocities.video.dtype == velocities.audio.dtype == dtype
    assert velocities.video.isfinite().all()
