"""Published results, each with its source, in the unit its source used and in shoal's: `published.json`."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoal.stats.aggregate import Array

Verdict = Literal["within spread", "better", "short"]


@dataclass(frozen=True)
class Figure:
    """One published number, converted."""

    env: str
    env_args: dict[str, Any]
    algorithm: str
    metric: str
    """Of `value` and `spread`: shoal's unit."""
    value: float
    spread: float
    source: str
    confirmed: bool
    """Whether the number was read in the source; else it is quoted from memory."""
    evidence: str
    published_value: float
    published_spread: float
    published_unit: str
    conversion: str
    budget: str

    def verdict(self, scores: Array) -> Verdict:
        """Where the mean of our runs lies: within value ± spread, above it, or below."""
        difference = float(scores.mean()) - self.value
        if abs(difference) <= self.spread + 1e-9:
            return "within spread"
        return "better" if difference > 0 else "short"

    def __str__(self) -> str:
        spread = f" ± {self.spread:.2f}" if self.spread else ""
        return f"{self.value:.2f}{spread}"


@functools.cache
def figures() -> list[Figure]:
    """All of them."""
    data = json.loads(Path(__file__).with_name("published.json").read_text())
    return [Figure(**{**data["common"], **row}) for row in data["figures"]]


def lookup(env: str, env_args: dict[str, Any], metric: str, algorithm: str = "") -> list[Figure]:
    """Those of a task in a unit, of one algorithm or of all."""
    return [
        f
        for f in figures()
        if (f.env, f.metric) == (env, metric) and f.env_args == env_args and algorithm in ("", f.algorithm)
    ]
