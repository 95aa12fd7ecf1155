"""ONNX files: an agent run alone from its file does what it does in the batched policy; and runs need no torch.

Most cases are compared through the example's own `Agent`, one session an agent, memory and messages passed by hand.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal import checkpoint, cli, experiment, export
from shoal.algorithms import ddpg, ppo, q_agents, value_decomposition
from shoal.export import Agent, check, players, same, write
from shoal.export import files as writing
from shoal.export.same import ENVS, STEPS
from shoal.nets.comm import Way
from shoal.teams.league import League
from shoal.types import (
    SELF,
    Action,
    Algorithm,
    Box,
    Discrete,
    EnvSpec,
    Groups,
    GroupSpec,
    Part,
    ShoalError,
    Step,
    View,
    columns,
)

for package in export.PACKAGES:
    pytest.importorskip(package)
FOUR = Discrete(4)
EXAMPLE = Path(__file__).parent.parent / "examples" / "run_exported.py"
example: Any = runpy.run_path(str(EXAMPLE))


class Shows:
    """Environments that show random things: whatever can be shown to agents of `spec`. Episodes end at random."""

    def __init__(self, spec: EnvSpec, num_envs: int = 1, hears: bool = False) -> None:
        self.spec, self.num_envs, self.hears = spec, num_envs, hears

    def _view(self) -> View:
        obs, legal, n = {}, {}, self.num_envs
        for name, g in self.spec.groups.items():
            obs[name] = torch.randn(n, g.num_agents, *g.obs_shape, generator=self.generator)
            if g.image:
                size = (n, g.num_agents, *g.obs_shape)
                obs[name] = torch.randint(0, 256, size, generator=self.generator, dtype=torch.uint8)
            legal[name] = torch.rand(n, g.num_agents, g.action.size * g.masked, generator=self.generator) < 0.6
            legal[name][..., -1:] = True
        total = self.spec.num_agents * self.hears
        hears = torch.rand(n, total, total, generator=self.generator) < 0.6
        return View(obs, legal, torch.zeros(n, self.spec.state_size), hears)

    def reset(self, seed: int | None = None) -> View:
        self.generator = torch.Generator().manual_seed(seed or 0)
        return self._view()

    def step(self, actions: Groups) -> Step:
        view, nothing = self._view(), {n: torch.zeros(a.shape[:2]) for n, a in actions.items()}
        flags = {n: x.bool() for n, x in nothing.items()}
        return Step(view, view, nothing, flags, flags, torch.rand(self.num_envs, generator=self.generator) < 0.1)

    def close(self) -> None: ...


def spec(
    action: Action = FOUR,
    *,
    masked: bool = False,
    obs: tuple[int, ...] = (3,),
    image: bool = False,
    other: bool = False,
    parts: tuple[Part, ...] = (),
) -> EnvSpec:
    obs = (columns(parts),) if parts else obs
    groups = {"runner": GroupSpec(("runner_0", "runner_1"), obs, action, masked, image, parts)}
    if other:  # unlike agents
        groups["caller"] = GroupSpec(("ann", "bob", "cid"), (5,), Discrete(3))
    return EnvSpec(groups)


@torch.no_grad()
def lively(policy: Any) -> Any:
    """Weights far from where they start, so that what is compared is not all zeros; some gates close."""
    generator = torch.Generator().manual_seed(1)
    for module in policy.modules if hasattr(policy, "modules") else [policy.module]:
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return policy


def on_policy(spec: EnvSpec, **net: Any) -> Algorithm:
    return lively(ppo.PPO(spec, ppo.Config(net=ppo.Net(hidden=(16,), **net))))  # type: ignore[no-any-return]


def valued(spec: EnvSpec, **net: Any) -> Algorithm:
    config = value_decomposition.Config(net=q_agents.Net(hidden=(16, 8), **net))
    return lively(value_decomposition.ValueDecomposition(spec, config))  # type: ignore[no-any-return]


def deterministic(spec: EnvSpec, shared: bool = False) -> Algorithm:
    config = ddpg.Config(net=ddpg.Net(hidden=(16,), shared=shared))
    return lively(ddpg.DDPG(spec, config))  # type: ignore[no-any-return]


def files(policy: Algorithm, folder: Path) -> dict[str, Any]:
    groups = write(policy, {}, folder)
    (folder / "policy.json").write_text(json.dumps({"groups": groups}))
    return groups


def compare_alone(policy: Algorithm, folder: Path, steps: int = 6) -> None:
    """Agents of files, one by one, beside the batched policy over some steps of one episode."""
    env = Shows(policy.spec)
    view, memory = env.reset(7), policy.initial_memory(1)
    places = {a: (name, j) for name, g in policy.spec.groups.items() for j, a in enumerate(g.agents)}
    agents = {agent: example["Agent"](folder, agent) for agent in places}
    varied = set()
    for _ in range(steps):
        chosen, memory = policy.act(view, memory, explore=False)
        for agent, (name, j) in places.items():
            if policy.spec.groups[name].masked:
                agents[agent].inputs["legal"][0] = view.legal[name][0, j]
        found = example["step"](agents, {a: view.obs[n][0, j].numpy() for a, (n, j) in places.items()})
        for agent, (name, j) in places.items():
            np.testing.assert_allclose(found[agent], chosen[name][0, j].numpy(), atol=1e-5, err_msg=agent)
            varied.add(str(found[agent].round(2)))
            if memory[name].shape[2]:
                np.testing.assert_allclose(agents[agent].inputs["memory"][0], memory[name][0, j], atol=1e-5)
        view = env.step(chosen).view
    assert len(varied) > 1


MEMORY = {"memory": 8, "shared": False}
SEEN = Part("ball", 2, 3), Part(SELF, 2), Part("other", 1), Part("ball", 1, 3), Part("gone", 2, 0), Part(SELF, 1)
CASES = {
    "shared": lambda: on_policy(spec(other=True)),
    "numbered, masked": lambda: valued(spec(masked=True), identity=True),
    "stacked memory": lambda: valued(spec(), **MEMORY),
    "normalised units": lambda: valued(spec(masked=True), norm="layer", **MEMORY),
    "continuous": lambda: on_policy(spec(Box(2)), shared=False, std_of_state=True),
    "deterministic": lambda: deterministic(spec(Box(2))),
    "pictures": lambda: on_policy(spec(obs=(12, 13, 3), image=True), shared=False),
    "attention": lambda: on_policy(spec(Box(2), other=True), comm="attention", message=8, heads=2, memory=8),
    "pooled by attention": lambda: valued(spec(masked=True, parts=SEEN), pool="attention", **MEMORY),
    "pooled, numbered": lambda: valued(spec(parts=SEEN), pool="mean", identity=True),
    "pooled, nothing of its own": lambda: on_policy(spec(Box(2), parts=SEEN[:1]), pool="attention"),
    "gated": lambda: valued(spec(masked=True), comm="gated", message=4, rounds=2, **MEMORY),
}


@pytest.mark.parametrize("case", CASES)
def test_an_agent_alone_does_what_it_does_in_the_batch(case: str, tmp_path: Path) -> None:
    policy = CASES[case]()
    groups = files(policy, tmp_path)
    compare_alone(policy, tmp_path)
    found = check(policy, Shows(policy.spec, 3, hears=True), tmp_path, groups)
    for name, group in policy.spec.groups.items():
        assert found[name]["compared"] == (ENVS * STEPS + 1 + 3 * STEPS) * group.num_agents
        assert found[name]["largest_difference"] < 1e-5
    assert not any(b".py" in path.read_bytes() for path in tmp_path.iterdir()), "a file says where it was made"


class Traced:
    """`Agent` in the place of an ONNX session: many kinds of networks, without the seconds that a graph takes."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def get_inputs(self) -> list[Any]:
        return [type("Named", (), {"name": name}) for name in self.agent.inputs]

    def get_outputs(self) -> list[Any]:
        return [type("Named", (), {"name": name}) for name in self.agent.outputs]

    def run(self, names: list[str], given: dict[str, Any]) -> list[Any]:
        with torch.no_grad():
            return [x.numpy() for x in self.agent(*(torch.from_numpy(given[name]) for name in self.agent.inputs))]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("memory", [0, 8])
