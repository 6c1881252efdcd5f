"""Prompts and settings on their way to requests: nothing is dropped without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syncflow import Request
from syncflow.engine.settings import ALIASES, SETTINGS, make_request, make_requests
from syncflow.engine.types import MAX_SEED

REQUEST = Request("a ball", seed=3)


def test_prompts_take_the_settings_and_consecutive_seeds():
    assert make_requests("a ball", {"steps": 2}) == [Request("a ball", steps=2)]
    assert make_requests(["a", "b"], {"seed": 5}) == [Request("a", seed=5), Request("b", seed=6)]
    assert make_requests(("a", REQUEST, "b"), {}) == [Request("a"), REQUEST, Request("b", seed=2)]
    assert make_requests((text for text in "ab"), {}) == [Request("a"), Request("b", seed=1)]
    assert make_requests(np.array(["a"]), {"seed": np.int64(4)}) == [Request("a", seed=4)]


def test_requests_stay_as_they_are():
    assert make_requests(REQUEST, {}) == [REQUEST]
    assert make_requests([REQUEST], {})[0] is REQUEST


@pytest.mark.parametrize("requests", [REQUEST, [REQUEST], ["a", REQUEST]], ids=["one", "list", "mixed"])
@pytest.mark.parametrize("settings", [{"seed": 9}, {"steps": 2, "takes": 2}])
def test_settings_beside_a_request_are_refused(requests, settings):
    with pytest.raises(ValueError, match=rf"{', '.join(settings)} cannot be given beside a Request.*dataclasses"):
        make_requests(requests, settings)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_inference_steps", "did you mean steps?"),
        ("guidance_scale", "did you mean guidance?"),
        ("step", "did you mean steps?"),
        ("negativ_prompt", "did you mean negative_prompt?"),
        ("generator", "did you mean seed?"),
        ("zzz", f"it has {', '.join(SETTINGS)}"),
        ("prompt", "it has seed, steps"),
    ],
)
@pytest.mark.parametrize("request_", ["a ball", REQUEST, ["a ball"], [REQUEST]], ids=["text", "one", "texts", "list"])
def test_an_unknown_setting_names_its_nearest(name, hint, request_):
    with pytest.raises(ValueError) as caught:
        make_requests(request_, {name: 1})
    assert str(caught.value).startswith(f"a request has no setting {name}; ") and hint in str(caught.value)


def test_a_generator_gives_its_seed():
    generator = torch.Generator().manual_seed(7)
    request = make_request("a ball", {"generator": generator, "steps": 3})
    assert (request.seed, request.steps) == (7, 3)
    assert [one.seed for one in make_requests(["a", "b"], {"generator": generator})] == [7, 8]
    with pytest.raises(ValueError, match="seed and generator are given; a request has one of them"):
        make_requests("a ball", {"generator": generator, "seed": 1})


def test_aliases_lead_to_settings():
    assert {part for name in ALIASES.values() for part in name.split(" and ")} <= set(SETTINGS)
    assert not set(ALIASES) & set(SETTINGS)


@pytest.mark.parametrize("value", [5, None, b"a ball", {"prompt": "a ball"}, 0.5], ids=repr)
def test_what_is_no_prompt_is_refused(value):
    for call in (lambda: make_requests(value, {}), lambda: make_request(value, {})):
        with pytest.raises(ValueError, match=r"the request is .*; it must be a prompt or a Request"):
            call()
    with pytest.raises(ValueError, match=r"request 2 is .*; it must be a prompt or a Request"):
        make_requests(["a ball", value], {})


def test_a_list_is_not_one_request():
    with pytest.raises(ValueError, match=r"the request is \['a ball'\]; it must be a prompt or a Request"):
        make_request(["a ball"], {})
    with pytest.raises(ValueError, match="there is nothing to generate: the list of requests is empty"):
        make_requests([], {})


@pytest.mark.parametrize("seed", ["7", 0.5, -1, MAX_SEED], ids=str)
def test_seeds_of_several_prompts_are_checked(seed):
    with pytest.raises(ValueError, match=r"seed is .*; it must be a whole number from 0 to"):
        make_requests(["a", "b"], {"seed": seed})
