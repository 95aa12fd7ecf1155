"""PQN: its update against the same mathematics written plainly, an agent, a step and an environment at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_value_decomposition import (
    SPEC,
    WIDTH,
    as_if_nobody_left,
    gradient,
    plain_mix,
    plain_net,
    random_batch,
    view_of,
)
from torch import Tensor

import shoal
from shoal import checkpoint, cli, rollouts, tree
from shoal.algorithms.pqn import PQN
from shoal.returns import lambda_return
from shoal.types import Batch, Box, Discrete, EnvSpec, GroupSpec, ShoalError, View

NAMES = {"pqn": "iql", "pqn_vdn": "vdn", "pqn_qmix": "qmix"}
"""And whose mixer they have."""
TIME = 5


def build(name: str, spec: EnvSpec = SPEC, **settings: Any) -> PQN:
    settings = {
        "normalise": False, "max_grad_norm": 0.0, "embed": 8, "hyper": 16, "epochs": 1, "minibatches": 1, **settings,
    }  # fmt: skip
    settings["net"] = {"hidden": (16, 16), **settings.get("net", {})}
    algorithm = shoal.build(name, spec, **settings)
    assert isinstance(algorithm, PQN)
    return algorithm


def plain_return(algorithm: PQN, reward: Tensor, terminated: Tensor, ended: Tensor, after: Tensor) -> Tensor:
    """`[time, batch]`, from the rewards forwards: the weighted mean of all returns of n steps there are."""
    gamma, lam, (time, size) = algorithm.config.gamma, algorithm.config.lam, reward.shape
    found = torch.zeros(time, size)
    for b in range(size):
        for t in range(time):
            last = t
            while last + 1 < time and not ended[last, b] and not terminated[last, b]:
                last += 1
            earned, total = 0.0, 0.0
            for n in range(t, last + 1):
                earned += gamma ** (n - t) * float(reward[n, b])
                bootstrap = 0.0 if terminated[n, b] else gamma ** (n - t + 1) * float(after[n, b])
                weight = lam ** (n - t) * (1.0 if n == last else 1 - lam)
                total += weight * (earned + bootstrap)
            found[t, b] = total
    return found


def plain_gradient(algorithm: PQN, mixer: str, batch: Batch) -> Tensor:
    chosen, following, reward, terminated, present = [], [], [], [], []  # an agent each, [time, batch]
    for group, a in batch.groups.items():
        net = algorithm.nets[group]
        for i in range(a.obs.shape[2]):
            h, qs, nexts = a.memory[0, :, i], [], []
            for t in range(TIME):
                q, h = plain_net(net, i, a.obs[t, :, i], h)
                qs.append(q.gather(1, a.action[t, :, i : i + 1])[:, 0] * a.present[t, :, i])
                with torch.no_grad():
                    later = plain_net(net, i, a.next_obs[t, :, i], h)[0]
                    if a.next_legal.shape[-1]:
                        later = torch.where(a.next_legal[t, :, i], later, -torch.inf)
                    nexts.append(torch.where(a.terminated[t, :, i], 0.0, later.max(1).values))
                h = h * ~batch.ended[t].unsqueeze(-1)
            chosen.append(torch.stack(qs))
            following.append(torch.stack(nexts))
            reward.append(a.reward[:, :, i])
            terminated.append(a.terminated[:, :, i])
            present.append(a.present[:, :, i])
    columns = list(zip(chosen, following, reward, terminated, present, strict=True))
    if mixer != "iql":
        total, after = (
            torch.stack([plain_mix(mixer, algorithm.mixer, torch.stack(q, -1)[t], s[t]) for t in range(TIME)])
            for q, s in ((chosen, batch.state), (following, batch.next_state))
        )
        stop, there = torch.stack(terminated).all(0), torch.stack(present).any(0)
        columns = [(total, after.detach(), torch.stack(reward).mean(0), stop, there)]
    loss, count = torch.zeros(()), torch.zeros(())
    for q, after, r, stop, there in columns:
        target = plain_return(algorithm, r, stop, batch.ended, after)
        loss, count = loss + ((q - target).square() * there).sum(), count + there.sum()
    grads = torch.autograd.grad(loss / count, list(algorithm.module.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", [0, WIDTH])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_update_is_the_papers_equations(
    name: str, shared: bool, memory: int, lam: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, agents that leave, both kinds of ends, unlike groups; the batch in several pieces."""
    monkeypatch.setattr(rollouts, "PIECE", 10)
    algorithm = build(name, lam=lam, net={"shared": shared, "memory": memory})
    batch = random_batch(time=TIME, memory=memory)
    assert batch.ended[1:-1].any()
    expected = plain_gradient(algorithm, NAMES[name], batch)
    assert expected.abs().max() > 1e-2
    assert torch.allclose(gradient(algorithm, batch), expected, atol=2e-5, rtol=1e-4)


