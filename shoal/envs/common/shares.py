"""A compiled kernel over many environments, the environments divided among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from shoal.threads import cores

Kernel = Callable[..., None]
"""`kernel(lo, hi, *work)` steps the environments lo..hi-1, without holding Python's lock."""


class Shares:
    """Threads that step an equal share of the environments each, the caller's own among them.

    Environments do not depend on each other, so neither do results on the number of threads.

    Args:
        num_envs: environments in all.
        threads: 0 chooses: one a core, and none that would have fewer than `least` environments.
        least: environments that make a thread worth waking.
    """

    def __init__(self, num_envs: int, threads: int, least: int) -> None:
        self.threads = min(threads or max(1, min(cores(), num_envs // least)), num_envs)
        self.edges = np.linspace(0, num_envs, self.threads + 1).astype(int).tolist()
        self.pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    def run(self, kernel: Kernel, *work: Any) -> None:
        """`kernel` over all environments; returns when every share is finished."""
        if self.pool is None:
            kernel(0, self.edges[-1], *work)
            return
        others = [self.pool.submit(kernel, lo, hi, *work) for lo, hi in pairwise(self.edges[1:])]
        kernel(self.edges[0], self.edges[1], *work)
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown()
