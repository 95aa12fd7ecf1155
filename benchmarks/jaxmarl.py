"""JaxMARL's published training scripts against shoal, on the same work, in one interleaved run on the CPU.

JaxMARL's scripts are not part of its package nor of shoal: give a checkout of its repository. JAX lives in a virtual
environment of its own:

    git clone https://github.com/FLAIROx/JaxMARL
    python -m venv benchmarks/.venv-jax && benchmarks/.venv-jax/bin/pip install "jaxmarl[algs]==0.2.0"
    python benchmarks/jaxmarl.py --checkout JaxMARL --python benchmarks/.venv-jax/bin/python --only qmix_rnn

Everything is simple_spread with three agents. One environment step is one step of all agents of one environment. Every
run starts untrained and plays the same number of steps; compiling (theirs) is reported apart, and shoal's own compiled
parts are warm. JAX takes all cores the process may use, shoal as many threads as `--threads` says; to give both one
core, run the whole under `taskset -c 0`.

    iql_rnn, vdn_rnn, qmix_rnn    as shipped, and shoal with the same sizes and settings
    iql_own, vdn_own, qmix_own    as shipped, and shoal with its own settings for the task (without memory)
    pqn_fast                      vdn_rnn as shipped, and shoal's pqn_vdn with settings that learn at least as much
    pqn_vdn                       as shipped
    ippo_ff, ippo_rnn, mappo_rnn  as shipped
    ippo_rnn_16, mappo_rnn_16     as shipped, and shoal learning memory through 16 steps instead of 128
    ippo_ff_best                  with 512 environments, rollouts of 25 steps and 1 minibatch

Q-learning as shipped: 8 environments; rollouts of 26 steps, which are whole episodes; after each rollout (208 steps) 1
update of 32 sequences of 26 steps, none in the first 10,000 steps; a replay of 5000 episodes; Dense 64, GRU 64, linear;
a mixer of 32 units, its hypernetworks 128 wide.

PQN as shipped: 256 environments; rollouts of 16 steps; 4 epochs of 16 minibatches; hidden layers 256-256, normalised.

Returns are those of the last run, over 512 greedy episodes, per agent (theirs report three times that). With
`--steps 10000000`, as theirs is shipped, they say which rates can be compared.

Not theirs: one seed without vmap over seeds; TOTAL_TIMESTEPS; tests (512 episodes) twice a run instead of 20 times; a
`wandb` module whose `log` does nothing, since the PPO scripts log after every update whatever their settings say.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # theirs runs where there is neither
    import shoal

TASK, TESTS = "mpe/simple_spread", 512
WARM_STEPS = 15_000  # of shoal, before the clock starts: more than any warmup


@dataclass(frozen=True)
class Theirs:
    """A published script and the settings it runs with."""

    script: str
    configs: tuple[str, ...]
    rate: int
    """Roughly its environment steps a second on two cores: chooses how many fill `--seconds`."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of its configuration."""

    def files(self, checkout: Path) -> list[Path]:
        """The script and its configurations."""
        return [checkout / "baselines" / name for name in (self.script, *self.configs)]


def q_learning(name: str, config: str = "ql_rnn_mpe", rate: int = 18_000) -> Theirs:
    configs = ("QLearning/config/config.yaml", f"QLearning/config/alg/{config}.yaml")
    return Theirs(f"QLearning/{name}.py", configs, rate, {"TEST_INTERVAL": 1.0})


def ppo(folder: str, script: str, config: str, rate: int, **changes: int) -> Theirs:
    return Theirs(f"{folder}/{script}.py", (f"{folder}/config/{config}.yaml",), rate, changes)


