"""Matrix products from compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from shoal.nets import blas


@njit
def run(a: Any, b: Any, out: Any, size: Any, transposed: bool, add: bool, letters: Any, scales: Any) -> None:
    blas.product(a, b, out, size, transposed, add, letters, scales)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_products_are_numpys(transposed: bool, add: bool) -> None:
    draw = np.random.default_rng(0)
    a, b, out = (draw.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3, 7), (5, 7)))
    expected = a @ b + (out if add else 0)
    second = np.ascontiguousarray(b.T) if transposed else b
    run(a, second, out, blas.sizes(5, 3, 7), transposed, add, blas.LETTERS, blas.SCALES)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
