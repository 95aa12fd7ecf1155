"""The PettingZoo adapter on an environment with unlike agents, some of which leave early; and `check_env`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Relay
from gymnasium import spaces

import shoal
from shoal import cli
from shoal.collect import LocalCollector
from shoal.envs import pettingzoo as suite
from shoal.envs.check import problems
from shoal.envs.common.serial import SerialEnvs
from shoal.envs.common.spaces import AgentAdapter
from shoal.types import Box, Discrete, Groups, ShoalError


def act(env: SerialEnvs, runner: float = 0.0, caller: int = 0) -> Groups:
    callers = env.spec.groups["caller"].num_agents
    return {
        "runner": torch.full((env.num_envs, 2, 2), runner),
        "caller": torch.full((env.num_envs, callers), caller),
    }


def test_groups_and_spaces(relay: Any) -> None:
    env = SerialEnvs(lambda: relay(callers=2), 3)
    runner, caller = env.spec.groups["runner"], env.spec.groups["caller"]
    assert (runner.agents, runner.obs_shape, runner.action) == (("runner_0", "runner_1"), (3,), Box(2))
    assert (caller.agents, caller.obs_shape, caller.action) == (("caller_0", "caller_1"), (2,), Discrete(3))
    assert env.spec.state_size == 2
    view = env.reset(0)
    assert view.obs["runner"].dtype == torch.float32
    assert view.state.shape == (3, 2)


def test_actions_are_rescaled_and_offset(relay: Any) -> None:
    env = SerialEnvs(relay, 1)
    env.reset(0)
    env.step(act(env, runner=0.5, caller=2))
    given = env.envs[0].last_actions
    assert np.allclose(given["runner_0"], [0.75, 2.5])  # [-1, 1] to [0, 1] and [-2, 4]
    assert given["caller_0"] == 3  # Discrete(3, start=1)


def test_rewards_and_successors(relay: Any) -> None:
    env = SerialEnvs(relay, 2)
    number = env.reset(0).obs["caller"][:, 0, 0].clone()
    step = env.step(act(env, runner=1.0, caller=0))
    assert step.reward["runner"].tolist() == [[1.0, 1.0]] * 2
    assert step.reward["caller"][:, 0].tolist() == (number == 1).float().tolist()
    assert (step.successor.obs["runner"][..., 1] == 1).all()
    assert step.successor.state[:, 0].tolist() == [1, 1]


def test_agents_that_leave(relay: Any) -> None:
    env = SerialEnvs(relay, 1)
    env.reset(0)
    steps = []
    for _ in range(8):
        step = env.step(act(env))
        copied = {k: getattr(step, k)["runner"].clone() for k in ("terminated", "alive", "reward")}
        copied |= {"ended": step.ended.clone(), "caller_terminated": step.terminated["caller"].clone()}
        copied |= {"next": step.successor.obs["runner"].clone(), "view": step.view.obs["runner"].clone()}
        copied |= {"caller_alive": step.alive["caller"].clone()}
        steps.append(copied)
    assert [bool(s["alive"].all()) for s in steps] == [True] * 4 + [False] * 3 + [True]
    assert [bool(s["terminated"].all()) for s in steps] == [False] * 3 + [True] * 4 + [False]
    assert [bool(s["ended"]) for s in steps] == [False] * 6 + [True, False]
    assert all(s["caller_alive"].all() for s in steps)
    assert not any(s["caller_terminated"].any() for s in steps)  # cut off, not terminated
    assert (steps[3]["next"][..., 1] == 4).all()  # the step of leaving still has its observation
    assert (steps[3]["view"] == 0).all()
    assert (steps[4]["reward"] == 0).all()


def test_seeds_derive_from_environment_and_episode(relay: Any) -> None:
    env = SerialEnvs(relay, 6)
    one, two = env.reset(3).obs["caller"].clone(), env.reset(3).obs["caller"].clone()
    assert torch.equal(one, two)
    numbers = [env.reset(seed).obs["caller"][0, 0, 0].item() for seed in range(20)]
    assert len(set(numbers)) == 3
    alone = SerialEnvs(relay, 1)
    assert torch.equal(alone.reset(3).obs["caller"][0], one[0])


def test_state_brings_an_environment_back_into_its_episode(relay: Any) -> None:
    one, two = SerialEnvs(relay, 2), SerialEnvs(relay, 2)
    one.reset(0)
    for _ in range(9):
        one.step(act(one, caller=1))
    two.load_state_dict(one.state_dict())
    for _ in range(6):
        a, b = one.step(act(one, caller=2)), two.step(act(two, caller=2))
        assert torch.equal(a.reward["caller"], b.reward["caller"])
        assert torch.equal(a.view.obs["runner"], b.view.obs["runner"])
        assert torch.equal(a.ended, b.ended)


def test_an_environment_that_does_not_repeat_itself_is_told_of(relay: Any) -> None:
    class Restless(relay):  # type: ignore[misc]
        def _observations(self) -> dict[str, Any]:
            return {a: o + np.random.default_rng().normal(size=o.shape) for a, o in super()._observations().items()}

    one, two = SerialEnvs(Restless, 1), SerialEnvs(Restless, 1)
    one.reset(0)
    with pytest.warns(UserWarning, match="does not repeat an episode"):
        two.load_state_dict(one.state_dict())


def broken(relay: Any, what: str) -> Any:
    """A relay with one fault."""

    class Broken(relay):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.shared = {a: np.zeros(relay.observation_space(self, a).shape) for a in self.possible_agents}

        def observation_space(self, agent: str) -> Any:
            if what == "space" and agent == "caller_0":
                return spaces.Text(5)
            return super().observation_space(agent)

        def action_space(self, agent: str) -> Any:
            if what == "unbounded" and agent == "runner_1":
                return spaces.Box(-np.inf, np.inf, (2,))
            return super().action_space(agent)

        def _observations(self) -> dict[str, Any]:
            shown = super()._observations()
            if what == "alias":
                for agent in shown:
                    self.shared[agent][:] = shown[agent]
                    shown[agent] = self.shared[agent]
            if what == "shape" and self.time == 2:
                shown["caller_0"] = np.zeros(5)
            if what == "nan" and self.time == 3:
                shown["runner_1"][1] = np.nan
            if what == "bounds" and self.time == 1:
                shown["runner_0"][2] = 11
            if what == "unseeded":
                shown["caller_0"][1] = np.random.default_rng().random()
            if what == "none":
                shown["caller_0"] = None
            return shown

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            result = super().reset(seed=seed, options=options)
            return result[0] if what == "gym" else result

        def step(self, actions: dict[str, Any]) -> Any:
            result = super().step(actions)
            if what == "reward" and "runner_0" in result[1]:
                result[1]["runner_0"] = float("inf")
            if what == "word":
                result[1]["caller_0"] = "good"
            if what == "bug":
                return result[9]
            if what == "info":
                return *result[:4], None
            if what == "vanish":
                self.agents = [agent for agent in self.agents if agent != "caller_0"]
            if what == "missing":
                del result[1]["caller_0"]
            if what == "cut" and result[3].get("caller_0"):
                del result[0]["caller_0"]
            if what == "dict":
                return list(result[0].values()), *result[1:]
            if what == "old":
                return result[:4]
            if what == "stays":
                self.agents = list(self.possible_agents)
            return result

    return Broken


FAULTS = {
    "alias": "array of .* returned before has changed",
    "shape": r"step 2: the observation of caller_0 has shape \(5,\), its space says \(2,\)",
    "nan": "step 3: the observation of runner_1 holds NaN",
    "bounds": "step 1: the observation of runner_0 is outside its space",
    "unseeded": "two different observations",
    "reward": "the reward of runner_0 is inf",
    "missing": "no reward of caller_0",
    "old": "must return .observations, rewards, terminations, truncations, infos",
    "stays": "still in `agents`",
    "cut": "no observation of caller_0, who is still there or was truncated",
    "dict": "must return .observations, rewards, terminations, truncations, infos",
    "info": "must return .observations, rewards, terminations, truncations, infos",
    "gym": "reset.. must return .observations, infos",
    "none": "the observation of caller_0 has shape",
    "word": "step 1: the reward of caller_0 is 'good'",
    "vanish": "step 1: caller_0 is neither terminated nor truncated and has left",
    "bug": r"it raised IndexError.*Look at line \d+ of .*test_pettingzoo.py, in step",
    "space": "observation space of caller_0",
    "unbounded": "action space of runner_1 has no bounds",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_env_names_the_fault_and_the_place(relay: Any, fault: str) -> None:
    with pytest.raises(ShoalError, match=FAULTS[fault]):
        shoal.check_env(broken(relay, fault)())


def test_training_names_a_reset_of_another_interface(relay: Any) -> None:
    with pytest.raises(ShoalError, match=r"reset\(\) must return \(observations, infos\)"):
        SerialEnvs(broken(relay, "gym"), 1)


def test_check_env_accepts_what_is_right(relay: Any) -> None:
    shoal.check_env(relay())
    shoal.check_env(relay(callers=3))
    shoal.check_env(SerialEnvs(relay, 2))
    shoal.check_env(shoal.make("tutorial/drift", 2, max_steps=7))
    shoal.check_env(shoal.make("mpe/simple_spread", 3))


def test_check_env_finds_a_reset_observation_passed_off_as_a_successor() -> None:
    env = shoal.make("tutorial/drift", 2, max_steps=5)
    original = env.step

    def step(actions: Groups) -> shoal.Step:
        result = original(actions)
        result.successor = result.view
        return result

    env.step = step  # type: ignore[method-assign]
    assert "successor is the next episode's first observation" in str(problems(env)[0])


@pytest.mark.parametrize("fault", ["shape", "nan", "reward", "missing"])
def test_the_adapter_refuses_what_would_poison_learning(relay: Any, fault: str) -> None:
    env = SerialEnvs(broken(relay, fault), 1, "relay")
    env.reset(0)
    with pytest.raises(ShoalError, match="relay, environment 0, step"):
        for _ in range(6):
            env.step(act(env))


class Masked:
    """One agent that must take the action its mask shows."""

    possible_agents = ("player_0",)

    def observation_space(self, agent: str) -> Any:
        return spaces.Dict({"observation": spaces.MultiDiscrete([3, 2]), "action_mask": spaces.MultiBinary(4)})

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(4)

    def _shown(self) -> dict[str, Any]:
        mask = np.zeros(4, np.int8)
        mask[self.time % 4] = 1
        return {"player_0": {"observation": np.array([self.time % 3, 1]), "action_mask": mask}}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.time, self.agents = 0, ["player_0"]
        return self._shown(), {}

    def step(self, actions: dict[str, int]) -> Any:
        assert actions["player_0"] == self.time % 4
        self.time += 1
        end = {"player_0": self.time == 9}
        if end["player_0"]:
            self.agents = []
        return self._shown(), {"player_0": 1.0}, end, {"player_0": False}, {}

    def close(self) -> None:
        pass


def test_action_masks_and_flattened_observations() -> None:
    env = SerialEnvs(Masked, 2)
    assert env.spec.groups["player"].masked
    assert env.spec.groups["player"].obs_shape == (5,)  # one-hot of 3 and of 2
    view = env.reset(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        actions = {"player": shoal.actions.random(Discrete(4), view.legal["player"], generator)}
        view = env.step(actions).view  # the environment asserts that they are legal
    shoal.check_env(Masked())


class Informed(Masked):
    """As `Masked`, with plain observations: the mask is in `info`."""

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 9, (1,), np.int64)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return self._informed(super().reset()[0])[0::4]

    def _informed(self, shown: Any, *others: Any) -> Any:
        masks = {a: {"action_mask": o["action_mask"]} for a, o in shown.items()}
        return {a: np.array([self.time]) for a in shown}, *(others or (0, 0, 0)), masks

    def step(self, actions: dict[str, int]) -> Any:
        return self._informed(*super().step(actions)[:4])


def test_action_masks_in_info() -> None:
    env = SerialEnvs(Informed, 2)
    assert env.spec.groups["player"].masked
    env.reset(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = env.step(suite.random_actions(env, generator))  # the environment asserts that they are legal
    assert step.view.legal["player"][0, 0].tolist() == [False, False, True, False]
    shoal.check_env(Informed())

    class Late(Informed):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            return super().reset()[0], {}

        def step(self, actions: dict[str, int]) -> Any:
            return super().step({"player_0": self.time % 4})

    late = SerialEnvs(Late, 1)
    late.reset(0)
    with pytest.raises(ShoalError, match="step 1: info of player_0 has an action_mask"):
        late.step({"player": torch.zeros(1, 1, dtype=torch.int64)})
    with pytest.raises(ShoalError, match=r"that of reset\(\) had none"):
        shoal.check_env(Late(), steps=1)


def adapter(observation: Any = None, action: Any = None) -> AgentAdapter:
    return AgentAdapter("a_0", observation or spaces.Box(0, 1, (2,)), action or spaces.Discrete(2))


JOINT = {
    "multi_discrete": (spaces.MultiDiscrete([2, 3], start=[0, 5]), 6),
    "grid": (spaces.MultiDiscrete([[2, 3], [2, 2]]), 24),
    "multi_binary": (spaces.MultiBinary(3), 8),
    "tuple": (spaces.Tuple([spaces.Discrete(2, start=1), spaces.MultiBinary((2, 1))]), 8),
    "dict": (spaces.Dict({"move": spaces.Discrete(3), "say": spaces.MultiDiscrete([2, 2])}), 12),
}


@pytest.mark.parametrize("kind", JOINT)
def test_joint_choices_are_numbered(kind: str) -> None:
    space, size = JOINT[kind]
    one = adapter(action=space)
    assert one.action == Discrete(size)
    values = [one.write(np.int64(k)) for k in range(size)]
    assert all(space.contains(value) for value in values)
    assert len({str(value) for value in values}) == size


def test_masks_of_joint_choices() -> None:
    one = adapter(action=spaces.MultiDiscrete([2, 3]))
    legal = one.read_mask(None, {"action_mask": (np.array([0, 1]), np.array([1, 0, 1]))})
    assert [one.write(k).tolist() for k in np.flatnonzero(legal)] == [[1, 0], [1, 2]]
    assert one.read_mask(None, {"action_mask": [1, 0, 0, 0, 0, 0]}).tolist() == [True] + [False] * 5
    assert one.read_mask(None, {}) is None
    with pytest.raises(ShoalError, match=r"action mask of a_0 has shape \(5,\): one entry for each of its 6"):
        one.read_mask(None, {"action_mask": np.ones(5)})
    unclear = {"action_mask": (np.array([0, 1]), np.array([1, np.nan, 1]))}
    assert one.read_mask(None, unclear) is not None  # in play there is no time to look
    with pytest.raises(ShoalError, match=r"holds \[1.0, nan, 1.0\]"):
        one.read_mask(None, unclear, strict=True)


UNUSABLE = {
    "too many choices": (None, spaces.MultiDiscrete([17, 17, 17]), "4,913 joint choices"),
    "mixed": (None, spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1)]), "consists of discrete choices"),
    "too long": (spaces.Discrete(70_000), None, "flattens to 70,000 numbers"),
    "sequence": (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), None, "cannot be flattened"),
    "mask only": (spaces.Dict({"action_mask": spaces.MultiBinary(2)}), None, "its action mask and nothing else"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_spaces_that_cannot_be_used_are_refused(what: str) -> None:
    observation, action, message = UNUSABLE[what]
    with pytest.raises(ShoalError, match=message):
        adapter(observation, action)
    adapter(action=spaces.Discrete(5000))  # one choice may have many numbers


PICTURES = {
    "colour": ((4, 5, 3), (4, 5, 3)),
    "grey": ((4, 5), (4, 5, 1)),
    "channels first": ((3, 4, 5), (4, 5, 3)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_stay_bytes(kind: str) -> None:
    shape, wanted = PICTURES[kind]
    one = adapter(spaces.Box(0, 255, shape, np.uint8))
    assert (one.image, one.obs_shape) == (True, wanted)
    picture = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    seen = one.read(picture)
    assert seen.dtype == np.uint8
    assert seen.shape == wanted
    assert seen[2, 1, -1] == (picture[-1, 2, 1] if kind == "channels first" else picture[2, 1].flat[-1])


def test_planes_and_vectors_are_no_pictures() -> None:
    for space in (
        spaces.Box(0, 1, (6, 7, 2), np.uint8), spaces.Box(0, 255, (128,), np.uint8), spaces.Box(0, 255, (4, 4, 3))
    ):  # fmt: skip
        one = adapter(space)
        assert (one.image, one.obs_shape) == (False, space.shape)
    assert adapter(spaces.Dict({"b": spaces.MultiBinary(2), "a": spaces.Discrete(3)})).obs_shape == (5,)
    mixed = adapter(
        spaces.Dict({"action_mask": spaces.MultiBinary(2), "x": spaces.Box(0, 1, (2,)), "y": spaces.Discrete(2)})
    )
    seen = {"action_mask": np.ones(2), "x": np.array([0.5, 1.0]), "y": 1}
    assert mixed.read(seen).tolist() == [0.5, 1.0, 0.0, 1.0]


class Camera(Masked):
    """Sees a picture; its state is a picture too, of `state_shape`."""

    state_shape = (3, 4, 3)

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 255, (6, 4, 3), np.uint8)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(1)

    def _shown(self) -> dict[str, Any]:
        return {"player_0": np.full((6, 4, 3), 250 + self.time, np.uint8)}

    def state(self) -> Any:
        return np.full(self.state_shape, 51, np.uint8)


def test_pictures_in_a_batch() -> None:
    env = SerialEnvs(Camera, 2)
    assert env.spec.groups["player"].image
    view = env.reset(0)
    assert view.obs["player"].dtype == torch.uint8
    assert (view.obs["player"] == 250).all()
    assert torch.allclose(view.state, torch.full((2, 36), 0.2))
    assert (env.step({"player": torch.zeros(2, 1, dtype=torch.int64)}).successor.obs["player"] == 251).all()
    shoal.check_env(env, steps=1)

    class Panorama(Camera):
        state_shape = (200, 200, 3)

    assert SerialEnvs(Panorama, 1).spec.state_size == 0  # more than anybody would learn from


ZOO = ("butterfly/knights_archers_zombies", "butterfly/pistonball", "sisl/multiwalker", "sisl/pursuit")


@pytest.mark.parametrize("name", ZOO)
def test_pettingzoos_own_environments(name: str) -> None:
    env = suite.make(name, 1)
    env.reset(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5 if "piston" in name else 100):
        step = env.step(suite.random_actions(env, generator))
        assert all(torch.isfinite(reward).all() for reward in step.reward.values())
    groups = {n: (g.num_agents, g.obs_shape, g.action, g.image) for n, g in env.spec.groups.items()}
    assert (
        groups
        == {
            ZOO[0]: {n: (2, (27, 5), Discrete(6), False) for n in ("archer", "knight")},
            ZOO[1]: {"piston": (20, (457, 120, 3), Box(1), True)},
            ZOO[2]: {"walker": (3, (31,), Box(4), False)},
            ZOO[3]: {"pursuer": (8, (7, 7, 3), Discrete(5), False)},
        }[name]
    )
    assert env.spec.state_size == {ZOO[0]: 104, ZOO[1]: 0, ZOO[2]: 75, ZOO[3]: 768}[name]
    env.close()


def test_a_module_with_parallel_env() -> None:
    env = suite.make("mpe2.simple_speaker_listener_v4", 2, max_cycles=5)
    assert {n: g.action for n, g in env.spec.groups.items()} == {"speaker": Discrete(3), "listener": Discrete(5)}
    assert env.spec.state_size == 14


def test_shoal_check_prints_groups_and_problems_with_their_fixes(tmp_path: Any, capsys: Any) -> None:
    file = tmp_path / "worlds.py"
    file.write_text(
        "import numpy as np\nfrom conftest import Relay\n\n"
        "class Bad(Relay):\n"
        "    def _observations(self):\n"
        "        shown = super()._observations()\n"
        "        if self.time == 3:\n"
        "            shown['runner_1'][1] = np.nan\n"
        "        return shown\n"
    )
    assert cli.main(["check", f"{file}:Relay", "--env.callers", "2", "--steps", "40"]) == 0
    printed = capsys.readouterr().out
    assert "40 random steps, problems: 0, warnings: 0" in printed
    assert [line.split() for line in printed.splitlines() if line.startswith("  caller")] == [
        ["caller", "2", "2", "3", "choices", "no"]
    ]
    assert cli.main(["check", f"{file}:Bad"]) == 1
    printed = capsys.readouterr().out
    assert "runner_1" in printed
    assert "problem 43x" in printed  # in every episode of 7 steps
    assert "Find the division" in printed
    assert "problems: 1" in printed
    file.write_text(
        file.read_text()
        + "\n    def action_space(self, agent):\n        return __import__('gymnasium').spaces.Text(3)\n"
    )
    assert cli.main(["check", f"{file}:Bad"]) == 1
    assert "Give a Discrete" in capsys.readouterr().out
    assert cli.main(["check", "mpe/simple_spred"]) == 2
    assert "simple_spread" in capsys.readouterr().err


def test_no_two_episodes_start_alike() -> None:
    env = SerialEnvs(Relay, 4)
    env.reset(3)
    act = {"runner": torch.zeros(4, 2, 2), "caller": torch.zeros(4, 1, dtype=torch.int64)}
    seeds = [env.episode_seed(index) for index in range(4)]
    for _ in range(14):
        if env.step(act).ended.all():
            seeds += [env.episode_seed(index) for index in range(4)]
    assert len(seeds) == len(set(seeds)) == 12
    later = SerialEnvs(Relay, 2, first=2)
    later.reset(3)
    assert [later.episode_seed(index) for index in range(2)] == seeds[2:4]


def test_who_has_left_is_not_present_until_the_next_episode() -> None:
    env = SerialEnvs(Relay, 2)
    rollout = LocalCollector(shoal.build("ippo", env.spec), env, 16, seed=0).collect()
    runner, caller = rollout.groups["runner"], rollout.groups["caller"]
    assert runner.present[:, 0, 0].tolist() == ([True] * 4 + [False] * 3) * 2 + [True] * 2
    assert (runner.present == runner.present[:, :1, :1]).all()
    assert caller.present.all()
