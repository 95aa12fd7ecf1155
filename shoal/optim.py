"""One optimiser step, and target networks that follow.

All parameters of a module lie in one vector, and so do their gradients. For small networks the time of an update is its
number of operations; clipping, Adam and following are then one operation each instead of one a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.types import Tree

BETAS, EPSILON = (0.9, 0.999), 1e-8


def flatten(module: nn.Module, rows: int = 0) -> tuple[Tensor, Tensor]:
    """Move the module's parameters into one vector, of which they become views; returns it and one for gradients.

    Every parameter's `grad` is a view of the second. With `rows`, the length of every parameter's first axis, they are
    matrices instead, and row i holds what belongs to the i-th of networks that are stacked.
    """
    parameters = list(module.parameters())
    vector = join([p.detach() for p in parameters], rows)
    grads, start = torch.zeros_like(vector), 0
    for parameter in parameters:
        stop = start + parameter.numel() // max(rows, 1)
        parameter.data = vector[..., start:stop].view(parameter.shape)
        parameter.grad = grads[..., start:stop].view(parameter.shape)
        start = stop
    return vector, grads


def join(tensors: Sequence[Tensor], rows: int = 0) -> Tensor:
    """Tensors like a module's parameters, in the places `flatten` gives these."""
    return torch.cat([tensor.flatten(1 if rows else 0) for tensor in tensors], -1)


@torch.no_grad()
def follow(target: Tensor, source: Tensor, tau: float) -> None:
    """Polyak averaging of flattened parameters: target += tau (source - target)."""
    target.lerp_(source, tau)


class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) with gradient clipping, for all parameters of a module.

    Calls PyTorch's fused kernel directly: `torch.optim.Adam.step` spends 100 us around it, as long as a small network's
    backward pass. A test holds it equal to `torch.optim.Adam`.

    Args:
        module: its parameters are flattened (see `flatten`); move it to its device before.
        lr: learning rate.
        max_grad_norm: longer gradients are scaled down to this norm; 0: never.
        rows: of stacked networks that learn one by one, see `flatten`; 0: the module learns as one.
    """

    def __init__(self, module: nn.Module, lr: float, max_grad_norm: float, rows: int = 0) -> None:
        self.parameters = list(module.parameters())
        self.vector, self.grad = flatten(module, rows)
        self.lr, self.max_grad_norm, self.rows = lr, max_grad_norm, rows
        self.mean, self.square = torch.zeros_like(self.vector), torch.zeros_like(self.vector)
        self.steps = torch.zeros(rows or 1, device=self.vector.device)

    @torch.no_grad()
    def step(self, row: int = 0) -> Tensor:
        """Descend along the parameters' `grad` (with `rows`: those of one row); returns its norm before clipping."""
        vector, grad, mean, square = (
            x[row] if self.rows else x for x in (self.vector, self.grad, self.mean, self.square)
        )
        norm: Tensor = torch.linalg.vector_norm(grad)
        divisor = ((norm + 1e-6) / self.max_grad_norm).clamp_(min=1.0) if self.max_grad_norm > 0 else None
        steps = self.steps[row]
        steps += 1
        torch._fused_adam_(
            [vector], [grad], [mean], [square], [], [steps], amsgrad=False, lr=self.lr,
            beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0, eps=EPSILON, maximize=False, grad_scale=divisor,
        )  # fmt: skip
        return norm

    def join(self, grads: Sequence[Tensor]) -> Tensor:
        """Gradients of the `parameters`, in their order, as `grad` holds them."""
        return join(grads, self.rows)

    def state_dict(self) -> Tree:
        """Moments and step counts; the learning rate belongs to the config."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: Tree) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
