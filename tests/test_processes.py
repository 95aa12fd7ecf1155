"""Environments in worker processes: equal to those in this process, and what happens when a worker fails."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fragile import Fragile, Walks

import shoal
from shoal import checkpoint, cli, log, tree
from shoal.collect import LocalCollector
from shoal.envs.common.processes import Processes, seed_of
from shoal.envs.common.serial import SerialEnvs
from shoal.replay import Replay
from shoal.train import Progress
from shoal.types import Groups, ShoalError, Step, View

HERE = Path(__file__).parent
FRAGILE, WALKS = f"{HERE / 'fragile.py'}:Fragile", f"{HERE / 'fragile.py'}:Walks"
RAISE, HANG, KILL, EXIT = 1, 2, 4, 5  # actions of `Fragile`


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Four environments in two workers."""
    env: Any = shoal.make(FRAGILE, 4, processes=2, obey=True)
    yield env
    env.close()


def still(env: shoal.VecEnv, **faults: int) -> Groups:
    """Actions that break nothing but the environments named `env_INDEX`."""
    (name,) = env.spec.groups
    actions = torch.zeros(env.num_envs, env.spec.groups[name].num_agents, dtype=torch.int64)
    for key, fault in faults.items():
        actions[int(key.split("_")[1]), 0] = fault
    return {name: actions}


def played(env: shoal.VecEnv, steps: int, seed: int | None = 0) -> list[torch.Tensor]:
    """All that is seen in some steps."""
    shown: list[Any] = [tree.map(torch.clone, env.reset(seed))] if seed is not None else []
    for _ in range(steps):
        step = env.step(still(env))
        happened = step.view, step.successor, step.reward, step.terminated, step.alive, step.ended
        shown.append(tree.map(torch.clone, happened))
    return tree.leaves(shown)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def seen_in(step: Step) -> list[torch.Tensor]:
    return [step.view.obs["a"].clone(), step.reward["a"].clone(), step.ended.clone()]


def rollout(env: shoal.VecEnv, seed: int = 5, steps: int = 15) -> list[torch.Tensor]:
    """What an exploring policy meets."""
    policy = shoal.build("iql", env.spec, seed=1, net={"hidden": (4,)})
    found: list[torch.Tensor] = list(tree.leaves(LocalCollector(policy, env, steps, seed).collect()))
    return found


def test_the_number_of_workers_does_not_matter(two: Processes) -> None:
    here, three = shoal.make(FRAGILE, 4), shoal.make(FRAGILE, 4, processes=3)  # which does not divide four
    expected = played(here, 15)
    assert same(played(two, 15), expected)
    assert same(played(three, 15), expected)
    assert same(rollout(three), rollout(here))
    three.close()


def test_a_batched_environment_is_played_one_by_one() -> None:
    env: Any = shoal.make(WALKS, 3, processes=2)
    env.reset(5)
    seen = torch.stack([env.step(still(env)).view.obs["walker"].clone() for _ in range(10)])
    for i in range(3):
        alone = Walks()
        alone.reset(seed_of(5, i))
        for row in seen:
            assert torch.equal(alone.step({}).view.obs["walker"][0], row[i])
    # it has no state: where one is loaded, the episodes that were played are lost
    state = env.state_dict()
    env.load_state_dict(state)
    step = env.step(still(env))
    assert step.lost.all()
    assert torch.equal(step.successor.obs["walker"], state["view"]["obs"]["walker"])
    assert not env.step(still(env)).lost.any()
    env.close()


def test_state_goes_through_the_workers(two: Processes) -> None:
    assert isinstance(two, shoal.VecEnv)
    played(two, 9, seed=3)
    state = tree.map(torch.clone, two.state_dict())
    following = played(two, 8, seed=None)
    played(two, 4, seed=7)
    two.load_state_dict(state)
    assert same(played(two, 8, seed=None), following)


