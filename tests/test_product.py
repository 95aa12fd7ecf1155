"""Compiled matrix products against NumPy's in double precision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from shoal.nets import product

SIZES = [(1, 1, 1), (7, 5, 5), (13, 18, 64), (64, 9, 16), (31, 64, 37), (100, 33, 80), (5, 70, 250), (6, 3, 96)]
RELU = np.float32(0.0)


@njit
def _compiled(dot, a, b, bias, gate, outs):  # type: ignore[no-untyped-def]
    product.multiply(dot, a, b, outs[0])
    product.accumulate(dot, a, b, outs[1])
    product.affine(dot, a, b, bias, outs[2], product.NOTHING)
    product.affine(dot, a, b, bias, outs[3], RELU)
    product.gated(dot, a, b, gate, outs[4])


def compiled(*arrays: NDArray[np.float32]) -> None:
    _compiled(product.address(), *arrays)


def check(rows: int, terms: int, columns: int, turned: bool) -> None:
    """All four, into arrays that lie in larger ones of which nothing else may change."""
    rng = np.random.default_rng(rows + terms + columns)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    a = draw(terms, rows + 2).T[1:-1] if turned else draw(rows, terms + 3)[:, 1:-2]
    b, bias, gate = draw(terms, columns), draw(1, columns), draw(rows, columns + 1)
    room = draw(5, rows + 1, columns + 1)
    before = room.astype(np.float64)
    compiled(a, b, bias, gate[:, :columns], room[:, :rows, :columns])
    found = a.astype(np.float64) @ b
    expected = before.copy()
    expected[:, :rows, :columns] = [
        found,
        before[1, :rows, :columns] + found,
        found + bias,
        np.maximum(found + bias, 0),
        np.where(gate[:, :columns] > 0, found, 0),
    ]
    np.testing.assert_allclose(room, expected, atol=1e-4, rtol=1e-5)
    assert np.array_equal(room[:, rows:], before[:, rows:])
    assert np.array_equal(room[:, :, columns:], before[:, :, columns:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turned", [False, True])
def test_products_are_numpys(size: tuple[int, int, int], turned: bool) -> None:
    check(*size, turned)


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((30, 40), np.float32), rng.standard_normal((40, 23), np.float32)
    outs, one = np.zeros((5, 30, 23), np.float32), np.zeros((5, 1, 23), np.float32)
    compiled(a, b, b[:1], outs[0].copy(), outs)
    for i in range(30):
        compiled(a[i : i + 1], b, b[:1], one[0].copy(), one)
        assert np.array_equal(one[0, 0], outs[0, i])


def test_what_is_not_a_number_stays_seen() -> None:
    a, b = np.ones((3, 4), np.float32), np.ones((4, 20), np.float32)
    a[1, 2] = np.nan
    outs = np.zeros((5, 3, 20), np.float32)
    compiled(a, b, b[:1], np.ones((3, 20), np.float32), outs)
    assert np.isnan(outs[:, 1]).all()
    assert np.isfinite(outs[:, [0, 2]]).all()


@pytest.mark.parametrize(("features", "lanes"), [("+sse2", 4), ("+avx2,+avx,+fma", 8)])
@pytest.mark.skipif("+avx2" not in product._FEATURES, reason="for processors with AVX2")
def test_older_processors(features: str, lanes: int, tmp_path: Path) -> None:
    """As numba compiles for them."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_product as t
assert t.product.LANES == {lanes}, t.product.LANES
[t.check(*size, turned) for size in t.SIZES for turned in (False, True)]
"""
    env = {**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
