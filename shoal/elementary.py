"""exp, log and tanh for compiled loops: polynomials, which compilers make vector instructions of, as of no library's.

Functions are inlined, so their callers' `fastmath` holds for them: `exp` and `log` ask that sums are not reordered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(inline="always")
def exp(x: Any) -> Any:
    """Within two units in the last place, for float32 above -87; below 1e-38, about 0 (Cephes' expf)."""
    x = np.float32(-87.3) if x < np.float32(-87.3) else x  # so that what is not a number stays that
    x = np.float32(88.7) if x > np.float32(88.7) else x
    k = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    r = x - k * np.float32(0.693359375)
    r = r - k * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(k) + 127) << 23).view(np.float32)  # 2^k
    return (p * (r * r) + r + np.float32(1.0)) * power


@njit(inline="always")
def log(x: Any) -> Any:
    """Within two units in the last place, for positive normal float32 (Cephes' logf)."""
    bits = np.float32(x).view(np.int32)
    m = np.int32((bits & 0x007FFFFF) | 0x3F000000).view(np.float32)  # from 0.5 to 1
    low = np.float32(1.0) if m < np.float32(0.707106781186547524) else np.float32(0.0)
    e = np.float32(np.int32((bits >> 23) - 126)) - low
    m = m + low * m - np.float32(1.0)
    s = m * m
    p = np.float32(7.0376836292e-2)
    p = p * m + np.float32(-1.1514610310e-1)
    p = p * m + np.float32(1.1676998740e-1)
    p = p * m + np.float32(-1.2420140846e-1)
    p = p * m + np.float32(1.4249322787e-1)
    p = p * m + np.float32(-1.6668057665e-1)
    p = p * m + np.float32(2.0000714765e-1)
    p = p * m + np.float32(-2.4999993993e-1)
    p = p * m + np.float32(3.3333331174e-1)
    y = m * s * p + e * np.float32(-2.12194440e-4) - np.float32(0.5) * s
    y = m + y + e * np.float32(0.693359375)
    return y if x == x else x  # what is not a number stays that


@njit(inline="always")
def tanh(x: Any) -> Any:
    """Within 5e-7: a quotient of polynomials."""
    x = np.float32(0.5) * (abs(x + np.float32(7.9)) - abs(x - np.float32(7.9)))  # clamped, without a branch
    s = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * s + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * s + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return x * p / q
