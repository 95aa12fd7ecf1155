"""What each implementation detail of PPO is worth: MAPPO in simple_spread with one of them changed at a time.

    python benchmarks/details.py [--out runs/details] [--seeds 3] [--steps 500000] [--jobs N]

Everything else is as `shoal train mappo mpe/simple_spread` has it, with learning rates that fall over the steps there
are. Prints the absolute metric (the best of 20 checkpoints, over 320 greedy episodes on other starts) per agent: the
mean over the seeds, and each. Runs that have finished in `--out` are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shoal.cli import parse_run
from shoal.jobs import Job, locked, run_all
from shoal.stats import runs
from shoal.stats.plots import slug
from shoal.threads import cores

ALGORITHM, ENV = "mappo", "mpe/simple_spread"
DETAILS = {
    "as it is": (),
    "values in the rewards' own units": ("--no-normalise-value",),
    "advantages as they are": ("--no-normalise-advantage",),
    "squared errors of values": ("--huber", "0"),
    "values clipped at 0.2": ("--value-clip", "0.2"),
    "weights drawn uniformly": ("--net.no-orthogonal",),
    "last layer of the policy not small (gain 1)": ("--net.gain", "1"),
    "gradients not clipped": ("--max-grad-norm", "0"),
    "gradients clipped at 0.5": ("--max-grad-norm", "0.5"),
    "policy not clipped": ("--clip", "0"),
    "one minibatch, half the gradient steps": ("--minibatches", "1"),
    "5 epochs instead of 15": ("--epochs", "5"),
    "epochs end at a divergence of 0.02": ("--target-kl", "0.02"),
    "learning rates do not fall": ("--anneal-steps", "0"),
    "entropy 0.01, falling": ("--entropy", "0.01"),
    "returns instead of estimates (lambda 1)": ("--lam", "1"),
    "agents numbered": ("--net.identity",),
}


def job(out: Path, name: str, options: tuple[str, ...], steps: int, seed: int) -> Job:
    """One run: a detail and a seed."""
    common = ("--total-steps", str(steps), "--anneal-steps", str(steps), "--seed", str(seed), "--workers", "1")
    common += ("--eval-episodes", "32", "--absolute-episodes", "320", "--no-tensorboard")
    given = (*common, *options)
    return Job(out / f"{slug(name)}_s{seed}", ALGORITHM, ENV, given, parse_run(ALGORITHM, ENV, list(given)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/details"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--jobs", type=int, default=cores())
    chosen = parser.parse_args()
    jobs = {n: [job(chosen.out, n, o, chosen.steps, s) for s in range(chosen.seeds)] for n, o in DETAILS.items()}
    by_seed = [jobs[name][seed] for seed in range(chosen.seeds) for name in DETAILS]
    with locked(chosen.out) as lock:
        run_all(by_seed, chosen.jobs, lock, ended=lambda job, status: print(job.directory.name, status, flush=True))
    print("| | mean | seeds |\n|---|---|---|")
    for name, members in jobs.items():
        found = [runs.load(job.directory) for job in members]
        scores = [run.value(run.absolute, "agent_return") for run in found if run.absolute]
        each = ", ".join(f"{score:.2f}" for score in scores)
        print(f"| {name} | {sum(scores) / max(len(scores), 1):.2f} | {each} |")


if __name__ == "__main__":
    main()
