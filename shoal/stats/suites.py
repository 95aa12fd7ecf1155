"""Named benchmarks, as data: which algorithms in which environments, for how long.

Each run is `shoal train ALGORITHM ENV` with the settings known for the task (`presets.py`) and the options here. The
protocol is Gorsane et al. 2022: 32 greedy episodes an evaluation, 320 for the absolute metric.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.stats.runs import Score

ON_POLICY = ("ippo", "mappo", "happo", "ia2c", "maa2c")
SIX = ("iql", "vdn", "qmix", "maddpg", "ippo", "mappo")
EPISODES, ABSOLUTE_EPISODES = 32, 320


@dataclass(frozen=True)
class Task:
    """An environment, its arguments, and a budget for each kind of algorithm."""

    env: str
    env_args: tuple[tuple[str, str], ...] = ()
    off_policy_steps: int = 0
    """Environment steps; 0: those of the settings known for the task."""
    on_policy_steps: int = 0
    options: tuple[str, ...] = ()
    """Of `shoal train`, for every algorithm."""
    of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """And for single ones."""


@dataclass(frozen=True)
class Suite:
    """Every algorithm on every task, with several seeds."""

    summary: str
    algorithms: tuple[str, ...]
    tasks: tuple[Task, ...]
    seeds: int = 5
    metric: str = "agent_return"
    score: Score = "peak"
    """As the published figures: the evaluation at which the mean over the seeds is highest."""
    episodes: int = EPISODES
    absolute_episodes: int = ABSOLUTE_EPISODES


def _annealed(steps: int, algorithms: tuple[str, ...] = ("ippo", "mappo")) -> dict[str, tuple[str, ...]]:
    """Learning rates fall over the steps that there are."""
    return {algorithm: ("--anneal-steps", str(steps)) for algorithm in algorithms}


CLIMBING = Task("matrix/climbing", (), 60_000, 60_000)
PENALTY = tuple(Task("matrix/penalty", (("k", k),), 30_000, 30_000) for k in ("0", "-25", "-50", "-75"))
# The published budgets are 2 million steps off policy and 20 million on policy (rware: 4 and 40)
HALF = {"maddpg": ("--update-every", "64")}  # half as many as with the settings for the task
PARTICLES = tuple(
    Task(f"mpe/{name}", (), 2_000_000, 2_000_000, of=_annealed(2_000_000) | HALF)
    for name in ("simple_spread", "simple_speaker_listener")
)
FORAGING = (
    "8x8-2p-2f-coop", "2s-8x8-2p-2f-coop", "10x10-3p-3f", "2s-10x10-3p-3f", "15x15-3p-5f", "15x15-4p-3f", "15x15-4p-5f",
)  # fmt: skip

SUITES: dict[str, Suite] = {
    "smoke": Suite(
        "does everything work? Two matrix games, short; about a minute",
        ("iql", "qmix", "mappo"),
        (
            Task("matrix/climbing", (), 8_000, 8_000, of=dict.fromkeys(("iql", "qmix"), ("--epsilon-steps", "4000"))),
            Task("matrix/two_step", (), 8_000, 8_000),
        ),
        seeds=2,
    ),
    "tutorial": Suite(
        "the tutorial's table of algorithms, measured: coordination, cooperation, communication",
        ("iql", "maddpg", "qmix", "mappo"),
        (CLIMBING, *PARTICLES),
    ),
    "matrix": Suite(
        "Papoudakis et al. 2021, table 3: climbing and penalty",
        SIX,
        (CLIMBING, *PENALTY, Task("matrix/penalty", (), 30_000, 30_000)),
    ),
    "mpe": Suite("Papoudakis et al. 2021, table 3: cooperative particle worlds", SIX, PARTICLES),
    "lbf": Suite(
        "Papoudakis et al. 2021, table 3: level-based foraging (hours)",
        SIX,
        tuple(Task(f"lbf/Foraging-{name}", (), 2_000_000, 5_000_000, of=_annealed(5_000_000)) for name in FORAGING),
        metric="team_return",
    ),
    "rware": Suite(
        "Papoudakis et al. 2021, table 3: robot warehouse (a day)",
        SIX,
        tuple(Task(f"rware/rware-{name}", (), 4_000_000, 40_000_000) for name in ("tiny-2ag", "tiny-4ag", "small-4ag")),
        metric="team_return",
    ),
}
