"""Static inputs of captured graphs: padded sizes, what is copied and when."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.runtime.cuda_graphs.static_inputs import GraphInput, StaticInputs, padded_size


def test_counts_are_padded_to_few_sizes():
    rounded = [padded_size(count) for count in range(50)]
    assert sorted(set(rounded)) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert rounded == sorted(rounded)


@given(st.integers(1, 10_000))
def test_padding_adds_less_than_half(count):
    assert count <= padded_size(count) < 1.5 * count
    assert padded_size(padded_size(count)) == padded_size(count)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_inputs_are_copied_in_front_of_the_padding(counts):
    statics = StaticInputs()
    held = []
    for count in counts:
        values = {"latents": GraphInput(torch.randn(count, 3)), "texts": GraphInput(torch.randn(2, count, 3), axis=1)}
        values["index"] = GraphInput(torch.randint(0, count, (count,)))
        values["exact"] = GraphInput(torch.randn(count), exact=True)
        found = statics.copy_from(values)
        held.append(found)  # as a captured graph does
        for name, one in values.items():
            assert torch.equal(found[name].tensor.narrow(one.axis, 0, count), one.value)
        assert len(found["exact"].tensor) == count
        assert [found[n].tensor.shape[a] for n, a in (("latents", 0), ("texts", 1), ("index", 0))] == [
            padded_size(count)
        ] * 3
        assert found["index"].tensor.max() < count, "an index of earlier inputs points beyond the present ones"
    assert len({id(found["latents"]) for found in held}) == len({padded_size(count) for count in counts})


@pytest.mark.parametrize("immutable", [False, True])
def test_an_immutable_input_is_copied_when_it_is_another_tensor(immutable):
    statics, value = StaticInputs(), torch.ones(3)
    static = statics.copy_from({"x": GraphInput(value, immutable=immutable)})["x"]
    static.tensor.zero_()
    statics.copy_from({"x": GraphInput(value, immutable=immutable)})
    assert bool(static.tensor.any()) is not immutable
    statics.copy_from({"x": GraphInput(value.clone(), immutable=immutable)})
    assert bool(static.tensor.all())


def test_a_new_tensor_at_the_address_of_a_freed_one_is_copied():
    """The allocator reuses addresses."""
    statics, static = StaticInputs(), None
    for value in range(50):
        static = statics.copy_from({"x": GraphInput(torch.full((4,), float(value)), immutable=True)})["x"]
        assert static.tensor.tolist() == [value] * 4


def test_static_inputs_are_freed_with_the_last_reference():
    statics = StaticInputs()
    first = statics.copy_from({"x": GraphInput(torch.ones(5))})["x"]
    assert statics.copy_from({"x": GraphInput(torch.ones(6))})["x"] is first
    del first
    assert not statics._tensors


def test_an_empty_input_is_not_padded():
    assert StaticInputs().copy_from({"x": GraphInput(torch.zeros(0, dtype=torch.long))})["x"].tensor.shape == (0,)
