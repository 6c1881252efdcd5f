"""Where recorded computations find their inputs: rounded counts, what is copied and when."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.runtime.buckets import round_up
from syncflow.engine.runtime.cuda_graphs.static_inputs import Input, Statics


def test_counts_are_rounded_to_few():
    rounded = [round_up(count) for count in range(50)]
    assert sorted(set(rounded)) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert rounded == sorted(rounded)


@given(st.integers(1, 10_000))
def test_rounding_takes_less_than_half_more(count):
    assert count <= round_up(count) < 1.5 * count
    assert round_up(round_up(count)) == round_up(count)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_what_is_put_is_there(counts):
    statics = Statics()
    held = []
    for count in counts:
        values = {"latents": Input(torch.randn(count, 3)), "texts": Input(torch.randn(2, count, 3), axis=1)}
        values["index"] = Input(torch.randint(0, count, (count,)))
        values["exact"] = Input(torch.randn(count), exact=True)
        found = statics.put(values)
        held.append(found)  # as a recording would
        for name, one in values.items():
            assert torch.equal(found[name].tensor.narrow(one.axis, 0, count), one.value)
        assert len(found["exact"].tensor) == count
        assert [found[n].tensor.shape[a] for n, a in (("latents", 0), ("texts", 1), ("index", 0))] == [
            round_up(count)
        ] * 3
        assert found["index"].tensor.max() < count, "an index of earlier inputs points beyond the present ones"
    assert len({id(found["latents"]) for found in held}) == len({round_up(count) for count in counts})


@pytest.mark.parametrize("steady", [False, True])
def test_a_steady_input_is_copied_when_it_is_another_tensor(steady):
    statics, value = Statics(), torch.ones(3)
    static = statics.put({"x": Input(value, steady=steady)})["x"]
    static.tensor.zero_()
    statics.put({"x": Input(value, steady=steady)})
    assert bool(static.tensor.any()) is not steady
    statics.put({"x": Input(value.clone(), steady=steady)})
    assert bool(static.tensor.all())


def test_a_tensor_in_the_place_of_one_that_is_gone_is_another():
    """Memory, and with it addresses, are used again."""
    statics, static = Statics(), None
    for value in range(50):
        static = statics.put({"x": Input(torch.full((4,), float(value)), steady=True)})["x"]
        assert static.tensor.tolist() == [value] * 4


def test_statics_go_with_who_holds_them():
    statics = Statics()
    first = statics.put({"x": Input(torch.ones(5))})["x"]
    assert statics.put({"x": Input(torch.ones(6))})["x"] is first
    del first
    assert not statics._kept


def test_nothing_has_room_for_nothing():
    assert Statics().put({"x": Input(torch.zeros(0, dtype=torch.long))})["x"].tensor.shape == (0,)
