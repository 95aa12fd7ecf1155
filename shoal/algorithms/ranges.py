"""Between which bounds settings make sense: those of the same name alike in all algorithms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from shoal.types import ShoalError

COUNTS = (
    "actor_every", "batch_size", "batch_steps", "buffer_size", "critics", "embed", "epochs", "heads", "hidden", "hyper",
    "message", "minibatches", "n_step", "rounds", "target_every",
)  # fmt: skip
AMOUNTS = (
    "actor_lr", "anneal_steps", "burn_in", "clip", "correction", "critic_lr", "entropy", "entropy_end", "epsilon_steps",
    "huber", "lr", "lr_end", "max_grad_norm", "memory", "noise", "output_penalty", "priority", "sequence", "target_kl",
    "target_noise", "update_every", "value_clip", "warmup", "workers",
)  # fmt: skip
SHARES = ("epsilon_end", "epsilon_start", "gamma", "lam", "tau", "value_decay", "weight")
POSITIVE = ("std", "temperature")
BOUNDS = {
    **dict.fromkeys(COUNTS, (1, math.inf)),
    **dict.fromkeys(AMOUNTS, (0, math.inf)),
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(POSITIVE, (1e-6, math.inf)),
}


def check(config: Any, prefix: str = "") -> None:
    """Hold an algorithm's settings, and its network's, to their bounds.

    Raises:
        ShoalError: one is outside, with its name.
    """
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        low, high = BOUNDS.get(setting.name, (-math.inf, math.inf))
        values = value if isinstance(value, tuple) else (value,)
        if setting.name in BOUNDS and not all(low <= one <= high for one in values):  # nor is NaN
            bounds = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            raise ShoalError(f"{prefix}{setting.name} must be {bounds}, not {value}")
        if setting.name == "net":
            check(value, "net.")