@pytest.mark.parametrize("way", ["none", "mean", "attention", "gated"])
def test_the_equations_of_one_agent_are_those_of_the_batch(
    way: Way, memory: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same, "_sessions", lambda player, *_: {n: Traced(a) for n, a in player.agents().items()})
    net = {"comm": way, "rounds": 2, "heads": 2, "message": 6, "memory": memory, "shared": shared, "identity": True}
    policy = (on_policy if memory else valued)(spec(masked=True, other=True), **net)
    assert all(
        x["largest_difference"] < 1e-5 for x in check(policy, Shows(policy.spec, 4, hears=True), Path(), {}).values()
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: on_policy(spec(Box(3)), std_of_state=False),
        lambda: on_policy(spec(Box(3), other=True), std_of_state=True),
        lambda: on_policy(spec(Box(3)), shared=False),
        lambda: deterministic(spec(masked=True, other=True), shared=True),
        lambda: on_policy(spec(obs=(7, 6, 2)), identity=True),
        lambda: on_policy(spec(obs=(36, 37, 4), image=True), identity=True),
        lambda: valued(spec(obs=(6, 7, 2), image=True), shared=False, conv="none"),
        lambda: deterministic(spec(Box(2), obs=(6, 7, 2), image=True)),
    ],
)
def test_actions_and_observations_of_all_kinds(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "_sessions", lambda player, *_: {n: Traced(a) for n, a in player.agents().items()})
    policy = build()
    assert all(x["largest_difference"] < 1e-5 for x in check(policy, Shows(policy.spec, 2), Path(), {}).values())


