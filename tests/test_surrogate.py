"""What is compiled against the same equations in double precision, which PyTorch's operations compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from shoal import elementary, surrogate
from shoal.actions import mask_logits

G = torch.Generator().manual_seed(0)


@njit(fastmath=surrogate.EXACT)
def elementwise(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for i in range(len(x)):
        out[0, i] = elementary.exp(x[i])
        out[1, i] = elementary.log(out[0, i])
        out[2, i] = elementary.tanh(x[i])


def test_elementary_functions() -> None:
    x = np.concatenate([np.linspace(-87, 88, 7001), np.linspace(-9, 9, 7001)]).astype(np.float32)
    out, exact = np.empty((3, len(x)), np.float32), x.astype(np.float64)
    elementwise(x, out)
    np.testing.assert_allclose(out[0], np.exp(exact), rtol=2e-7)
    np.testing.assert_allclose(out[1], np.log(out[0].astype(np.float64)), rtol=2e-7, atol=1e-9)
    np.testing.assert_allclose(out[2], np.tanh(exact), rtol=0, atol=5e-7)
    ends = np.array([-1e9, 0.0, 1e9], np.float32)
    elementwise(ends, out[:, :3])
    assert out[0, 0] < 2e-38
    assert out[0, 1] == 1.0
    assert out[1, 1] == 0.0


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one.double(), other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("shape", [(7,), (3, 200, 2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("by_columns", [False, True])
def test_likelihoods(size: int, shape: tuple[int, ...], masked: bool, by_columns: bool) -> None:
    logits = 3 * torch.randn((size, *shape), generator=G).movedim(0, -1) if by_columns else torch.randn(*shape, size)
    action = torch.randint(size, shape, generator=G)
    legal = torch.rand((*shape, size), generator=G) < 0.5
    legal.scatter_(-1, action.unsqueeze(-1), True)
    legal = legal if masked else legal[..., :0]
    weights = torch.randn((2, *shape), generator=G)

    def results(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        taken, entropy = surrogate.likelihood(mask_logits(x, legal), action)
        (grad,) = torch.autograd.grad((taken * weights[0] + entropy * weights[1]).sum(), x)
        return [taken.detach(), entropy.detach(), grad]

    found = results(logits)
    close(found, results(logits.double()))
    assert (found[1] >= -1e-6).all()


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_clipped_objectives(clip: float) -> None:
    shape = (5, 130, 3)
    old, change, advantage, entropy = torch.randn((4, *shape), generator=G)
    alive = torch.rand(shape, generator=G) < 0.8
    change[0] = 0.0  # where learning starts, with ratios of 1

    def results(dtype: torch.dtype) -> list[Tensor]:
        before, gain, more = (x.to(dtype) for x in (old, advantage, entropy))
        leaves = (before + 0.3 * change.to(dtype)).requires_grad_(), more.requires_grad_()
        parts = surrogate.clipped(leaves[0], before, gain, leaves[1], alive, clip)
        grads = torch.autograd.grad(2 * parts[0] - 0.5 * parts[1], leaves)
        assert not parts[2].requires_grad
        assert not parts[3].requires_grad
        return [*(part.detach().reshape(()) for part in parts), *grads]

    found, expected = results(torch.float32), results(torch.float64)
    close(found, [*expected[:3], expected[3].double(), *expected[4:]])
    assert found[3] > 0
    assert bool((found[4][alive] == 0).any()) == (clip > 0)
    assert (found[4][~alive] == 0).all()


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_what_is_not_a_number_stays_seen(clip: float) -> None:
    logits, action = torch.randn(9, 5, generator=G), torch.zeros(9, dtype=torch.int64)
    logits[3, 2] = torch.nan
    taken, entropy = surrogate.likelihood(logits, action)
    assert taken.isnan().nonzero().tolist() == entropy.isnan().nonzero().tolist() == [[3]]
    ones = torch.ones(9)
    for given in ((taken, ones, ones), (ones, taken, ones), (ones, ones, taken)):
        log_prob, old, advantage = given
        log_prob = log_prob.clone().requires_grad_()
        first = surrogate.clipped(log_prob, old, advantage, entropy, ones > 0, clip)[0]
        (grad,) = torch.autograd.grad(first, log_prob)
        assert first.isnan()
        assert grad[3].isnan()


def test_nothing_to_learn_from() -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    parts = surrogate.clipped(empty, empty.detach(), empty.detach(), empty, empty > 0, 0.2)
    assert [float(part.detach()) for part in parts] == [0, 0, 0, 0]
    taken, entropy = surrogate.likelihood(torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.int64))
    assert taken.shape == entropy.shape == (0, 3)
