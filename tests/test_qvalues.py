"""What Q-learning reads from its networks' values, compiled, against PyTorch's operations in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal import qvalues

SHAPE, SIZE = (5, 7, 3), 4


def draw(laid: str, seed: int) -> Tensor:
    """`[time, batch, agent, size]`, as networks lay them in memory."""
    g = torch.Generator().manual_seed(seed)
    if laid == "by columns":
        return torch.randn(SIZE, *SHAPE, generator=g).movedim(0, -1)
    if laid == "by agents":
        return torch.randn(SHAPE[2], *SHAPE[:2], SIZE, generator=g).movedim(0, 2)
    if laid == "some of more":
        return torch.randn(2 * SHAPE[0], *SHAPE[1:], SIZE, generator=g)[1 : 1 + SHAPE[0]]
    return torch.randn(*SHAPE, SIZE, generator=g)


LAID = ["rows", "by columns", "by agents", "some of more"]


@pytest.mark.parametrize("laid", LAID)
@pytest.mark.parametrize("whole", [True, False])
def test_taken(laid: str, whole: bool) -> None:
    """The values, and their gradients; of whole tensors and of every other environment of them."""
    g = torch.Generator().manual_seed(3)
    some = (slice(None), slice(None) if whole else slice(None, None, 2))
    q = draw(laid, 1)[some].detach().requires_grad_()
    action, present = torch.randint(SIZE, SHAPE, generator=g)[some], (torch.rand(SHAPE, generator=g) < 0.7)[some]
    grad = torch.randn(SHAPE, generator=g)[some]
    precise = q.detach().double().requires_grad_()
    found, expected = (qvalues.taken(x, action, present, 0.25) for x in (q, precise))
    assert (found[~present] == 0.25).all()
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), expected)
    (one,) = torch.autograd.grad(found, q, grad)
    (other,) = torch.autograd.grad(expected, precise, grad.double())
    assert torch.equal(one.double(), other)
    assert (one != 0).any()


@pytest.mark.parametrize("laid", LAID)
@pytest.mark.parametrize("masked", [True, False])
def test_following(laid: str, masked: bool) -> None:
    g = torch.Generator().manual_seed(4)
    q, judged = draw(laid, 1), draw("rows", 2)
    q[0, 0, 0] = 1.0  # of equals the first
    legal = torch.rand(*SHAPE, SIZE if masked else 0, generator=g) < 0.5
    if masked:
        legal[..., 2] = True
    terminated = torch.rand(SHAPE, generator=g) < 0.3
    action, value = qvalues.following(q, judged, legal, terminated, -0.5)
    expected, precise = qvalues.following(q.double(), judged.double(), legal, terminated, -0.5)
    assert torch.equal(action, expected)
    assert torch.equal(value.double(), precise)
    if masked:
        assert legal.gather(-1, action.unsqueeze(-1)).all()
        assert (action != q.max(-1).indices).any()
    assert (value[terminated] == -0.5).all()
