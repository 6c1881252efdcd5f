"""Text cross-attention against SDPA, row by row over the tokens that count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from syncflow.kernels import implementation, text_cross_attention


def formulation(q, k, v, lengths, text_of_row):
    outputs = []
    for row, text in enumerate(text_of_row.tolist()):
        length = int(lengths[text])
        heads = (x.transpose(0, 1) for x in (q[row], k[text, :length], v[text, :length]))
        outputs.append(scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1))
    return torch.stack(outputs) if outputs else q.flatten(2)


def with_channels_reversed(q, k, v, lengths, text_of_row):
    return formulation(q.flip(-1), k.flip(-1), v, lengths, text_of_row)


def with_words_reversed(q, k, v, lengths, text_of_row):
    k, v = k.clone(), v.clone()
    for text, length in enumerate(lengths.tolist()):
        k[text, :length], v[text, :length] = k[text, :length].flip(0), v[text, :length].flip(0)
    return formulation(q, k, v, lengths, text_of_row)


def inputs(rows, texts, tokens, words, heads, width, dtype, seed, strided=False):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, tokens, heads, width, generator=generator)
    packed = torch.randn(texts, words, 2, heads, width, generator=generator)
    k, v = packed.unbind(2) if strided else (x.contiguous() for x in packed.unbind(2))
    lengths = torch.randint(1, words + 1, (texts,), generator=generator)
    text_of_row = torch.randint(texts, (rows,), generator=generator)
    return (q.to(dtype), k.to(dtype), v.to(dtype), lengths, text_of_row)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(
    rows=st.integers(0, 3),
    texts=st.integers(1, 3),
    tokens=st.sampled_from([0, 1, 2, 13, 67]),
    words=st.sampled_from([1, 2, 11, 71]),
    heads=st.integers(1, 2),
    width=st.sampled_from([32, 48, 64, 72, 128]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_sdpa(check, dtype, rows, texts, tokens, words, heads, width, strided, seed):
    arguments = inputs(rows, texts, tokens, words, heads, width, dtype, seed, strided)
    check(text_cross_attention, formulation, *arguments, orders=(with_channels_reversed, with_words_reversed))


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_words_beyond_the_length_do_not_count(name):
    q, k, v, _, text_of_row = inputs(3, 2, 4, 70, 2, 8, torch.float32, 0)
    lengths = torch.tensor([2, 65])
    with torch.no_grad(), implementation(name):
        before = text_cross_attention(q, k, v, lengths, text_of_row)
        for text, length in enumerate(lengths.tolist()):
            k[text, length:] = 1e4
            v[text, length:] = -1e4
        torch.testing.assert_close(text_cross_attention(q, k, v, lengths, text_of_row), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_rows_that_share_a_text_read_the_same_one(name):
    q, k, v, lengths, _ = inputs(4, 2, 4, 6, 2, 8, torch.float32, 0)
    repeated = torch.tensor([1, 0, 1, 1])
    with torch.no_grad(), implementation(name):
        shared = text_cross_attention(q, k, v, lengths, repeated)
        apart = text_cross_attention(q, k[repeated], v[repeated], lengths[repeated], torch.arange(4))
    torch.testing.assert_close(shared, apart, rtol=0, atol=0)


def test_one_word_is_all_that_is_read():
    q, k, v, _, text_of_row = inputs(3, 2, 4, 6, 2, 8, torch.float32, 0)
    read = text_cross_attention(q, k, v, torch.ones(2, dtype=torch.int64), text_of_row)
    torch.testing.assert_close(read, v[text_of_row, :1].flatten(2).expand(-1, 4, -1))


@pytest.mark.parametrize("name", ["reference", "auto"])
def test_indices_of_four_bytes(name):
    q, k, v = torch.randn(3, 5, 2, 6), torch.randn(2, 4, 2, 6), torch.randn(2, 4, 2, 6)
    indices = torch.tensor([4, 2]), torch.tensor([1, 0, 1])
    with torch.no_grad(), implementation(name):
        expected = text_cross_attention(q, k, v, *indices)
        found = text_cross_attention(q, k, v, *(index.int() for index in indices))
    assert torch.equal(found, expected)
