"""Small models of every kind."""

from __future__ import annotations

import pytest

from ..plain import CONFIG, randomised

CONFIGS = {
    "adaptor": CONFIG,
    "adaptor, text": CONFIG.replace(audio_text=True, adaptor_tokens="all"),
    "audio_rope": CONFIG.replace(bridge="audio_rope", first_block=1),
    "audio_rope, text": CONFIG.replace(bridge="audio_rope", audio_text=True),
    "global_local": CONFIG.replace(bridge="global_local"),
    "global_local, text": CONFIG.replace(bridge="global_local", audio_text=True),
}
ONE_WAY = [name for name in CONFIGS if "global" not in name]


@pytest.fixture(scope="module")
def models():
    """A model of every kind, by name."""
    return {name: randomised(config) for name, config in CONFIGS.items()}
