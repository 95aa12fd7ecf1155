"""How fast algorithms train with their defaults (settings for tasks aside), in environment steps a second.

    python benchmarks/defaults.py
    python benchmarks/defaults.py --against ../another-checkout

With `--against`, another checkout of shoal does the same in turns, each time in a process of its own. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPREAD = "mpe/simple_spread"
RUNS: list[tuple[str, str, int, int, dict[str, Any]]] = [  # algorithm, environment, how many, steps, settings
    ("maddpg", SPREAD, 1, 3000, {}),
    ("iddpg", "tutorial/drift", 1, 3000, {}),
    ("vdn", SPREAD, 1, 8000, {}),
    ("qmix", SPREAD, 8, 8000, {"net": {"memory": 64}}),
    ("ippo", SPREAD, 1, 32_000, {}),
    ("mappo", SPREAD, 16, 64_000, {"net": {"memory": 64}}),
    ("ippo", "lbf/Foraging-8x8-2p-2f-coop", 16, 64_000, {}),
    ("happo", "mpe/simple_tag", 16, 32_000, {}),
    ("pqn_qmix", SPREAD, 128, 200_000, {}),
]


def rate(algorithm: str, env: str, num_envs: int, steps: int, settings: dict[str, Any]) -> float:
    import shoal

    def train(total: int) -> None:
        worlds = shoal.make(env, num_envs)
        for _ in shoal.train(shoal.build(algorithm, worlds.spec, **settings), worlds, total):
            pass

    train(3300)  # past the warmup, so that everything is compiled
    start = time.perf_counter()
    train(steps)
    return steps / (time.perf_counter() - start)


def measured(checkout: Path, number: int) -> float:
    """One run, in a process whose shoal is that of `checkout`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(number)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr}")
    found: float = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        print(json.dumps(rate(*RUNS[chosen.child])))
        return
    checkouts = [Path(__file__).parents[1], *([chosen.against] if chosen.against else [])]
    print("| | environments | steps/s |" + (" the other | ratio |" if chosen.against else ""))
    print("|---|---|---|" + ("---|---|" if chosen.against else ""))
    for number, (algorithm, env, num_envs, _, settings) in enumerate(RUNS):
        rounds = [[measured(checkout, number) for checkout in checkouts] for _ in range(chosen.repeats)]
        rates = [statistics.median(column) for column in zip(*rounds, strict=True)]
        cells = [f"{algorithm} {env}" + (" with memory" if settings else ""), str(num_envs), f"{rates[0]:,.0f}"]
        if chosen.against:
            cells += [f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