def test_of_shared_rewards_agents_learn_until_all_have_left() -> None:
    batch = random_batch(time=TIME)
    shared, own = (build("pqn", reward=reward) for reward in ("mean", "own"))
    assert not torch.equal(gradient(own, batch), gradient(own, as_if_nobody_left(batch)))
    assert torch.equal(gradient(shared, batch), gradient(own, as_if_nobody_left(batch)))


def test_lambda_returns_by_hand() -> None:
    reward, after = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    never, stop = torch.zeros(3).bool(), torch.tensor([False, True, False])
    last = 3 + 0.5 * 30
    middle = 2 + 0.5 * (0.75 * 20 + 0.25 * last)
    found = lambda_return(reward, never, never, after, 0.5, 0.25)
    assert found.tolist() == pytest.approx([1 + 0.5 * (0.75 * 10 + 0.25 * middle), middle, last])
    found = lambda_return(reward, stop, stop, after, 0.5, 0.25)
    assert found.tolist() == pytest.approx([1 + 0.5 * (0.75 * 10 + 0.25 * 2), 2, last])
    found = lambda_return(reward, never, stop, after, 0.5, 0.25)  # a time limit: the successor of that step counts
    assert found.tolist() == pytest.approx([1 + 0.5 * (0.75 * 10 + 0.25 * 12), 12, last])


@pytest.mark.parametrize("name", NAMES)
def test_illegal_actions_are_never_bootstrapped_from(name: str) -> None:
    algorithm, batch = build(name), random_batch(time=TIME)
    agents = batch.groups["runner"]
    for legal in (agents.legal, agents.next_legal):
        legal[..., 3] = False
    agents.action.clamp_(max=2)
    before = gradient(algorithm, batch)
    with torch.no_grad():
        algorithm.nets["runner"].mlp.layers[-1][1][..., 3] += 100
    assert torch.equal(gradient(algorithm, batch), before)
    agents.next_legal[..., 3] = True
    assert not torch.allclose(gradient(algorithm, batch), before)


@pytest.mark.parametrize("name", NAMES)
def test_the_dead_do_not_contribute(name: str) -> None:
    algorithm, batch = build(name), random_batch(time=TIME)
    for agents in batch.groups.values():
        agents.terminated[:-1] |= ~agents.present[1:]  # else a return would go on past an agent's end
    before = gradient(algorithm, batch)
    for agents in batch.groups.values():
        dead = ~agents.present
        agents.obs[dead] = 9.0
        agents.next_obs[dead] = -9.0
        agents.action[dead] = 2
        if name == "pqn":
            agents.reward[dead] = 50.0
    assert torch.allclose(gradient(algorithm, batch), before, atol=1e-6)


def test_values_are_bootstrapped_in_the_units_in_which_they_were_learned() -> None:
    """Of a rollout without rewards, whose values are all 3 in the rewards' units, so are the targets."""
    algorithm, batch = build("pqn", normalise=True, gamma=1.0), random_batch(time=TIME)
    for agents in batch.groups.values():
        agents.reward.zero_()
        agents.terminated.fill_(False)
    for net in algorithm.nets.values():
        net.mlp.layers[-1][0].data.zero_()
        net.mlp.layers[-1][1].data.fill_(0.5)
    agents = SPEC.num_agents
    known = torch.tensor([0.0, 4.0]).unsqueeze(1).expand(2, agents)  # mean and deviation 2
    algorithm.norm.update(known, torch.full((2, agents), 0.5 / agents))
    lesson = algorithm._study(batch)
    assert torch.allclose(algorithm.norm.restore(lesson.target), torch.tensor(3.0))
    assert not torch.allclose(algorithm.norm.scale()[0], torch.tensor(2.0))


@pytest.mark.parametrize("name", ["iql", "pqn"])
def test_what_an_independent_agent_earns_changes_no_others_units(name: str) -> None:
    def learned(pay: float) -> Tensor:
        algorithm = shoal.build(name, SPEC, max_grad_norm=0.0)
        for seed in range(5):
            batch = random_batch(time=TIME if name == "pqn" else 1, seed=seed)
            batch.groups["caller"].reward *= pay
            algorithm.update(batch)
        return torch.cat([weight.detach().flatten() for weight in algorithm.nets["runner"].parameters()])

    assert torch.allclose(learned(1.0), learned(1000.0), atol=1e-6)


