"""The noise source: published answers, the distribution, and that an element's value depends on its address alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from syncflow.engine.sampling.noise import Stream, _normal_from_words, normal, numpy_normal, philox4x32

SEEDS = st.integers(0, 2**64 - 1)
WORDS = st.integers(0, 2**32 - 1)
OFFSETS = st.one_of(st.integers(0, 50), st.integers(2**34 - 50, 2**34 + 50), st.integers(0, 2**64 - 1000))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        pytest.param([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], id="zeros"),
        pytest.param([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD], id="ones"),
        pytest.param(
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
            id="pi",
        ),
    ],
)
def test_philox_gives_the_vectors_that_random123_publishes(counter, key, words):
    assert philox4x32(counter, key).tolist() == words
    assert philox4x32([counter, counter], key).tolist() == [words, words]


def test_values_are_frozen():
    """What a seed means is a promise: these values also stand in the C++ test."""
    expected = ["-0x1.8c5bd40000000p-1", "-0x1.54e12e0000000p-2", "-0x1.f2517e0000000p+0", "-0x1.fa0de20000000p-3"]
    assert [float(v).hex() for v in normal(0x0123456789ABCDEF, Stream.AUDIO, 4, substream=2)] == expected
    assert (Stream.VIDEO, Stream.AUDIO) == (0, 1)


def test_normals_are_the_inverse_of_the_normal_distribution():
    ends = np.arange(1000, dtype=np.uint32)
    middle = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    edge = np.uint32(round(0.075 * 2**32)) + np.arange(-500, 500)
    words = np.concatenate([ends, edge.astype(np.uint32), middle])
    expected = stats.norm.ppf((words + 0.5) / 2.0**32)
    np.testing.assert_allclose(_normal_from_words(words), expected, rtol=1e-7)
    np.testing.assert_array_equal(_normal_from_words(~words), -_normal_from_words(words))


@pytest.mark.parametrize("stream", list(Stream))
def test_a_stream_is_standard_normal(stream):
    draw = normal(3, stream, 200_000).astype(np.float64)
    assert stats.kstest(draw, "norm").pvalue > 0.01
    assert abs(draw.mean()) < 4 / math.sqrt(draw.size)
    assert abs(draw.var() - 1) < 4 * math.sqrt(2 / draw.size)
    assert abs(stats.skew(draw)) < 4 * math.sqrt(6 / draw.size)
    assert abs(stats.kurtosis(draw)) < 4 * math.sqrt(24 / draw.size)
    assert abs(np.corrcoef(draw[:-1], draw[1:])[0, 1]) < 4 / math.sqrt(draw.size)


def test_streams_do_not_correlate():
    draws = [
        normal(3, Stream.VIDEO, 100_000),
        normal(3, Stream.AUDIO, 100_000),
        normal(4, Stream.VIDEO, 100_000),
        normal(3 + 2**32, Stream.VIDEO, 100_000),
        normal(3, Stream.VIDEO, 100_000, substream=1),
        normal(3, Stream.VIDEO, 100_000, offset=2**34),
    ]
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 5 / math.sqrt(100_000)


@given(SEEDS, WORDS, WORDS, OFFSETS, st.integers(0, 40), st.integers(0, 40))
def test_an_element_depends_on_its_position_alone(seed, stream, substream, offset, before, count):
    whole = normal(seed, stream, before + count, offset=offset, substream=substream)
    part = normal(seed, stream, count, offset=offset + before, substream=substream)
    np.testing.assert_array_equal(part, whole[before:])


def test_shape_is_a_view_of_the_stream():
    flat = normal(5, Stream.VIDEO, 24)
    for shape in [(24,), (2, 3, 4), [4, 6], (1, 24, 1)]:
        shaped = normal(5, Stream.VIDEO, shape)
        assert shaped.shape == tuple(shape)
        assert shaped.dtype == np.float32
        np.testing.assert_array_equal(shaped.ravel(), flat)
    assert normal(5, Stream.VIDEO, ()) == flat[0]
    assert normal(5, Stream.VIDEO, (3, 0)).shape == (3, 0)


@given(SEEDS, WORDS, WORDS, OFFSETS, st.integers(1, 40))
def test_numpy_alone_gives_what_normal_gives(seed, stream, substream, offset, count):
    found = normal(seed, stream, count, offset=offset, substream=substream)
    np.testing.assert_array_equal(numpy_normal(seed, stream, substream, offset, count), found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"seed": -1}, r"seed is -1; .* from 0 to 2\*\*64 - 1", id="negative seed"),
        pytest.param({"seed": 2**64}, r"seed is 18446744073709551616; .* 2\*\*64 - 1", id="long seed"),
        pytest.param({"stream": 2**32}, r"stream is 4294967296; .* 2\*\*32 - 1", id="long stream"),
        pytest.param({"substream": -1}, r"substream is -1; ", id="negative substream"),
        pytest.param({"offset": -1}, r"offset is -1; ", id="negative offset"),
        pytest.param({"offset": 2**64 - 1}, r"offset 18446744073709551615 plus 2 elements", id="past the end"),
        pytest.param({"shape": (2, -1)}, r"shape is \(2, -1\); ", id="negative size"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        normal(**{"seed": 0, "stream": 0, "shape": 2, **arguments})