BEST = {"NUM_ENVS": 512, "NUM_STEPS": 25, "UPDATE_EPOCHS": 4, "NUM_MINIBATCHES": 1}
THEIRS = {
    **{name: q_learning(name) for name in ("iql_rnn", "vdn_rnn", "qmix_rnn")},
    "pqn_vdn": q_learning("pqn_vdn_ff", "pqn_vdn_ff_mpe", 8000),
    "ippo_ff": ppo("IPPO", "ippo_ff_mpe", "ippo_ff_mpe", 40_000),
    "ippo_ff_best": ppo("IPPO", "ippo_ff_mpe", "ippo_ff_mpe", 40_000, **BEST),
    "ippo_rnn": ppo("IPPO", "ippo_rnn_mpe", "ippo_rnn_mpe", 4500),
    "mappo_rnn": ppo("MAPPO", "mappo_rnn_mpe", "mappo_homogenous_rnn_mpe", 3000),
}


@dataclass(frozen=True)
class Ours:
    """What shoal runs against one of theirs."""

    against: str
    algorithm: str
    num_envs: int = 0
    settings: dict[str, Any] | None = None
    """Fields of the algorithm's `Config`; None: shoal's settings for the task, number of environments included."""

    def build(self, threads: int) -> tuple[shoal.Algorithm, shoal.VecEnv]:
        import shoal
        from shoal import presets

        settings = dict(presets.task(self.algorithm, TASK) if self.settings is None else self.settings)
        settings.pop("total_steps", None)
        num_envs = settings.pop("num_envs", self.num_envs)
        settings["workers"] = threads
        env = shoal.make(TASK, num_envs, max_cycles=26)
        return shoal.build(self.algorithm, env.spec, **settings), env

    def run(self, steps: int, threads: int, *, judge: bool = False) -> tuple[float, float]:
        """Environment steps a second over `steps` of them, from nothing; and, where to `judge`, the greedy return."""
        import shoal

        start = time.perf_counter()
        algorithm, env = self.build(threads)
        played = 0
        for progress in shoal.train(algorithm, env, steps):
            played = progress.env_steps
        rate = played / (time.perf_counter() - start)
        found = shoal.evaluate(algorithm, shoal.make(TASK, TESTS, max_cycles=26), TESTS).agent_return if judge else None
        return rate, math.nan if found is None else float(found.mean())


def ours_same(algorithm: str) -> Ours:
    """Q-learning with the sizes and settings of theirs."""
    settings = {
        "reward": "own" if algorithm == "iql" else "sum",
        "net": {"hidden": (64,), "memory": 64},
        "batch_size": 32,
        "sequence": 26,
        "update_every": 208,
        "warmup": 10_000,
        "buffer_size": 5000 * 26,
        "embed": 32,
        "hyper": 160,  # one network for all weights: as many products as theirs, of which two are 128 wide
        "normalise": False,
        "lr": 0.005,
        "gamma": 0.9,
        "max_grad_norm": 25.0,
        "tau": 1.0,
        "target_every": 200,
    }
    return Ours(f"{algorithm}_rnn", algorithm, 8, settings)


def ours_ppo(
    against: str,
    *,
    hidden: tuple[int, ...],
    memory: int = 0,
    num_envs: int = 16,
    rollout: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    sequence: int = 0,
) -> Ours:
    """IPPO or MAPPO with the sizes of theirs; their recurrent networks have one more layer of 128 behind the GRU."""
    net = {"hidden": hidden, "memory": memory}
    settings = {"net": net, "batch_steps": num_envs * rollout, "epochs": epochs, "minibatches": minibatches}
    settings["sequence"] = sequence
    return Ours(against, against.split("_")[0], num_envs, settings)


