"""Value decomposition: its update against the same mathematics written plainly, an agent and a step at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal import rollouts, tree
from shoal.algorithms.pqn import PQN
from shoal.algorithms.value_decomposition import ValueDecomposition, _priority
from shoal.nets.dense import AgentNet
from shoal.replay import allocate
from shoal.types import Batch, Box, Discrete, EnvSpec, GroupSpec, ShoalError, View

SPEC = EnvSpec(
    {
        "runner": GroupSpec(("runner_0", "runner_1"), (3,), Discrete(4), masked=True),
        "caller": GroupSpec(("caller_0", "caller_1", "caller_2"), (4,), Discrete(3)),
    },
    5,
)
NAMES = ["iql", "vdn", "qmix", "wqmix"]
WIDTH = 6


def random_batch(spec: EnvSpec = SPEC, time: int = 1, size: int = 12, memory: int = 0, seed: int = 0) -> Batch:
    """Agents die; episodes end by termination and by time limits, one of them in the middle of the first sequence."""
    g = torch.Generator().manual_seed(seed)
    batch = allocate(spec, (time, size), dict.fromkeys(spec.groups, memory))
    batch.ended.copy_(torch.rand(time, size, generator=g) < 0.2)
    batch.ended[time // 2, 0] = True
    all_stop = batch.ended & (torch.rand(time, size, generator=g) < 0.5)
    succeeds = ~batch.ended[:-1]  # where the next row is the successor
    for name, agents in batch.groups.items():
        for tensor in (agents.obs, agents.next_obs, agents.reward, agents.memory):
            tensor.normal_(generator=g)
        agents.next_obs[:-1][succeeds] = agents.obs[1:][succeeds]
        for legal in (agents.legal, agents.next_legal):
            legal.copy_(torch.rand(legal.shape, generator=g) < 0.5)
            legal[..., :1] = True
        agents.next_legal[:-1][succeeds] = agents.legal[1:][succeeds]
        agents.action.copy_(torch.randint(spec.groups[name].action.size, agents.action.shape, generator=g))
        agents.present.copy_(torch.rand(agents.alive.shape, generator=g) < 0.8)
        agents.alive.copy_(agents.present & (torch.rand(agents.alive.shape, generator=g) < 0.8))
        stop = torch.rand(agents.alive.shape, generator=g) < 0.2
        agents.terminated.copy_(stop | ~agents.present | all_stop.unsqueeze(-1))
    batch.state.normal_(generator=g)
    batch.next_state.normal_(generator=g)
    batch.next_state[:-1][succeeds] = batch.state[1:][succeeds]
    return batch


def build(name: str, spec: EnvSpec = SPEC, **settings: Any) -> ValueDecomposition:
    """With a target network unlike the learned one."""
    settings = {"normalise": False, "max_grad_norm": 0.0, "embed": 8, "hyper": 16, **settings}
    settings["net"] = {"hidden": (16, 16), **settings.get("net", {})}
    algorithm = shoal.build(name, spec, **settings)
    assert isinstance(algorithm, ValueDecomposition)
    draw = torch.randn(algorithm.target_vector.shape, generator=torch.Generator().manual_seed(7))
    algorithm.target_vector.add_(0.1 * draw)
    return algorithm


def gradient(algorithm: ValueDecomposition | PQN, batch: Batch) -> Tensor:
    """Of one update, of a copy of the algorithm."""
    state = tree.map(torch.clone, algorithm.state_dict())
    algorithm.update(batch)
    grad = algorithm.optimizer.grad.clone()
    algorithm.load_state_dict(state)
    return grad


def plain_net(net: AgentNet, agent: int, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Agent `agent`'s own network: `[batch, in]` and memory `[batch, width]` -> values and memory."""
    row = 0 if net.shared else agent
    if net.identity.shape[1]:
        x = torch.cat([x, net.identity[agent].expand(len(x), -1)], -1)
    for k, (weight, bias) in enumerate(net.mlp.layers):
        x = x @ weight[row] + bias[row]
        x = x.relu() if net.memory or k < len(net.mlp.layers) - 1 else x
    if not net.memory:
        return x, h
    xr, xz, xn = (x @ net.gru.input_weight[row] + net.gru.input_bias[row]).chunk(3, -1)
    hr, hz, hn = (h @ net.gru.memory_weight[row] + net.gru.memory_bias[row]).chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    h = (1 - z) * (xn + r * hn).tanh() + z * h
    ((weight, bias),) = net.head.layers
    return h @ weight[row] + bias[row], h


