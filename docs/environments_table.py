"""Tries every environment and writes which work into docs/environments/all.md.

    python docs/environments_table.py                 all of them (minutes)
    python docs/environments_table.py openspiel vmas  some suites; the other rows stay
    python docs/environments_table.py --check         fails where an environment that is named has no row

Each is tried in a process of its own: reset, 200 random legal steps, 200 steps of an untrained policy, and one update
of PPO.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import shoal
from shoal import actions, registry
from shoal.threads import cores
from shoal.types import Discrete

PAGE = Path(__file__).parent / "environments" / "all.md"
BEGIN, END = "<!-- environments -->", "<!-- end -->"
HEAD = ("environment", "groups and agents", "observation", "actions", "masks", "state", "result")
LIMIT = 120
"""Seconds of processor time for one environment."""
STEPS = 200
MODULES = [
    f"pettingzoo/mpe2.{name}"
    for name in (
        "simple_v3", "simple_adversary_v3", "simple_crypto_v3", "simple_push_v3", "simple_reference_v3",
        "simple_speaker_listener_v4", "simple_spread_v3", "simple_tag_v3", "simple_world_comm_v3",
    )
]  # fmt: skip
ARGUMENTS: dict[str, dict[str, Any]] = {"matrix/custom": {"payoffs": [[1, 0], [0, 1]]}}
SKIPPED = ("pettingzoo/atari/",)  # needs ROMs, which cannot be installed


def everything() -> list[str]:
    """Names of all environments: of the suites, and the modules of `mpe2`."""
    names = [name for suite in registry.suites() for name in registry.environments(suite)]
    return [name for name in [*names, *MODULES] if not name.startswith(SKIPPED)]


def attempt(name: str, row: dict[str, Any]) -> None:
    """Play `name` and learn from it once; `row` says what it is like, and what was being done."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row["stage"] = "making it"
    env = shoal.make(name, **ARGUMENTS.get(name, {}))
    groups = env.spec.groups
    row |= {
        "groups": {n: g.num_agents for n, g in groups.items()},
        "observation": [" x ".join(map(str, g.obs_shape)) + " uint8" * g.image for g in groups.values()],
        "actions": [
            f"{g.action.size} {'choices' if isinstance(g.action, Discrete) else 'numbers'}" for g in groups.values()
        ],
        "masks": any(g.masked for g in groups.values()),
        "state": env.spec.state_size,
    }
    row["stage"] = "reset"
    view, generator = env.reset(0), torch.Generator().manual_seed(0)
    row["stage"] = "random steps"
    for _ in range(STEPS):
        view = env.step({n: actions.random(g.action, view.legal[n], generator) for n, g in groups.items()}).view
    row["stage"] = "steps of a policy"
    settings = {"batch_steps": 20, "epochs": 1, "net": {"hidden": (16,)}}
    algorithm = shoal.build("ippo", env.spec, **settings)
    view, memory = env.reset(1), algorithm.initial_memory(1)
    for _ in range(STEPS):
        chosen, memory = algorithm.act(view, memory, explore=False)
        view = env.step(chosen).view
    row["stage"] = "an update"
    for progress in shoal.train(algorithm, env, 20):
        progress.check()
    env.close()


def child(name: str, pipe: Any) -> None:
    """Send what became of `name`."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # environments print what they like
    os.dup2(1, 2)
    row: dict[str, Any] = {}
    try:
        attempt(name, row)
    except BaseException as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["seconds"] = round(time.process_time(), 1)
    pipe.send(row)


def tried(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of `child`, each in a process of its own, as many at a time as there are cores."""
    context = multiprocessing.get_context("fork")
    for first in range(0, len(names), cores()):
        running = []
        for name in names[first : first + cores()]:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(name, theirs))
            process.start()
            theirs.close()
            running.append((name, process, ours))
        for name, process, pipe in running:
            if not pipe.poll(10 * LIMIT):
                process.kill()
            try:
                row = pipe.recv()
            except EOFError:
                process.join()
                too_long = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
                what = f"took more than {LIMIT} s" if too_long else f"the process died with status {process.exitcode}"
                row = {"error": what}
            process.join()
            yield name, row


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    if "error" in row:
        what = " ".join(f"{row.get('stage', '')}: {row['error']}".split()).replace("|", "\\|").replace("<", "&lt;")
        result = what if len(what) < 160 else what[:157] + "..."
    else:
        result = "works"
    groups = ", ".join(f"{n} {count}" for n, count in row.get("groups", {}).items())
    cells = [f"`{name}`".replace("|", "\\|"), groups]
    cells += [", ".join(dict.fromkeys(row.get(key, []))) for key in ("observation", "actions")]
    cells += [{True: "yes", False: "no"}.get(row.get("masks", ""), ""), str(row.get("state", "") or ""), result]
    return "| " + " | ".join(cells) + " |"


def rows() -> dict[str, str]:
    """The page's rows by environment."""
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    found = [row for row in text.splitlines() if row.startswith("| `")]
    return {row.split("`")[1].replace("\\|", "|"): row for row in found}


def write(table: dict[str, str]) -> None:
    """Put the rows into the page, in the order of `everything`."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += [table[name] for name in everything() if name in table]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.partition(END)[2]}")


def missing() -> list[str]:
    """Environments that have no row."""
    known = rows()
    return [name for name in everything() if name not in known]


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if gone := missing():
            print(f"no row in {PAGE.name}: {', '.join(gone)}; run python docs/environments_table.py")
        return 1 if gone else 0
    names = [name for name in everything() if not arguments or name.split("/")[0] in arguments or name in arguments]
    table = rows()
    for name, row in tried(names):
        table[name] = line(name, row)
        print(f"{name:<48}{row.get('seconds', ''):>7}  {row.get('error', 'works')[:120]}", flush=True)
        write(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