def test_what_is_not_heard_changes_nothing() -> None:
    player = players(on_policy(spec(other=True), comm="mean", message=4))[0]
    agent = player.agents()["runner"]
    given = {k: torch.from_numpy(np.zeros((1, *shape), kind)) for k, (shape, kind) in agent.inputs.items()}
    given["heard"][0, 0, 3] = True
    before = agent(*given.values())[1]
    given["messages"][0, 0, [0, 1, 2, 4]] = float("nan")
    assert torch.equal(agent(*given.values())[1], before)
    given["messages"][0, 0, 3] = 1.0
    assert not torch.equal(agent(*given.values())[1], before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of agents that talk and remember, in particle worlds."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    options = [
        "--total-steps",
        "512",
        "--batch-steps",
        "256",
        "--num-envs",
        "8",
        "--epochs",
        "1",
        "--eval-episodes",
        "4",
    ]
    net = ["--net.hidden", "16", "--net.comm", "gated", "--net.memory", "8", "--net.gain", "1", "--no-tensorboard"]
    assert cli.main(["train", "mappo", "mpe/simple_spread", "--out", str(directory), *options, *net]) == 0
    return directory


def test_a_run_is_exported_and_played_without_torch(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mpe2")
    out = tmp_path / "deep" / "files"
    assert cli.main(["export", str(run), "--out", str(out)]) == 0
    assert "same actions" in capsys.readouterr().out
    about = json.loads((out / "policy.json").read_text())
    assert about["format"] == 1
    assert (about["algorithm"], about["env"], about["checkpoint"]) == ("mappo", "mpe/simple_spread", "best")
    assert about["env_steps"] == checkpoint.step(run / "checkpoint", "best")
    assert about["versions"]["onnx"]
    group = about["groups"]["agent"]
    assert group["agents"] == {"agent_0": 0, "agent_1": 1, "agent_2": 2}
    assert group["speakers"] == list(group["agents"])
    assert (group["memory"], group["message"], group["rounds"], group["masked"]) == (8, 33, 1, False)
    assert group["action"] == {"kind": "Discrete", "size": 5}
    assert group["obs"] == {"shape": [18], "dtype": "float32"}
    assert group["sha256"] == hashlib.sha256((out / group["file"]).read_bytes()).hexdigest()
    assert sorted(path.name for path in out.iterdir()) == ["agent.onnx", "policy.json"]
    assert [path.name for path in out.parent.iterdir()] == ["files"]

    blocked = f"import sys, runpy; sys.modules['torch'] = sys.modules['shoal'] = None; sys.argv = ['', {str(out)!r}]; "
    played = subprocess.run(
        [sys.executable, "-c", blocked + f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
        check=True,
    )
    env = shoal.make("mpe/simple_spread", num_envs=1)  # its first episode is that of the package
    result = shoal.evaluate(experiment.load_policy(run, "best", env.spec), env, episodes=1, seed=0)
    assert float(played.stdout.split()[-1]) == pytest.approx(result.team_return[0], abs=2e-3)


def test_files_that_differ_are_not_left_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decide = Agent._decide

    def worse(self: Agent, out: torch.Tensor, now: Groups) -> tuple[torch.Tensor, ...]:
        return decide(self, out + 1e-3, now)

    monkeypatch.setattr(Agent, "_decide", worse)
    assert cli.main(["export", str(run), "--out", str(tmp_path / "files")]) == 2
    assert "differs from the policy: logits by 0.001" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_actions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "_sessions", lambda player, *_: {n: Traced(a) for n, a in player.agents().items()})
    monkeypatch.setattr(
        Agent, "_decide", lambda self, out, now: ((a := out.argmax(1)) + (torch.arange(len(a)) == 5), out)
    )
    policy = on_policy(spec(Discrete(5)))
    with pytest.raises(ShoalError, match="the file of runner chooses other actions than the policy, 1 of"):
        check(policy, Shows(policy.spec), Path(), {})


def test_an_environments_own_actions_are_described(relay: Any) -> None:
    env = shoal.make(f"{Path(__file__).parent / 'conftest.py'}:Relay")
    groups: dict[str, Any] = {}
    for adapter in env.adapters.values():  # type: ignore[attr-defined]
        groups[adapter.agent] = writing._environment(adapter)["action"]
    runner, caller = groups["runner_1"], groups["caller_0"]
    assert (runner["low"], runner["high"], runner["dtype"]) == ([0.0, -2.0], [1.0, 4.0], "float32")
    assert (caller["kind"], caller["start"]) == ("Discrete", 1)


def test_each_side_of_a_league_is_exported(tmp_path: Path) -> None:
    def build(spec: EnvSpec, seed: int) -> Algorithm:
        return on_policy(spec)

    settings: dict[str, Any] = {"self_play": "uniform", "snapshot_every": 9, "pool": 2, "latest_share": 0.2}
    one = League(spec(), build, sides=(), **settings)  # one learner takes both seats
    groups = write(one, {}, tmp_path)
    assert groups["runner"]["agents"] == {"runner_0": 0, "runner_1": 0}
    assert check(one, Shows(one.spec, 2), tmp_path, groups)["runner"]["compared"] == ENVS * STEPS + 1 + 2 * 2 * STEPS
    two = League(spec(), build, sides=("runner_0", "runner_1"), **settings)
    assert [list(players(two)[k].spec.groups) for k in range(2)] == [["runner_0"], ["runner_1"]]


def test_what_cannot_be_exported_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ShoalError, match="hierarchy cannot be exported: its managers see"):
        players(shoal.build("feudal", spec()))
    with pytest.raises(ShoalError, match="only the networks of shoal's own"):
        players(type("Own", (), {"spec": spec()})())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ShoalError, match=r"onnxruntime cannot be imported .*: pip install 'shoal\[export\]'"):
            export.export(run, tmp_path / "new")
    (tmp_path / "file").write_text("precious")
    assert cli.main(["export", str(run), "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    assert "not the directory of a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("std_of_state", [False, True])
def test_deviations_are_held_within_their_bounds(std_of_state: bool) -> None:
    spec = EnvSpec({"arm": GroupSpec(("arm_0", "arm_1"), (3,), Box(2))})
    policy = shoal.build("ippo", spec, net={"std_of_state": std_of_state})
    policy.actors["arm"].log_std.data.copy_(torch.tensor([-9.0, 4.0]))  # type: ignore[attr-defined]
    (player,) = players(policy)
    obs, legal = torch.randn(5, 2, 3), torch.zeros(5, 2, 0, dtype=torch.bool)
    out, _ = player.outputs(View({"arm": obs}, {"arm": legal}, torch.zeros(5, 0)), policy.initial_memory(5))
    with torch.no_grad():
        _, std = player.agents()["arm"](torch.arange(2).repeat(5), obs.flatten(0, 1))
    assert torch.allclose(std, out["arm"].flatten(0, 1)[:, 2:].exp(), atol=1e-5)


@pytest.mark.parametrize("which", ["best", "last"])
def test_steps_are_those_of_the_checkpoint_that_was_written(tmp_path: Path, which: str) -> None:
    run, out = tmp_path / "run", tmp_path / "files"
    options = ["--total-steps", "80", "--eval-every", "80", "--eval-episodes", "2", "--batch-steps", "40"]
    options += ["--num-envs", "2", "--net.hidden", "8", "--no-tensorboard"]
    assert cli.main(["train", "ippo", "matrix/climbing", *options, "--out", str(run)]) == 0
    checkpoint.save(run / "checkpoint", checkpoint.load(run / "checkpoint"), 12345)
    assert cli.main(["export", str(run), "--checkpoint", which, "--out", str(out)]) == 0
    assert json.loads((out / "policy.json").read_text())["env_steps"] == {"best": 80, "last": 12345}[which]