def plain_mix(name: str, mixer: nn.Module, q: Tensor, state: Tensor) -> Tensor:
    """`[batch, agent]` -> `[batch]` by equation, one agent at a time."""
    if name == "vdn":
        return q.sum(-1)
    (w, b), (v, c) = mixer.hyper.first.layers[0], mixer.hyper.second.layers[0]
    weights = (state @ w[0] + b[0]).tanh() @ v[0] + c[0]
    agents, embed = q.shape[1], 8
    hidden = weights[:, agents * embed : (agents + 1) * embed]
    for i in range(agents):
        hidden = hidden + weights[:, i * embed : (i + 1) * embed].abs() * q[:, i : i + 1]
    second = weights[:, (agents + 1) * embed : (agents + 2) * embed].abs()
    return (nn.functional.elu(hidden) * second).sum(-1) + weights[:, -1]


def plain_joint(net: nn.Module, state: Tensor, joint_action: Tensor) -> Tensor:
    """`[batch]`: Q*(s, a)."""
    x = torch.cat([state, joint_action], -1)
    for k, (weight, bias) in enumerate(net.mlp.layers):
        x = (x if k == 0 else x.relu()) @ weight[0] + bias[0]
    return x[:, 0]


def plain_gradient(name: str, algorithm: ValueDecomposition, batch: Batch) -> Tensor:
    config, time = algorithm.config, len(batch.ended)
    chosen, following, reward, terminated, alive = [], [], [], [], []  # an agent each, [time, batch]
    acted, will_act = [], []  # an agent each, [time, batch, action]
    for group, a in batch.groups.items():
        net, target = algorithm.nets[group], algorithm.target_nets[group]
        for i in range(a.obs.shape[2]):
            h, target_h, qs, nexts, then = a.memory[0, :, i], a.memory[0, :, i], [], [], []
            eye = torch.eye(SPEC.groups[group].action.size)
            for t in range(time):
                q, h = plain_net(net, i, a.obs[t, :, i], h)
                qs.append(q.gather(1, a.action[t, :, i : i + 1])[:, 0] * a.present[t, :, i])
                with torch.no_grad():
                    _, target_h = plain_net(target, i, a.obs[t, :, i], target_h)
                    next_target, _ = plain_net(target, i, a.next_obs[t, :, i], target_h)
                    judge = plain_net(net, i, a.next_obs[t, :, i], h)[0] if config.double else next_target
                    if a.next_legal.shape[-1]:
                        judge = torch.where(a.next_legal[t, :, i], judge, -torch.inf)
                    best = next_target.gather(1, judge.argmax(1, keepdim=True))[:, 0]
                    nexts.append(torch.where(a.terminated[t, :, i], 0.0, best))
                    then.append(eye[judge.argmax(1)] * ~a.terminated[t, :, i : i + 1])
                again = ~batch.ended[t].unsqueeze(-1)
                h, target_h = h * again, target_h * again
            chosen.append(torch.stack(qs))
            following.append(torch.stack(nexts))
            acted.append(eye[a.action[:, :, i]] * a.present[:, :, i : i + 1])
            will_act.append(torch.stack(then))
            reward.append(a.reward[:, :, i])
            terminated.append(a.terminated[:, :, i])
            alive.append(a.present[:, :, i])
    loss, count = torch.zeros(()), torch.zeros(())
    if name == "iql":
        for q, n, r, stop, live in zip(chosen, following, reward, terminated, alive, strict=True):
            y = r + config.gamma * n * ~stop
            loss, count = loss + ((q - y).square() * live).sum(), count + live.sum()
    else:
        stop, live = torch.stack(terminated).all(0), torch.stack(alive).any(0)
        for t in range(time):
            total = plain_mix(name, algorithm.mixer, torch.stack(chosen, -1)[t], batch.state[t])
            with torch.no_grad():
                mixer = algorithm.target_mixer
                after = plain_mix(name, mixer, torch.stack(following, -1)[t], batch.next_state[t])
                if name == "wqmix":
                    after = plain_joint(algorithm.target_joint, batch.next_state[t], torch.cat(will_act, -1)[t])
            y = torch.stack(reward).mean(0)[t] + config.gamma * after * ~stop[t]
            weight = torch.where(total < y, 1.0, 0.1) if name == "wqmix" else torch.ones(())
            loss, count = loss + (weight * (total - y).square() * live[t]).sum(), count + live[t].sum()
            if name == "wqmix":
                best = plain_joint(algorithm.joint, batch.state[t], torch.cat(acted, -1)[t])
                loss = loss + ((best - y).square() * live[t]).sum()
    grads = torch.autograd.grad(loss / count, list(algorithm.module.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("time", "memory"), [(1, 0), (5, 0), (5, WIDTH)])
def test_update_is_the_papers_equations(name: str, double: bool, shared: bool, time: int, memory: int) -> None:
    algorithm = build(name, double=double, sequence=time, net={"shared": shared, "memory": memory})
    batch = random_batch(time=time, memory=memory)
    if time > 1:
        assert batch.ended[1:-1].any()
    expected = plain_gradient(name, algorithm, batch)
    assert expected.abs().max() > 1e-2
    assert torch.allclose(gradient(algorithm, batch), expected, atol=2e-5, rtol=1e-4)


def as_if_nobody_left(batch: Batch) -> Batch:
    """The mean reward for everyone, who stays as long as anybody does."""
    expected = tree.map(torch.clone, batch)
    agents = expected.groups.values()
    reward = torch.cat([a.reward for a in agents], -1).mean(-1, keepdim=True)
    over = torch.cat([a.terminated for a in agents], -1).all(-1, keepdim=True)
    here = torch.cat([a.present for a in agents], -1).any(-1, keepdim=True)
    for a in agents:
        a.reward.copy_(reward.expand_as(a.reward))
        a.terminated.copy_(over.expand_as(a.terminated))
        a.present.copy_(here.expand_as(a.present))
    return expected


def test_of_shared_rewards_agents_learn_until_all_have_left() -> None:
    """What the team earns after some have left is what they too have worked for."""
    batch = random_batch(time=5)
    shared, own = (build("iql", sequence=5, reward=reward) for reward in ("mean", "own"))
    assert not torch.equal(gradient(own, batch), gradient(own, as_if_nobody_left(batch)))
    assert torch.equal(gradient(shared, batch), gradient(own, as_if_nobody_left(batch)))


def test_without_memory_nothing_is_burnt_in() -> None:
    env = shoal.make("matrix/climbing", 2)
    one, two = (
        shoal.build("vdn", env.spec, n_step=2, sequence=3, burn_in=burn_in, warmup=32, batch_size=8)
        for burn_in in (0, 2)
    )
    for algorithm in (one, two):
        for _ in shoal.train(algorithm, env, 200):
            pass
    assert one.updates > 5  # type: ignore[attr-defined]
    pairs = zip(tree.leaves(one.state_dict()), tree.leaves(two.state_dict()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", [0, WIDTH])
def test_a_batch_in_pieces_teaches_the_same_on_any_number_of_threads(
    name: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"sequence": 3, "burn_in": 2, "priority": 0.6, "normalise": True, "batch_size": 12}
    batch, grads, urgent = random_batch(time=5 if memory else 3, memory=memory), [], []  # without, nothing to burn in
    for most, workers in ((10**9, 1), (8, 1), (8, 3)):
        algorithm = build(name, net={"memory": memory}, workers=workers, **settings)
        algorithm.cut = rollouts.Cut(most, 10**9)
        monkeypatch.setattr(algorithm.experience(12), "prioritise", urgent.append)
        grads.append(gradient(algorithm, batch))
    assert torch.allclose(grads[0], grads[1], atol=1e-5)
    assert torch.allclose(urgent[0], urgent[1], atol=1e-5)
    assert torch.equal(grads[1], grads[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("double", [False, True])
def test_illegal_actions_are_never_bootstrapped_from(name: str, double: bool) -> None:
    """However good the networks find action 3, which is illegal afterwards."""
    algorithm = build(name, double=double)
    batch = random_batch()
    agents = batch.groups["runner"]
    agents.next_legal[..., 3] = False
    agents.legal[..., 3] = False
    agents.action.clamp_(max=2)
    before = gradient(algorithm, batch)
    with torch.no_grad():
        for nets in (algorithm.nets, algorithm.target_nets):
            nets["runner"].mlp.layers[-1][1][..., 3] += 100
    assert torch.equal(gradient(algorithm, batch), before)
    agents.next_legal[..., 3] = True
    assert not torch.allclose(gradient(algorithm, batch), before)


@pytest.mark.parametrize("name", NAMES)
def test_the_dead_do_not_contribute(name: str) -> None:
    """Whatever is written where they would have observed and acted."""
    algorithm, batch = build(name), random_batch()
    before = gradient(algorithm, batch)
    for agents in batch.groups.values():
        dead = ~agents.present
        assert dead.any()
        agents.obs[dead] = 9.0
        agents.next_obs[dead] = -9.0
        agents.action[dead] = 2
        if name == "iql":
            agents.reward[dead] = 50.0
    assert torch.allclose(gradient(algorithm, batch), before, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_termination_stops_the_bootstrap(name: str) -> None:
    algorithm, batch = build(name), random_batch()
    for agents in batch.groups.values():
        agents.terminated.fill_(True)
    before = gradient(algorithm, batch)
    for agents in batch.groups.values():
        agents.next_obs.fill_(9.0)
    batch.next_state.fill_(9.0)
    assert torch.equal(gradient(algorithm, batch), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_time_limit_does_not_stop_the_bootstrap(name: str) -> None:
    algorithm, batch = build(name), random_batch()
    for agents in batch.groups.values():
        agents.terminated.fill_(False)
        agents.present.fill_(True)
    batch.ended.fill_(False)
    before = gradient(algorithm, batch)
    batch.ended.fill_(True)
    assert torch.allclose(gradient(algorithm, batch), before, atol=1e-6)


def test_burn_in_only_brings_the_memory_up_to_date() -> None:
    """The learned network unlike its target would start from unlike memories: here they are the same."""
    settings: dict[str, Any] = {"net": {"memory": WIDTH}}
    warmed = build("vdn", sequence=3, burn_in=2, **settings)
    fresh = build("vdn", sequence=3, **settings)
    for algorithm in (warmed, fresh):
        algorithm.target_vector.copy_(algorithm.optimizer.vector)
    batch = random_batch(time=5, memory=WIDTH)
    later = tree.map(torch.clone, tree.index(batch, slice(2, None)))
    with torch.no_grad():
        for name, agents in batch.groups.items():
            h = agents.memory[0]
            for t in range(2):
                h = fresh.nets[name].step(agents.obs[t], h)[1] * ~batch.ended[t].view(-1, 1, 1)
            later.groups[name].memory[0] = h
    assert torch.allclose(gradient(warmed, batch), gradient(fresh, later), atol=1e-5)


def view_of(count: int, legal: Tensor | None = None) -> View:
    """The same for `count` environments."""
    g = torch.Generator().manual_seed(2)
    obs = {n: torch.randn(1, s.num_agents, *s.obs_shape, generator=g) for n, s in SPEC.groups.items()}
    masks = {"runner": torch.ones(1, 2, 4).bool() if legal is None else legal, "caller": torch.zeros(1, 3, 0).bool()}
    spread = {n: x.expand(count, -1, -1) for n, x in obs.items()}
    return View(spread, {n: x.expand(count, -1, -1) for n, x in masks.items()}, torch.zeros(count, 5))


@pytest.mark.parametrize("memory", [0, WIDTH])
def test_illegal_actions_are_never_taken(memory: int) -> None:
    algorithm = build("vdn", epsilon_start=0.5, epsilon_end=0.5, net={"memory": memory})
    for illegal in range(4):
        legal = torch.ones(1, 2, 4, dtype=torch.bool)
        legal[..., illegal] = False
        for explore in (True, False):
            chosen, _ = algorithm.act(view_of(200, legal), algorithm.initial_memory(200), explore=explore)
            assert not (chosen["runner"] == illegal).any()
            assert (len(chosen["runner"].unique()) == 3) or not explore


def test_epsilon_follows_environment_steps() -> None:
    algorithm = build("iql", epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=1000)
    memory, seen = algorithm.initial_memory(250), []
    for _ in range(6):
        seen.append(algorithm.epsilon)
        algorithm.act(view_of(250), memory, explore=True)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_playing_greedily_neither_draws_nor_counts() -> None:
    algorithm = build("iql")
    state = algorithm.sampler.get_state()
    chosen, _ = algorithm.act(view_of(50), algorithm.initial_memory(50), explore=False)
    assert (chosen["runner"] == chosen["runner"][0]).all()
    assert torch.equal(state, algorithm.sampler.get_state())
    assert algorithm.env_steps == 0


def test_agents_explore_with_probability_epsilon_each() -> None:
    algorithm = build("iql", epsilon_start=0.4, epsilon_end=0.4)
    memory = algorithm.initial_memory(4000)
    greedy, _ = algorithm.act(view_of(4000), memory, explore=False)
    explored, _ = algorithm.act(view_of(4000), memory, explore=True)
    differs = (explored["runner"] != greedy["runner"]).float()
    assert differs.mean(0).tolist() == pytest.approx([0.4 * 3 / 4] * 2, abs=0.03)  # a quarter draws the best again
    assert differs.prod(1).mean().item() == pytest.approx(0.09, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "said"), [({"weight": 0.5}, "mixer"), ({"mixer": "sum", "weight": 2.0}, "0 and 1")]
)
def test_a_weight_is_for_teams_and_between_0_and_1(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ShoalError, match=said):
        shoal.build("iql", SPEC, reward="mean", **settings)


def test_memory_without_a_hidden_layer_is_refused() -> None:
    with pytest.raises(ShoalError, match=r"net\.hidden"):
        shoal.build("iql", SPEC, net={"memory": 8, "hidden": ()})


def test_continuous_actions_are_refused() -> None:
    spec = EnvSpec({"runner": GroupSpec(("a",), (2,), Box(2))})
    with pytest.raises(ShoalError, match=r"runner.*maddpg"):
        shoal.build("qmix", spec)


@pytest.mark.parametrize("name", ["vdn", "qmix", "wqmix"])
def test_a_mixer_refuses_own_rewards(name: str) -> None:
    with pytest.raises(ShoalError, match="sum or mean"):
        shoal.build(name, SPEC, reward="own")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", [0, WIDTH])
def test_every_network_learns(name: str, shared: bool, memory: int) -> None:
    algorithm = build(
        name, tau=1.0, target_every=3, normalise=True, sequence=3, net={"shared": shared, "memory": memory}
    )
    before = [p.detach().clone() for p in algorithm.module.parameters()]
    target = algorithm.target_vector.clone()
    for seed in range(3):
        assert torch.equal(target, algorithm.target_vector)
        algorithm.update(random_batch(time=3, memory=memory, seed=seed))
    for (key, new), old in zip(algorithm.module.named_parameters(), before, strict=True):
        assert (new != old).flatten(1).any(1).all(), key  # every agent's
    assert torch.equal(algorithm.target_vector, algorithm.optimizer.vector)


@pytest.mark.parametrize("name", NAMES)
def test_successors_that_no_target_asks_for_are_left_out(name: str, monkeypatch: Any) -> None:
    algorithm, batch = build(name, n_step=3, sequence=4), random_batch(time=6, size=40)
    nothing = algorithm.initial_memory(40)
    values, target, present = algorithm._values(batch, nothing, nothing)
    monkeypatch.setattr(ValueDecomposition, "_jumps", False)
    all_values, all_target, all_present = algorithm._values(batch, nothing, nothing)
    for some, everything in zip(values, all_values, strict=True):
        assert torch.equal(some, everything)
    assert torch.allclose(target, all_target, atol=1e-6)
    assert torch.equal(present, all_present)
    assert target.shape[0] == 4


@pytest.mark.parametrize("name", ["iql", "vdn", "qmix"])
def test_targets_stay_until_the_target_network_moves(name: str) -> None:
    """Whatever the running statistics do: targets in their units would drive them up, and they the targets."""
    algorithm, batch = build(name, normalise=True, tau=1.0, target_every=50, double=False), random_batch()
    none = algorithm.initial_memory(12)
    before = algorithm._values(batch, none, none)[1]
    for seed in range(49):
        algorithm.update(random_batch(seed=seed))
    assert (algorithm.norm.scale()[1] != 1).all()
    assert torch.equal(algorithm._values(batch, none, none)[1], before)
    algorithm.update(batch)
    assert torch.equal(algorithm.target_norm.mean, algorithm.norm.mean)
    assert not torch.equal(algorithm._values(batch, none, none)[1], before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", [0, WIDTH])
def test_state_continues_identically(name: str, memory: int) -> None:
    settings = {"normalise": True, "tau": 1.0, "target_every": 2, "sequence": 3, "net": {"memory": memory}}
    one, two = build(name, **settings), build(name, seed=9, **settings)
    one.act(view_of(20), one.initial_memory(20), explore=True)
    for seed in range(3):
        one.update(random_batch(time=3, memory=memory, seed=seed))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    actions = []
    for algorithm in (one, two):
        for seed in range(3, 6):
            algorithm.update(random_batch(time=3, memory=memory, seed=seed))
        actions.append(algorithm.act(view_of(50), algorithm.initial_memory(50), explore=True)[0])
    for a, b in zip(tree.leaves(actions[0]), tree.leaves(actions[1]), strict=True):
        assert torch.equal(a, b)
    first, second = one.state_dict(), two.state_dict()
    assert (first["env_steps"], first["updates"]) == (second["env_steps"], second["updates"])
    for a, b in zip(tree.leaves(first), tree.leaves(second), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize(("name", "best"), [("vdn", 7.0), ("qmix", 8.0)])
def test_the_two_step_game_tells_vdn_from_qmix(name: str, best: float) -> None:
    env = shoal.make("matrix/two_step", num_envs=8)
    settings = {"epsilon_end": 1.0, "update_every": 8, "lr": 1e-3}
    algorithm = shoal.build(name, env.spec, **settings)
    for _ in shoal.train(algorithm, env, total_steps=15_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=8).agent_return.mean() == best


@pytest.mark.parametrize(("name", "best"), [("qmix", 0.0), ("wqmix", 8.0)])
def test_the_nonmonotonic_game_tells_qmix_from_weighted_qmix(name: str, best: float) -> None:
    env = shoal.make("matrix/nonmonotonic", num_envs=8)
    settings = {"epsilon_end": 1.0, "update_every": 8, "lr": 2e-4, "batch_size": 256}
    algorithm = shoal.build(name, env.spec, **settings)
    for _ in shoal.train(algorithm, env, total_steps=10_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=8).agent_return.mean() == best


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 4), ({"net": {"memory": 8}}, 100), ({"net": {"memory": 8}, "sequence": 8}, 32), ({"update_every": 7}, 7)],
)
def test_updates_are_rarer_the_longer_their_sequences(settings: dict[str, object], steps: int) -> None:
    env = shoal.make("matrix/two_step", num_envs=1)
    assert shoal.build("iql", env.spec, **settings).experience(1).update_every == steps


def test_a_recurrent_agent_learns_to_remember() -> None:
    env = shoal.make("memory/recall", num_envs=16, cues=2, delay=2)
    settings = {"lr": 2e-3, "update_every": 64, "batch_size": 32, "epsilon_steps": 20_000, "sequence": 8}
    algorithm = shoal.build("iql", env.spec, net={"memory": 32, "hidden": (32,)}, **settings)
    for _ in shoal.train(algorithm, env, total_steps=40_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=160).agent_return.mean() >= 0.95


def test_where_there_is_no_state_the_mixer_sees_what_everybody_observes() -> None:
    spec = replace(SPEC, state_size=0)
    algorithm, batch = build("qmix", spec), random_batch(spec)
    now, then = algorithm.states(batch)
    groups = batch.groups.values()
    assert torch.equal(now, torch.cat([a.obs.flatten(2) for a in groups], -1))
    assert torch.equal(then, torch.cat([a.next_obs.flatten(2) for a in groups], -1))


@pytest.mark.parametrize("name", NAMES)
def test_errors_count_as_importance_weights_say(name: str) -> None:
    algorithm, batch = build(name, priority=0.6, batch_size=12), random_batch()
    replay = algorithm.experience(12)
    everything = gradient(algorithm, batch)
    replay.weight = torch.full((12,), 0.5)
    assert torch.allclose(gradient(algorithm, batch), everything / 2, atol=1e-6)
    replay.weight[6:] = 0.0
    half = gradient(algorithm, batch)
    assert half.abs().max() > 1e-3
    for agents in batch.groups.values():
        agents.reward[:, 6:] += 50.0
    assert torch.allclose(gradient(algorithm, batch), half, atol=1e-6)


def test_a_sequence_is_as_urgent_as_its_largest_error() -> None:
    """Nearly: 0.9 of that and 0.1 of the mean; errors `[time, batch, value]`."""
    error = torch.tensor([[[1.0, 0.0], [2.0, 2.0]], [[3.0, 0.0], [2.0, 2.0]]])
    assert _priority(error).tolist() == pytest.approx([0.9 * 3 + 0.1 * 1, 2.0])


@pytest.mark.parametrize("name", NAMES)
def test_where_nobody_is_there_is_nothing_urgent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, batch, urgent = build(name, priority=0.6, batch_size=12), random_batch(), list[Tensor]()
    for agents in batch.groups.values():
        agents.present[:] = True
        agents.present[:, 0] = False
    monkeypatch.setattr(algorithm.experience(12), "prioritise", urgent.append)
    algorithm.update(batch)
    assert urgent[0][0] == 0
    assert (urgent[0][1:] > 0).all()


def test_each_network_brings_its_own_memory_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, batch = build("vdn", sequence=3, burn_in=2, net={"memory": WIDTH}), random_batch(time=5, memory=WIDTH)
    values, seen = algorithm._values, []

    def watch(later: Any, *starts: Any) -> Any:
        seen.extend(starts)
        return values(later, *starts)

    monkeypatch.setattr(algorithm, "_values", watch)
    expected = []
    for nets in (algorithm.nets, algorithm.target_nets):
        name, agents = "runner", batch.groups["runner"]
        h = agents.memory[0]
        with torch.no_grad():
            for t in range(2):
                h = nets[name].step(agents.obs[t], h)[1] * ~batch.ended[t].view(-1, 1, 1)
        expected.append(h)
    algorithm.update(batch)
    for start, h in zip(seen, expected, strict=True):
        assert torch.allclose(start["runner"], h, atol=1e-6)
    assert not torch.allclose(*expected)


def test_the_replay_is_what_the_settings_say() -> None:
    """Long enough for burn-in and rewards behind the last step; by priority, with weights; with who hears whom."""
    spec = replace(SPEC, hears=(5, 5))
    settings = {"sequence": 4, "burn_in": 2, "n_step": 3, "priority": 0.7, "correction": 0.3}
    algorithm = build("qmix", spec, **settings, net={"memory": 6, "comm": "mean", "message": 8})
    replay = algorithm.experience(2)
    assert replay.length == 2 + 4 + 3 - 1
    assert replay.priorities is not None
    assert (replay.priorities.exponent, replay.correction) == (0.7, 0.3)
    assert replay.storage.hears.shape[2:] == replay.storage.next_hears.shape[2:] == (5, 5)
    assert replay.storage.state.shape[2:] == (5,)
    assert replay.storage.groups["runner"].memory.shape[2:] == (2, 6)


def test_what_is_drawn_is_learned_from_and_becomes_less_urgent() -> None:
    algorithm = build("vdn", sequence=2, n_step=2, priority=0.7, batch_size=4, warmup=0)
    replay = algorithm.experience(3)
    rollout = random_batch(time=12, size=3)
    rollout.state, rollout.next_state = (x[..., :0] for x in (rollout.state, rollout.next_state))
    (first, *_) = [tree.map(torch.clone, batch) for batch in replay.add(rollout)]
    before = replay.priorities.sums.clone()
    algorithm.update(first)
    assert not torch.equal(replay.priorities.sums, before)
