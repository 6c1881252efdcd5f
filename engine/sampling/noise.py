"""Noise that depends on nothing but its address: seed, stream, and position in the stream.

Counter-based (Philox4x32-10; Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), so
that element ``i`` of a request's noise is the same alone or in a batch, in any shape, from numpy, from C++ and on a
GPU. This is the specification, which ``csrc/src/sampling/noise.cpp`` repeats bit for bit:

1. Element ``i`` is word ``i % 4`` of Philox block ``i // 4``. Counter words: block low, block high, stream, substream;
   key words: seed low, seed high.
2. A word ``x`` becomes ``p = (x + 0.5) / 2**32``, inside (0, 1) and symmetric about 1/2.
3. ``p`` becomes a standard normal by Wichura's inverse of the normal distribution (algorithm AS 241, PPND16; Applied
   Statistics 37, 1988) in float64: Horner's rule from the highest coefficient, no fused multiply-add. Its third region
   (``sqrt(-log(tail)) > 5``) lies beyond ``2**-33`` and is never reached; the largest magnitude is 6.34.
4. The logarithm of the tail probability uses no library: ``tail = m * 2**e`` with ``m`` in [sqrt(1/2), sqrt(2)),
   ``s = (m - 1) / (m + 1)``, ``log(tail) = e * LN2 + 2 * s * (1 + s**2 / 3 + s**4 / 5 + ... + s**18 / 19)``, the series
   again by Horner's rule with each reciprocal rounded once.
5. The result is rounded to float32.

Every step uses only operations that IEEE 754 rounds correctly (+ - * / sqrt and exact scalings), which is why the bits
agree everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels import extension

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)

_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_LOG_SERIES = tuple(1.0 / n for n in range(19, 0, -2))

_CENTRE = 0.425
_CENTRE_NUMERATOR = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_CENTRE_DENOMINATOR = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_TAIL_NUMERATOR = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_TAIL_DENOMINATOR = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)


class Stream(IntEnum):
    """What of a request the noise is for. The numbers are part of what a seed means: never renumber."""

    VIDEO = 0
    AUDIO = 1
    PRIOR = 2


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10: uint32 ``counter`` (..., 4) and ``key`` (..., 2), which broadcast, to random words (..., 4)."""
    words = np.asarray(counter, np.uint32).astype(np.uint64)
    keys = np.asarray(key, np.uint32).astype(np.uint64)
    c0, c1, c2, c3 = (words[..., i] for i in range(4))
    k0, k1 = keys[..., 0], keys[..., 1]
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> _WORD_BITS) ^ c1 ^ k0,
            second & _LOW_WORD,
            (first >> _WORD_BITS) ^ c3 ^ k1,
            first & _LOW_WORD,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_WORD, (k1 + _KEY_STEPS[1]) & _LOW_WORD
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def normal(
    seed: int, stream: int, shape: int | Sequence[int], *, offset: int = 0, substream: int = 0
) -> NDArray[np.float32]:
    """Standard normals, float32, of ``shape``: elements ``offset``, ``offset + 1``, ... of the stream in C order.

    ``seed`` is 64 bits, ``stream`` (see :class:`Stream`) and ``substream`` 32 bits each, ``offset`` plus the number of
    elements at most ``2**64``. Drawn by the native part where it is built and by numpy where it is not: the same bits.
    Raises ``ValueError`` for a number outside its range.
    """
    _check("seed", seed, 64)
    _check("stream", stream, 32)
    _check("substream", substream, 32)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape is {sizes}; its sizes must not be negative")
    count = math.prod(sizes)
    _check("offset", offset, 64)
    if offset + count > 2**64:
        raise ValueError(f"offset {offset} plus {count} elements passes the end of a stream, which is 2**64")
    module, _ = extension.load()
    draw = numpy_normal if module is None else module.normal
    return draw(seed, int(stream), substream, offset, count).reshape(sizes)


def numpy_normal(seed: int, stream: int, substream: int, offset: int, count: int) -> NDArray[np.float32]:
    """``count`` normals of one stream by numpy alone; :func:`normal` checks the arguments."""
    first, skipped = divmod(offset, 4)
    blocks = np.uint64(first) + np.arange((skipped + count + 3) // 4, dtype=np.uint64)
    counter = np.empty((blocks.size, 4), np.uint32)
    counter[:, 0] = blocks & _LOW_WORD
    counter[:, 1] = blocks >> _WORD_BITS
    counter[:, 2] = stream
    counter[:, 3] = substream
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return _normal_from_words(words.ravel()[skipped : skipped + count])


def native_status() -> str:
    """One sentence: whether the native (C++) part is there and, when it is not, why and how to get it."""
    return extension.load()[1]


def _normal_from_words(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    p = (words + 0.5) * 2.0**-32
    q = p - 0.5
    central = np.abs(q) <= _CENTRE
    z = np.empty_like(q)
    z[central] = _centre_quantile(q[central])
    outside = ~central
    q, p = q[outside], p[outside]
    z[outside] = np.copysign(_tail_quantile(np.minimum(p, 1.0 - p)), q)
    return z.astype(np.float32)


def _centre_quantile(q: NDArray[np.float64]) -> NDArray[np.float64]:
    r = 0.180625 - q * q
    return q * _horner(_CENTRE_NUMERATOR, r) / _horner(_CENTRE_DENOMINATOR, r)


def _tail_quantile(tail: NDArray[np.float64]) -> NDArray[np.float64]:
    r = np.sqrt(-_log(tail)) - 1.6
    return _horner(_TAIL_NUMERATOR, r) / _horner(_TAIL_DENOMINATOR, r)


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * _LN2 + 2.0 * s * _horner(_LOG_SERIES, s * s)


def _horner(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The polynomial at ``x``, coefficients from the highest power down."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def _check(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name} is {value}; it must be a whole number from 0 to 2**{bits} - 1")