def test_pictures_come_from_the_right_environment(two: Processes) -> None:
    two.reset(0)
    two.step(still(two))
    assert [int(two.render(i)[0, 0, 0]) for i in range(4)] == [1, 1, 1, 1]
    assert two.render(3).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (RAISE, "raised\nTraceback.*the dam broke"),
        (HANG, "gave no answer in 1 seconds"),
        (KILL, r"was killed \(SIGKILL"),
    ],
)
def test_a_worker_that_fails(two: Processes, fault: int, message: str) -> None:
    """It is named; and, started anew, begins new episodes, while the other one goes on as if nothing had happened."""
    expected = []
    for with_fault in (False, True):
        two.reset(11)
        two.step(still(two))
        before = two.step(still(two))
        shown = before.view.obs["a"].clone()
        if not with_fault:
            expected = [seen_in(two.step(still(two))) for _ in range(5)]
    two.on_failure, two.timeout = "restart", 1.0
    with pytest.warns(UserWarning, match=f"(?s)environment 3, episode seed .*, step 3: .*{message}"):
        step = two.step(still(two, env_3=fault))
    two.timeout = 60.0
    assert step.lost.tolist() == step.ended.tolist() == [False, False, True, True]
    assert step.alive["a"].tolist() == [[True] * 2] * 2 + [[False] * 2] * 2
    assert not step.terminated["a"].any()
    assert (step.reward["a"][2:] == 0).all()
    assert torch.equal(step.successor.obs["a"][2:], shown[2:])
    assert (step.view.obs["a"][2:, :, 1] == 0).all()  # the first step of new episodes
    assert not torch.isin(step.view.obs["a"][2:, :, 0], shown[2:, :, 0]).any()  # and not of the same
    got = [seen_in(step)] + [seen_in(two.step(still(two))) for _ in range(4)]
    for one, other in zip(got, expected, strict=True):
        assert all(torch.equal(a[:2], b[:2]) for a, b in zip(one, other, strict=True))
    assert two.step(still(two)).view.obs["a"][2, 0, 1] == 5
    assert not two.step(still(two)).lost.any()


def test_an_idle_worker_dies_and_nothing_is_saved_of_it(two: Processes) -> None:
    two.on_failure = "restart"
    played(two, 3, seed=2)
    os.killpg(two.workers[0].process.pid, signal.SIGKILL)
    with pytest.warns(UserWarning, match="environments 0 to 1: the worker process was killed"):
        state = tree.map(torch.clone, two.state_dict())
    assert state["lost"] == [True, False]
    following = played(two, 8, seed=None)
    assert not two.step(still(two)).lost.any()
    two.load_state_dict(state)
    assert same(played(two, 8, seed=None), following)


def test_failures_that_are_not_mended(two: Processes) -> None:
    two.on_failure = "raise"
    two.reset(4)
    with pytest.raises(ShoalError, match=r"environment 1, episode seed \d+, step 1: .*ended with exit status 3"):
        two.step(still(two, env_1=EXIT))
    two.on_failure = "restart"
    two.workers[0].failures = 2  # as after two restarts without a step between them
    with pytest.raises(ShoalError, match="failed 3 times without finishing a step"):
        two.step(still(two))
    two.close()
    two.close()
    with pytest.raises(ShoalError, match="closed"):
        two.step(still(two))


def test_what_cannot_be_played_in_processes() -> None:
    with pytest.raises(ShoalError, match="steps all its environments at once"):
        shoal.make("mpe/simple_spread", 4, processes=2)
    with pytest.raises(ShoalError, match="pickle"):
        Processes(lambda first, count: [], 1, 1)
    with pytest.raises(ShoalError, match=r"cannot be made: .* refused: cannot import 'nothing\.at_all'"):
        shoal.make("pettingzoo/nothing.at_all", 1, processes=1)


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    deadline = time.time() + seconds
    while time.time() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