FAST = {
    "batch_steps": 512 * 26,
    "epochs": 1,
    "minibatches": 40,
    "epsilon_steps": 400_000,
    "lr": 6e-3,
    "anneal_steps": 4_000_000,
    "gamma": 0.85,
    "net": {"identity": False},
}
SHIPPED = {
    "batch_steps": 4096,
    "epochs": 4,
    "minibatches": 16,
    "epsilon_end": 0.1,
    "epsilon_steps": 1_000_000,
    "lr": 5e-4,
    "gamma": 0.9,
    "lam": 0.3,
    "max_grad_norm": 1.0,
    "normalise": False,
    "reward": "sum",
    "net": {"hidden": (256, 256), "norm": "layer"},
}
OURS = {
    **{f"{name}_rnn": ours_same(name) for name in ("iql", "vdn", "qmix")},
    **{f"{name}_own": Ours(f"{name}_rnn", name) for name in ("iql", "vdn", "qmix")},
    "pqn_fast": Ours("vdn_rnn", "pqn_vdn", 512, FAST),
    "pqn_vdn": Ours("pqn_vdn", "pqn_vdn", 256, SHIPPED),
    "ippo_ff": ours_ppo("ippo_ff", hidden=(64, 64)),
    "ippo_ff_best": ours_ppo("ippo_ff_best", hidden=(64, 64), num_envs=512, rollout=25, minibatches=1),
    "ippo_rnn": ours_ppo("ippo_rnn", hidden=(128,), memory=128, minibatches=2),
    "ippo_rnn_16": ours_ppo("ippo_rnn", hidden=(128,), memory=128, minibatches=2, sequence=16),
    "mappo_rnn": ours_ppo("mappo_rnn", hidden=(128,), memory=128),
    "mappo_rnn_16": ours_ppo("mappo_rnn", hidden=(128,), memory=128, sequence=16),
}


# Theirs, in the child process: jax, but neither torch nor shoal


def child(name: str, checkout: Path, steps: int) -> None:
    """Compiles a script's training, runs it once for every line read, and prints what was measured as JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the scripts print must not mix with the figures
    here = Path(__file__).resolve().parent
    sys.path = [path for path in sys.path if Path(path).resolve() != here]  # this file has their package's name
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    silence = sys.modules["wandb"] = ModuleType("wandb")
    vars(silence)["log"] = lambda *_: None
    import jax  # type: ignore[import-not-found]

    train, config = published(THEIRS[name], checkout, steps)
    key = jax.random.PRNGKey(config["SEED"])
    start = time.perf_counter()
    compiled = jax.jit(train).lower(key).compile()
    compile_seconds = time.perf_counter() - start
    env_steps = config["NUM_UPDATES"] * config["NUM_STEPS"] * config["NUM_ENVS"]
    for _ in sys.stdin:
        start = time.perf_counter()
        trained = jax.block_until_ready(compiled(key))
        seconds = time.perf_counter() - start
        measured = {"env_steps": env_steps, "seconds": seconds, "compile_seconds": compile_seconds}
        if "TEST_INTERVAL" in config:
            tested = trained["runner_state"][2].get("returned_episode_returns", math.nan)  # iql's keeps none
            measured["return"] = float(tested) / 3  # of three agents, each with three times its reward
        print(json.dumps(measured), file=out, flush=True)


def published(theirs: Theirs, checkout: Path, steps: int) -> tuple[Any, dict[str, Any]]:
    """Their training function for about `steps` environment steps (whole rollouts), and its configuration."""
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    script, *configs = theirs.files(checkout)
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: dict[str, Any] = {}
    for path in configs:
        config |= OmegaConf.to_container(OmegaConf.load(path))
    config |= theirs.changes
    rollout = config["NUM_STEPS"] * config["NUM_ENVS"]
    config["TOTAL_TIMESTEPS"] = max(steps // rollout, 1) * rollout
    if hasattr(module, "env_from_config"):
        return module.make_train(config, module.env_from_config(config)[0]), config
    return module.make_train(config), config


# Here: the children, shoal, and the table


@contextmanager
def worker(python: Path, name: str, checkout: Path, steps: int) -> Iterator[Callable[[], dict[str, float]]]:
    """A child process with one of theirs; each call is one training from nothing, the first waits for the compiler."""
    command = [str(python), __file__, "--child", name, "--checkout", str(checkout), "--steps", str(steps)]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        except OSError as error:
            raise SystemExit(f"--python: cannot run {python}: {error.strerror}") from None

        def run() -> dict[str, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                print(file=process.stdin, flush=True)
                measured: dict[str, float] = json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                status = process.wait()
                errors.seek(0)
                words = "".join(errors.readlines()[-15:])
                raise SystemExit(f"{words}JaxMARL's {name} ended with status {status} and the words above") from None
            return measured

        try:
            yield run
        finally:
            process.kill()
            process.wait()


def compare(
    run: Callable[[], dict[str, float]], against: str, names: list[str], repeats: int, threads: int
) -> list[str]:
    """Rows of the table: one of theirs, and shoal's `names` against it, in turns; no names: theirs alone."""
    measured: dict[str, float] = {}
    published: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in names}
    returns: dict[str, float] = {}
    for repeat in range(repeats):
        measured = run()
        published.append(measured["env_steps"] / measured["seconds"])
        for name in names:
            if not repeat:
                OURS[name].run(WARM_STEPS, threads)
            rate, returns[name] = OURS[name].run(int(measured["env_steps"]), threads, judge=repeat == repeats - 1)
            rates[name].append(rate)
    theirs, rows = statistics.median(published), []
    for name in names or [against]:
        ours = statistics.median(rates[name]) if names else 0.0
        cells = f"{ours:,.0f} | {ours / theirs:.2f}" if names else "- | -"
        learned = f"{measured.get('return', math.nan):.2f} | {returns.get(name, math.nan):.2f}"
        rows.append(
            f"| {name} | {measured['env_steps']:,.0f} | {theirs:,.0f} | {cells} | {learned} | "
            f"{measured['compile_seconds']:.0f} |"
        )
    return rows