@pytest.mark.parametrize("name", ["vdn", "pqn_vdn"])
def test_who_has_left_takes_no_share_of_the_mean(name: str) -> None:
    """In the rewards' units a team's value is the sum over who is there, each in theirs: none is 0."""
    algorithm, time = shoal.build(name, SPEC), TIME if name == "pqn_vdn" else 1
    algorithm.norm.update(torch.tensor([[30.0], [34.0]]), torch.full((2, 1), 0.5))  # mean 32, deviation 2
    batch = random_batch(time=time)
    start = algorithm.initial_memory(12)
    if isinstance(algorithm, PQN):
        lesson = algorithm._sequences(algorithm._study(batch))
        mean, std = (float(x) for x in algorithm.norm.scale())
        found, rows = algorithm._values(lesson), lesson
        obs, action, present = rows.obs, rows.action, rows.present
    else:
        mean, std, found = 32.0, 2.0, algorithm._values(batch, start, start)[0][0]
        obs, action, present = (
            {n: getattr(a, key) for n, a in batch.groups.items()} for key in ("obs", "action", "present")
        )
    total = torch.zeros(found.shape[:2])
    for group, net in algorithm.nets.items():
        q = net.unroll(obs[group], torch.zeros(12, 1, 0), torch.zeros(1))[0].gather(-1, action[group].unsqueeze(-1))[
            ..., 0
        ]
        total += ((q * std + mean / SPEC.num_agents) * present[group]).sum(-1)
    assert not all(bool(rows.all()) for rows in present.values())
    assert torch.allclose(algorithm.norm.restore(found)[..., 0], total, atol=1e-4)


def test_every_epoch_learns_every_step_once() -> None:
    algorithm = build("pqn_vdn", minibatches=7)
    lesson = algorithm._sequences(algorithm._study(random_batch(time=TIME)))
    parts = list(rollouts.minibatches(lesson, lesson.ended.shape[1], 7, algorithm.shuffler, algorithm.device))
    assert len(parts) == 7
    together = torch.cat([part.target.flatten() for part in parts]).sort().values
    assert torch.equal(together, lesson.target.flatten().sort().values)