SCRIPT = """
import sys, torch, shoal
env = shoal.make(sys.argv[1], 2, processes=1, obey=True)
env.reset(0)
print(*[worker.process.pid for worker in env.workers], flush=True)
if sys.argv[2] == "raise":
    raise RuntimeError("and nobody closes anything")
env.step({"a": torch.tensor([[3, 0], [0, 0]])})  # stuck in C
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_the_main_process() -> None:
    """That raises, or is killed while a worker is stuck."""
    command = [sys.executable, "-c", SCRIPT, FRAGILE]
    mains = [
        subprocess.Popen([*command, how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for how in ("raise", "stuck")
    ]
    workers = [[int(pid) for pid in main.stdout.readline().split()] for main in mains if main.stdout]
    assert [len(pids) for pids in workers] == [1, 1]
    assert mains[0].wait(timeout=30) == 1
    time.sleep(0.2)
    assert all(alive(pid) for pid in workers[1])
    mains[1].kill()
    assert gone(workers[0] + workers[1])
    for main in mains:
        main.communicate()


def test_garbage_collection_ends_the_workers() -> None:
    env: Any = shoal.make(FRAGILE, 1, processes=3)  # no more than environments
    (worker,) = env.workers
    assert alive(worker.process.pid)
    view = env.reset(0)
    del env, worker.number
    gc.collect()
    assert worker.process.returncode is not None
    assert view.obs["a"].shape == (1, 2, 3)  # what was handed out stays valid


SMALL = ["--warmup", "30", "--batch-size", "8", "--net.hidden", "8", "--eval-episodes", "2", "--no-tensorboard"]
INTERVALS = ["--eval-every", "100", "--log-every", "50"]


def weights(directory: Path) -> list[torch.Tensor]:
    return list(tree.leaves(checkpoint.load(directory / "checkpoint")["algorithm"]))


def test_train_stop_resume_in_processes_is_train_through_in_this_one(tmp_path: Path) -> None:
    arguments = ["train", "iql", FRAGILE, *SMALL, *INTERVALS, "--num-envs", "3", "--total-steps"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert cli.main([*arguments, "300", "--out", str(here)]) == 0
    assert cli.main([*arguments, "150", "--processes", "1", "--out", str(there)]) == 0
    assert cli.main(["train", "--resume", str(there), "--total-steps", "300"]) == 0
    assert same(weights(here), weights(there))
    assert "lost_episodes" not in log.read_metrics(there)[-1]


def test_a_run_goes_on_after_failures(tmp_path: Path, capsys: Any) -> None:
    arguments = ["train", "iql", FRAGILE, *SMALL, *INTERVALS, "--num-envs", "2", "--total-steps", "300"]
    arguments += ["--env.fault", "kill", "--env.after", "200", "--processes", "1", "--out", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match="started anew; lost episodes: 2"):
        assert cli.main([*arguments, "--on-worker-failure", "restart"]) == 0
    rows = log.read_metrics(tmp_path / "run")
    assert "lost_episodes" not in rows[0]
    assert {row["lost_episodes"] for row in rows if "lost_episodes" in row} == {2}
    assert checkpoint.load(tmp_path / "run" / "checkpoint")["collector"]["lost_episodes"] == 2
    assert "2 episodes were lost with their worker processes" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_saves_and_leaves_nobody_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shoal", "train", "iql", FRAGILE, *SMALL, *INTERVALS, "--processes", "1"]
    main = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.time() + 60
    while time.time() < deadline and len(log.read_metrics(tmp_path / "run")) < 2:
        time.sleep(0.05)
    workers = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
    assert len(workers) == 2  # one plays the evaluations
    os.killpg(main.pid, signal.SIGINT)  # as a terminal does
    output, _ = main.communicate(timeout=60)
    assert main.returncode == 130
    assert "stopped and saved" in output
    assert gone([int(pid) for pid in workers])
    assert checkpoint.load(tmp_path / "run" / "checkpoint")["env_steps"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "options",
    [
        ["--env.signal", str(int(signal.SIGKILL))],
        ["--env.signal", str(int(signal.SIGSTOP))],
        ["--env.fault", "raise", "--env.chance", "0.005"],
    ],
    ids=["killed", "hanging", "raising"],
)
def test_fifty_failures(tmp_path: Path, options: list[str]) -> None:
    """At random moments of a run that evaluates and saves all the time, and is stopped and resumed."""
    directory, failures, told, steps, legs = tmp_path / "run", 0, 0, 0, 0
    before = set(os.listdir("/dev/shm"))
    arguments = ["train", "iql", FRAGILE, *SMALL, "--num-envs", "4", "--processes", "2", "--out", str(directory)]
    arguments += ["--worker-timeout", "1.5", "--on-worker-failure", "restart"]
    arguments += ["--eval-every", "100", "--log-every", "40"]
    while failures < 50:
        legs, steps = legs + 1, steps + 500
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            go = ["train", "--resume", str(directory)] if legs > 1 else [*arguments, *options]
            assert cli.main([*go, "--total-steps", str(steps)]) == 0
        failures += sum("started anew" in str(warning.message) for warning in caught)  # evaluations' workers too
        told += sum(str(warning.message).endswith("lost episodes: 2") for warning in caught)
        saved = checkpoint.load(directory / "checkpoint")
        assert saved["env_steps"] == steps
        assert not children()
        print(f"{failures} failures, {saved['collector']['lost_episodes']} lost episodes, {steps} steps, {legs} legs")
    lost = saved["collector"]["lost_episodes"]
    assert 2 * told - 8 <= lost <= 2 * told  # a worker may fail again before a loss is told, or after the last step
    evaluations = log.read_evaluations(directory)
    assert [e["env_steps"] for e in evaluations] == list(range(100, steps + 1, 100))
    assert all(e["length"]["mean"] == 6 for e in evaluations)
    assert set(os.listdir("/dev/shm")) <= before


def children() -> list[str]:
    """Processes that this one has started and that are not gone."""
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


# What a learner makes of a lost step


class Losing:
    """Environments of this process of which some steps are lost."""

    def __init__(self, lost: dict[int, list[int]], num_envs: int = 3) -> None:
        self.env = SerialEnvs(Fragile, num_envs)
        self.spec, self.num_envs, self.lost, self.steps = self.env.spec, num_envs, lost, 0

    def reset(self, seed: int | None = None) -> View:
        return self.env.reset(seed)

    def step(self, actions: Groups) -> Step:
        before = tree.map(torch.clone, self.env.view)
        step = self.env.step(actions)
        step.lost = torch.zeros(self.num_envs, dtype=torch.bool)
        for i in self.lost.get(self.steps, []):
            self.env._start(i)
            step.lost[i] = step.ended[i] = True
            tree.copy_(tree.index(step.successor, i), tree.index(before, i))
            step.reward["a"][i], step.alive["a"][i], step.terminated["a"][i] = 0.0, False, False
        self.steps += 1
        return step

    def close(self) -> None: ...


NET = {"net": {"hidden": (8,)}}
OFF_POLICY = {"warmup": 12, "batch_size": 64, "update_every": 12, "buffer_size": 300}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ippo", {"batch_steps": 36}),
        ("mappo", {"batch_steps": 36, "net": {"hidden": (8,), "memory": 4}}),
        ("happo", {"batch_steps": 36}),
        ("maddpg", OFF_POLICY),
        ("iql", OFF_POLICY),
        ("qmix", {**OFF_POLICY, "n_step": 3, "sequence": 3, "net": {"hidden": (8,), "memory": 4}}),
        ("wqmix", {**OFF_POLICY, "priority": 0.6, "sequence": 2, "net": {"hidden": (8,), "memory": 4}}),
    ],
)
def test_nothing_in_a_lost_row_is_learned_from(name: str, settings: dict[str, Any]) -> None:
    """Whatever stands there, weights are the same to the bit; lost are steps within and at the start of rollouts."""
    results = []
    for scramble in (False, True):
        env = Losing({3: [0], 4: [2], 12: [1], 16: [0, 1]})
        algorithm = shoal.build(name, env.spec, **{**NET, **settings})
        experience = algorithm.experience(env.num_envs)
        collector = LocalCollector(algorithm, env, experience.rollout_steps, 0)
        number, updates, lost, torn = 0, 0, 0, 0
        while number < 36:
            rollout = collector.collect()
            torn += int(collector.cut.sum())
            experience.cut(collector.cut)
            for agents in rollout.groups.values():
                nobody = ~agents.present.any(-1)
                lost += int(nobody.sum())
                assert not agents.alive[nobody].any()
                if scramble:
                    for x in (agents.obs, agents.next_obs, agents.reward, agents.memory):
                        x[nobody] = torch.randn(x[nobody].shape)
                    agents.action[nobody] = 1
            number += rollout.ended.shape[0]
            for batch in experience.add(rollout):
                algorithm.update(batch)
                updates += 1
        assert (lost, torn) == (5, 0 if collector.num_steps > 12 else 5 if collector.num_steps == 1 else torn)
        assert updates > 1
        results.append(algorithm.state_dict())
    one, two = ([x for x in tree.leaves(r) if x.is_floating_point()] for r in results)
    assert same(one, two)


def test_the_step_before_a_lost_one_is_followed_by_what_it_led_to() -> None:
    """Its episode is cut off there: the target is its reward and the value of its true successor, and no more."""
    env = Losing({4: [0]}, num_envs=1)
    collector = LocalCollector(shoal.build("iql", env.spec), env, 6, 0)
    batch = collector.collect()
    agents = batch.groups["a"]
    assert batch.ended[:, 0].tolist() == [False, False, False, True, True, False]
    assert agents.present[:, 0, 0].tolist() == agents.alive[:, 0, 0].tolist() == [True] * 4 + [False, True]
    assert torch.equal(agents.next_obs[3], agents.obs[4])
    assert (agents.obs[:, 0, 0, 1]).tolist() == [0, 1, 2, 3, 4, 0]
    assert collector.lost_episodes == 1
    assert not collector.finished


def test_an_evaluation_does_not_count_lost_episodes() -> None:
    env = Losing({2: [0], 7: [1, 2]})
    result = shoal.evaluate(shoal.build("iql", env.spec), env, 5)
    assert result.lengths.tolist() == [6] * 5
    assert np.isfinite(result.team_return).all()


def test_training_is_told_whose_episode_was_cut_off_before_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    env: Any = Losing({5: [1]})
    told: list[list[bool]] = []
    monkeypatch.setattr(Replay, "cut", lambda self, envs: told.append(envs.tolist()))
    algorithm = shoal.build("iql", env.spec, update_every=1, warmup=10**6)
    for progress in shoal.train(algorithm, env, 10 * env.num_envs):
        assert progress.collector.rollout.ended.shape[0] == 1  # every step is the first of a rollout
    assert told == [[k == 1 for k in range(env.num_envs)]]


def test_what_was_kept_does_not_go_on_where_new_episodes_start() -> None:
    """After a resume with environments that cannot say where they were."""
    env: Any = Walks(2)
    (*_, before) = shoal.train(shoal.build("iql", env.spec, update_every=2, warmup=10**6), env, 6)
    after = Progress(shoal.build("iql", env.spec, update_every=2, warmup=10**6), Walks(2), 100, 0)
    after.load_state_dict(before.state_dict())
    assert isinstance(after.experience, Replay)
    assert after.experience.storage.ended[after.experience.written - 1].all()
    assert torch.equal(after.experience.storage.ended[:2], before.experience.storage.ended[:2])  # type: ignore[attr-defined]