def check(name: str, threads: int) -> None:
    """What shoal cannot build should fail before anything is measured."""
    from shoal import ShoalError

    try:
        OURS[name].build(threads)
    except ShoalError as error:
        raise SystemExit(f"{name}: {error}") from None


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="checkout of JaxMARL's repository")
    parser.add_argument("--python", type=Path, help="interpreter of the environment with jaxmarl")
    parser.add_argument("--only", nargs="+", choices=list(OURS), default=list(OURS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="about how long one run of theirs takes")
    parser.add_argument("--steps", type=int, help="environment steps of a run, instead of --seconds")
    parser.add_argument("--threads", type=int, default=1, help="of shoal")
    parser.add_argument("--theirs-only", action="store_true", help="leave shoal out")
    parser.add_argument("--child", choices=list(THEIRS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    names = [chosen.child] if chosen.child else [OURS[name].against for name in chosen.only]
    for path in (path for name in names for path in THEIRS[name].files(chosen.checkout)):
        if not path.is_file():
            parser.error(f"--checkout: there is no {path}; is {chosen.checkout} a checkout of JaxMARL's repository?")
    if not chosen.child and chosen.python is None:
        parser.error("--python is required: the interpreter of the environment with jaxmarl")
    return chosen


def main() -> None:
    chosen = options()
    if chosen.child:
        child(chosen.child, chosen.checkout, chosen.steps)
        return
    groups: dict[str, list[str]] = {}
    for name in chosen.only:
        group = groups.setdefault(OURS[name].against, [])
        if not chosen.theirs_only:
            check(name, chosen.threads)
            group.append(name)
    rows = []
    for against, names in groups.items():
        steps = chosen.steps or int(chosen.seconds * THEIRS[against].rate)
        with worker(chosen.python, against, chosen.checkout, steps) as run:
            rows += compare(run, against, names, chosen.repeats, chosen.threads)
    cores = len(os.sched_getaffinity(0))
    print(f"simple_spread, 3 agents; environment steps a second, median of {chosen.repeats} runs")
    print(f"JaxMARL on {cores} cores, shoal on {chosen.threads} thread{'s' * (chosen.threads != 1)}\n")
    print("| | steps of a run | JaxMARL | shoal | ratio | its return | shoal's | JaxMARL compiles, s |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
