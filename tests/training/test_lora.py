"""Training of adapters: only the branches move, and what was trained is what the engine loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from syncflow.engine.adapters import Adapter
from syncflow.engine.model import DDiT
from syncflow.engine.model.lora import AdaptedModel, merge, target_layers
from syncflow.engine.types import Conditioning
from syncflow.training.config import TrainConfig
from syncflow.training.lora import add_branches, branches_of, take_branches
from syncflow.training.stages import optimisers, trained_modules

from ..engine.model_cases import SMALL, inputs, passes, randomised


def velocity(model: DDiT, weights: torch.Tensor | None = None) -> torch.Tensor:
    video, _ = passes(model, inputs())
    text = Conditioning(video.text.keys, video.text.values, video.text.lengths, video.text.text_tokens, weights)
    return model.video_pass(type(video)(video.latents, video.modulation, text, video.text_of_row))[0]


def trained(model: DDiT) -> Adapter:
    """An adapter after a few steps away from the weights."""
    config = TrainConfig(stage="video", lora=2, compile=False)
    model.requires_grad_(False)
    add_branches(model, config.lora)
    for module in trained_modules(model, None, config):  # type: ignore[arg-type]
        module.requires_grad_(True)
    (optimiser,) = optimisers(model, None, config)  # type: ignore[arg-type]
    for _ in range(3):
        loss = (velocity(model) - 1).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return take_branches(model)


def test_fresh_branches_change_nothing() -> None:
    model = randomised(SMALL)
    before = velocity(model)
    add_branches(model, 3)
    assert len(branches_of(model)) == len(target_layers(model)) == 2 * SMALL.depth * 7
    with torch.no_grad():
        torch.testing.assert_close(velocity(model), before)


def test_only_the_branches_move_and_come_out_as_an_adapter(tmp_path: Path) -> None:
    model = randomised(SMALL)
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    before = velocity(model)
    adapter = trained(model)
    after = model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], x) for name, x in weights.items())
    torch.testing.assert_close(velocity(model), before)
    adapter.save_pretrained(tmp_path)
    read = Adapter.from_pretrained(tmp_path, model)
    assert any(float(branch.up.abs().max()) > 0 for branch in read.branches.values())


def test_trained_loaded_and_merged_agree(tmp_path: Path) -> None:
    model = randomised(SMALL)
    adapter = trained(model)
    merged = randomised(SMALL)
    merge(merged, adapter.branches)
    adapted = AdaptedModel(model)
    adapted.add(0, adapter.branches)
    rows = torch.ones(2, 1)
    with adapted.rows.set(rows):  # the keys and values of the text
        found = velocity(model, rows)
    torch.testing.assert_close(found, velocity(merged), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, velocity(model), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"), [({"lora": -1}, "lora is -1"), ({"stage": "audio", "lora": 4}, "stage audio does not train")]
)
def test_settings_that_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig().replace(**settings)
