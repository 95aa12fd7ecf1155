"""numpy's default random generator, one stream an environment, inside compiled code.

With the same seed an episode starts exactly as in the Python package, and an environment's stream does not depend on
how many others step beside it. PCG64 XSL-RR (O'Neill 2014); bounded integers by Lemire's method (arXiv 1805.10941) with
the buffered 32-bit halves numpy uses. A stream is a row of six uint64: state (high, low), increment (high, low),
whether a half is buffered, that half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.jit import compiled

MULTIPLIER_HIGH = np.uint64(2549297995355413924)
MULTIPLIER_LOW = np.uint64(4865540595714422341)
LOW_HALF = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def streams(seeds: list[int]) -> NDArray[np.uint64]:
    """`[len(seeds), 6]`: the state numpy's `default_rng(seed)` starts with."""
    rows = np.zeros((len(seeds), 6), dtype=np.uint64)
    mask = (1 << 64) - 1
    for row, seed in zip(rows, seeds, strict=True):
        state: Any = np.random.PCG64(seed).state
        value, increment = state["state"]["state"], state["state"]["inc"]
        row[:4] = value >> 64, value & mask, increment >> 64, increment & mask
    return rows


@compiled
def _multiply_high(a, b):  # type: ignore[no-untyped-def]
    """The upper 64 bits of the 128-bit product."""
    a_low, a_high = a & LOW_HALF, a >> HALF
    b_low, b_high = b & LOW_HALF, b >> HALF
    middle = a_high * b_low + ((a_low * b_low) >> HALF)
    other = a_low * b_high + (middle & LOW_HALF)
    return a_high * b_high + (middle >> HALF) + (other >> HALF)


@compiled
def _next64(rng):  # type: ignore[no-untyped-def]
    high, low = rng[0], rng[1]
    new_low = low * MULTIPLIER_LOW
    new_high = _multiply_high(low, MULTIPLIER_LOW) + high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH
    low = new_low + rng[3]
    high = new_high + rng[2] + np.uint64(low < new_low)
    rng[0], rng[1] = high, low
    value = high ^ low
    turn = high >> np.uint64(58)
    return (value >> turn) | (value << ((np.uint64(64) - turn) & np.uint64(63)))


@compiled
def _next32(rng):  # type: ignore[no-untyped-def]
    if rng[4]:
        rng[4] = 0
        return rng[5]
    value = _next64(rng)
    rng[4], rng[5] = 1, value >> HALF
    return value & LOW_HALF


@compiled
def uniform(rng, low, high):  # type: ignore[no-untyped-def]
    """A float in [low, high), as `Generator.uniform`."""
    return low + (high - low) * (np.float64(_next64(rng) >> np.uint64(11)) * (1.0 / 9007199254740992.0))


@compiled
def integer(rng, count):  # type: ignore[no-untyped-def]
    """An int in [0, count), as `Generator.integers`."""
    if count <= 1:
        return 0
    bound = np.uint64(count)
    product = _next32(rng) * bound
    leftover = product & LOW_HALF
    if leftover < bound:
        threshold = (LOW_HALF - (bound - np.uint64(1))) % bound
        while leftover < threshold:
            product = _next32(rng) * bound
            leftover = product & LOW_HALF
    return np.int64(product >> HALF)


@compiled
def shuffle(rng, order, count):  # type: ignore[no-untyped-def]
    """Writes 0..count-1 in random order into `order`, as `Generator.permutation(count)`."""
    for i in range(count):
        order[i] = i
    for i in range(count - 1, 0, -1):
        mask = np.uint64(1)
        while mask < np.uint64(i):
            mask = (mask << np.uint64(1)) | np.uint64(1)
        j = np.int64(_next32(rng) & mask)  # numpy shuffles by masks and rejection, unlike `integers`
        while j > i:
            j = np.int64(_next32(rng) & mask)
        order[i], order[j] = order[j], order[i]