def test_results_do_not_depend_on_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "PIECE", 7)
    grads = [gradient(build("pqn_qmix", workers=workers), random_batch(time=TIME)) for workers in (1, 3)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", [0, WIDTH])
def test_every_network_learns_and_its_state_continues_identically(name: str, memory: int) -> None:
    settings = {"normalise": True, "epochs": 2, "minibatches": 3, "net": {"memory": memory, "norm": "layer"}}
    one, two = build(name, **settings), build(name, seed=9, **settings)
    before = [p.detach().clone() for p in one.module.parameters()]
    one.act(view_of(20), one.initial_memory(20), explore=True)
    for seed in range(3):
        one.update(random_batch(time=TIME, memory=memory, seed=seed))
    for (key, new), old in zip(one.module.named_parameters(), before, strict=True):
        assert (new != old).flatten(1).any(1).all(), key
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    actions = []
    for algorithm in (one, two):
        algorithm.update(random_batch(time=TIME, memory=memory, seed=3))
        actions.append(algorithm.act(view_of(50), algorithm.initial_memory(50), explore=True)[0])
    for a, b in zip(tree.leaves(actions[0]), tree.leaves(actions[1]), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(tree.leaves(one.state_dict()), tree.leaves(two.state_dict()), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", ["0", "4"])
def test_train_stop_resume_is_train_through(tmp_path: Path, name: str, memory: str) -> None:
    """Bit for bit, in the middle of episodes."""
    options = ["--num-envs", "4", "--batch-steps", "40", "--net.hidden", "8", "--net.memory", memory]
    quick = ["--eval-episodes", "4", "--eval-every", "200", "--no-tensorboard"]
    for part, steps in (("through", "400"), ("parts", "200")):
        out = ["--out", str(tmp_path / part), "--total-steps", steps]
        assert cli.main(["train", name, "mpe/simple_spread", *options, *quick, *out]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "400"]) == 0
    one, two = (tree.leaves(checkpoint.load(tmp_path / n / "checkpoint")["algorithm"]) for n in ("through", "parts"))
    assert len(one) > 10
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lam": 1.5}, "lam"),
        ({"epochs": 0}, "epochs"),
        ({"workers": -1}, "workers"),
        ({"reward": "own"}, "sum or mean"),
        ({"net": {"hidden": (), "memory": 8}}, r"net\.hidden"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ShoalError, match=named):
        build("pqn_vdn", **settings)


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(ShoalError, match=r"runner.*maddpg"):
        build("pqn", EnvSpec({"runner": GroupSpec(("a",), (2,), Box(2))}))


def test_rollouts_must_divide_into_sequences() -> None:
    with pytest.raises(ShoalError, match="do not divide into sequences of 3"):
        build("pqn", batch_steps=20, sequence=3, net={"memory": 4}).experience(2)


@pytest.mark.parametrize(("name", "best"), [("pqn_vdn", 7.0), ("pqn_qmix", 8.0)])
def test_the_two_step_game_tells_the_mixers_apart(name: str, best: float) -> None:
    """With returns of one step: of play that is all exploration, longer ones are not those of the best actions."""
    env = shoal.make("matrix/two_step", num_envs=8)
    algorithm = shoal.build(name, env.spec, epsilon_end=1.0, lam=0.0, batch_steps=160, minibatches=4)
    for _ in shoal.train(algorithm, env, total_steps=15_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=8).agent_return.mean() == best


def test_a_recurrent_agent_learns_to_remember() -> None:
    env = shoal.make("memory/recall", num_envs=32, cues=2, delay=2)
    algorithm = shoal.build(
        "pqn", env.spec, net={"memory": 32, "hidden": (32,)}, batch_steps=512, epsilon_steps=20_000, workers=1
    )
    for _ in shoal.train(algorithm, env, total_steps=60_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=160).agent_return.mean() >= 0.95


@pytest.mark.parametrize("name", ["iql", "qmix", "wqmix", "pqn_qmix", "ippo", "mappo", "happo"])
def test_agents_that_see_nothing_act_and_learn(name: str) -> None:
    spec = EnvSpec({"agent": GroupSpec(("agent_0", "agent_1"), (0,), Discrete(3))}, 0)
    algorithm = shoal.build(name, spec)
    batch = random_batch(spec, time=TIME if "p" in name else 1)
    metrics = algorithm.update(batch)
    assert all(bool(value.isfinite()) for value in metrics.values())
    nothing = {"agent": torch.zeros(3, 2, 0)}
    view = View(nothing, {"agent": torch.zeros(3, 2, 0).bool()}, torch.zeros(3, 0))
    assert algorithm.act(view, algorithm.initial_memory(3), explore=True)[0]["agent"].shape == (3, 2)


def test_every_epoch_is_learned_from_in_minibatches() -> None:
    algorithm = build("pqn", epochs=3, minibatches=4)
    algorithm.update(random_batch(time=TIME))
    assert algorithm.optimizer.steps == 12


def test_who_has_left_adds_nothing_to_what_follows() -> None:
    """In the rewards' units, a successor's value is the sum over those who go on, each with its share of the mean."""
    algorithm, batch = shoal.build("pqn_vdn", SPEC), random_batch(time=TIME)
    assert isinstance(algorithm, PQN)
    algorithm.norm.update(torch.tensor([[30.0], [34.0]]), torch.full((2, 1), 0.5))  # mean 32, deviation 2
    total = torch.zeros(batch.ended.shape)
    for group, net in algorithm.nets.items():
        agents = batch.groups[group]
        q = net.unroll(agents.next_obs, torch.zeros(12, 1, 0), torch.zeros(1))[0].detach()
        q = q.masked_fill(~agents.next_legal, -1e9) if agents.next_legal.shape[-1] else q
        total += ((q.max(-1).values * 2 + 32 / SPEC.num_agents) * ~agents.terminated).sum(-1)
    assert torch.allclose(algorithm.norm.restore(algorithm._following(batch))[..., 0], total, atol=1e-4)


def test_minibatches_are_drawn_anew_each_time() -> None:
    batch, generator = torch.arange(60).view(1, 60), torch.Generator().manual_seed(0)
    one, two = (
        torch.cat(list(rollouts.minibatches(batch, 60, 4, generator, torch.device("cpu"))), 1) for _ in range(2)
    )
    assert torch.equal(one.sort().values, batch)
    assert not torch.equal(one, batch)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", ["vdn", "pqn_vdn"])
def test_the_learning_rate_falls_with_environment_steps(name: str) -> None:
    algorithm: Any = shoal.build(name, SPEC, lr=0.1, anneal_steps=1000)
    for steps, rate in ((0, 0.1), (750, 0.025), (2000, 0.0)):
        algorithm.env_steps = steps
        algorithm.update(random_batch(time=TIME if name == "pqn_vdn" else 1))
        assert algorithm.optimizer.lr == pytest.approx(rate)
