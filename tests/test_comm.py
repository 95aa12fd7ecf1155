"""Agents that talk: the papers' equations an agent at a time, who is heard by whom, and one agent run alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from test_ppo import MIXED, rollout
from test_value_decomposition import SPEC, gradient, random_batch
from torch import Tensor

import shoal
from shoal import optim, rollouts
from shoal.algorithms.ppo import PPO
from shoal.algorithms.value_decomposition import ValueDecomposition
from shoal.nets import together
from shoal.nets.comm import Talk, Way
from shoal.nets.dense import AgentNet, orthogonal
from shoal.teams.team import part, without
from shoal.types import Batch, Discrete, EnvSpec, Groups, GroupSpec, ShoalError, View

WAYS: list[Way] = ["mean", "attention", "gated"]
SIZES = {"runner": (2, 3, 4), "caller": (3, 4, 3)}  # agents, inputs, outputs
TOTAL, BATCH = 5, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def team(way: Way, *, shared: bool = True, memory: int = 0, rounds: int = 2, heads: int = 2) -> dict[str, AgentNet]:
    talk = Talk(way, 8, rounds, heads)
    nets = {
        name: AgentNet(agents, (inputs, 16, outputs), shared=shared, memory=memory, generator=generator(k), talk=talk)
        for k, (name, (agents, inputs, outputs)) in enumerate(SIZES.items())
    }
    for net in nets.values():
        orthogonal(net, 1.0, generator())
    with torch.no_grad():
        for net in nets.values():
            for mouth in net.channel.mouths:
                mouth.mlp.layers[0][1][..., -1] = 0.0  # some gates are closed
    return nets


def inputs(*lead: int, seed: int = 5) -> Groups:
    return {n: torch.randn(*lead, agents, size, generator=generator(seed)) for n, (agents, size, _) in SIZES.items()}


def nothing(*lead: int, memory: int = 0) -> Groups:
    return {n: torch.zeros(*lead, agents, memory) for n, (agents, _, _) in SIZES.items()}


EVERYBODY = torch.zeros(BATCH, 0, 0, dtype=torch.bool)


def outputs(nets: dict[str, AgentNet], x: Groups, hears: Tensor = EVERYBODY) -> Tensor:
    """All agents' outputs, `[batch, agent, ...]` summed up to one number each that no output escapes."""
    out = together.step(nets, x, nothing(BATCH), hears)[0]
    return torch.cat([rows.square().sum(-1) for rows in out.values()], -1)


# Equations


def plain_layer(each: Any, agent: int, x: Tensor) -> Tensor:
    weight, bias = each.mlp.layers[0]
    row = 0 if each.shared else agent
    return x @ weight[row] + bias[row, 0]


def plain_exchange(nets: dict[str, AgentNet], features: Groups, hears: Tensor) -> list[Tensor]:
    """By the papers' equations, one environment and one agent at a time: `[batch, width]` for every agent."""
    place = [(n, i) for n, net in nets.items() for i in range(net.num_agents)]
    h = [features[n][:, i].clone() for n, i in place]
    talk = nets["runner"].channel.talk
    for k in range(talk.rounds):
        said = [plain_layer(nets[n].channel.mouths[k], i, h[a]) for a, (n, i) in enumerate(place)]
        after = [x.clone() for x in h]
        for e in range(BATCH):
            for a, (n, i) in enumerate(place):
                heard = [b for b in range(TOTAL) if b != a and hears[e, a, b]]
                context = torch.zeros(talk.message)
                if talk.kind == "mean" and heard:
                    context = torch.stack([said[b][e] for b in heard]).mean(0)
                if talk.kind == "gated":
                    speaking = [b for b in heard if said[b][e, -1] > 0]
                    if speaking:
                        context = torch.stack([said[b][e, :-1] for b in speaking]).mean(0)
                if talk.kind == "attention":
                    query, parts = plain_layer(nets[n].channel.queries[k], i, h[a][e]), []
                    size, whom = talk.message // talk.heads, [*heard, a]
                    for head in range(talk.heads):
                        some = slice(head * size, (head + 1) * size)
                        score = torch.stack([query[some] @ said[b][e, : talk.message][some] for b in whom])
                        share = (score / math.sqrt(size)).softmax(0)
                        values = torch.stack([said[b][e, talk.message :][some] for b in whom])
                        parts.append((share.unsqueeze(1) * values).sum(0))
                    context = torch.cat(parts)
                after[a][e] = plain_layer(nets[n].channel.ears[k], i, torch.cat([h[a][e], context])).relu()
        h = after
    return h


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_messages_are_the_papers_equations(way: Way, shared: bool) -> None:
    nets = team(way, shared=shared)
    features = {n: torch.randn(BATCH, agents, 16, generator=generator(2)) for n, (agents, _, _) in SIZES.items()}
    hears = torch.rand(BATCH, TOTAL, TOTAL, generator=generator(3)) < 0.6
    hears[0] = False  # nobody hears anybody
    got = torch.cat(list(together.exchange(nets, features, hears).values()), 1)
    assert torch.allclose(got, torch.stack(plain_exchange(nets, features, hears), 1), atol=1e-5)


def test_a_gate_is_hard_and_its_gradient_soft() -> None:
    nets = team("gated", rounds=1)
    features = torch.randn(400, 2, 16, generator=generator(), requires_grad=True)
    gate = nets["runner"].channel.speak(0, features)[..., -1]
    assert set(gate.unique().tolist()) == {0.0, 1.0}
    logit = plain_layer(nets["runner"].channel.mouths[0], 0, features)[..., -1]
    (hard,) = torch.autograd.grad(gate.sum(), features)
    (soft,) = torch.autograd.grad(logit.sigmoid().sum(), features)
    assert torch.allclose(hard, soft, atol=1e-6)


def test_at_first_most_gates_are_open() -> None:
    net = AgentNet(2, (3, 64, 4), shared=True, generator=generator(), talk=Talk("gated"))
    for start in (None, 0.01):
        if start:
            orthogonal(net, start, generator())
        features = net.features(torch.randn(1, 500, 2, 3), torch.zeros(500, 2, 0), torch.zeros(1, 500).bool())[0]
        assert net.channel.speak(0, features)[..., -1].mean() > 0.75


# Who hears whom


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_changed_message_moves_the_others_of_its_environment_and_nobody_else(way: Way) -> None:
    """A layer that mixes the batch axis, or speaks with itself only, fails here."""
    nets = team(way, rounds=1)
    if way == "gated":
        nets["caller"].channel.mouths[0].mlp.layers[0][1][..., -1] = 100.0
    features = {n: torch.rand(BATCH, agents, 16, generator=generator(2)) for n, (agents, _, _) in SIZES.items()}
    before = torch.cat(list(together.exchange(nets, features, EVERYBODY).values()), 1)
    speak = nets["caller"].channel.speak

    def disturbed(k: int, features: Tensor, agents: slice = slice(None)) -> Tensor:
        said = speak(k, features, agents).clone()
        said[3, 1, : 16 if way == "attention" else 8] += 1.0
        return said

    nets["caller"].channel.speak = disturbed  # type: ignore[method-assign]
    moved = (torch.cat(list(together.exchange(nets, features, EVERYBODY).values()), 1) != before).any(-1)
    expected = torch.zeros(BATCH, TOTAL, dtype=torch.bool)
    expected[3] = True
    expected[3, 3] = way == "attention"  # the second caller attends to itself too
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rounds", [1, 2])
@torch.no_grad()
def test_messages_go_one_step_along_the_graph_in_each_round(way: Way, rounds: int) -> None:
    """A chain in which agent k hears only agent k - 1."""
    nets = team(way, rounds=rounds)
    for net in nets.values():
        for mouth in net.channel.mouths:
            mouth.mlp.layers[0][1][..., -1] = 100.0 if way == "gated" else 0.0
        for ear in net.channel.ears:
            ear.mlp.layers[0][1].fill_(1.0)  # few units are dead
    chain = torch.eye(TOTAL, dtype=torch.bool).roll(1, 0).expand(BATCH, -1, -1).clone()
    chain[:, 0] = False
    x = inputs(BATCH)
    before = outputs(nets, x, chain)
    x["runner"][2, 0] += 1.0
    moved = outputs(nets, x, chain) != before
    expected = torch.zeros_like(moved)
    expected[2, : rounds + 1] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_one_that_is_not_there_is_not_heard(way: Way) -> None:
    """Whatever its observation: as if there were one agent fewer. One row of `hears` is for all listeners."""
    nets = team(way)
    there = torch.ones(BATCH, 1, TOTAL, dtype=torch.bool)
    there[..., 2] = False
    x = inputs(BATCH)
    before = outputs(nets, x, there)
    x["caller"][:, 0] += 10.0
    moved = (outputs(nets, x, there) != before).any(0)
    assert moved.tolist() == [False, False, True, False, False]
    assert torch.equal(outputs(nets, x, there), outputs(nets, x, there.expand(-1, TOTAL, -1)))


@torch.no_grad()
def test_groups_that_are_played_by_others_are_not_heard() -> None:
    nets = team("mean")
    x = inputs(BATCH)
    apart = together.step({"runner": nets["runner"]}, {"runner": x["runner"]}, nothing(BATCH), EVERYBODY)[0]["runner"]
    only = torch.zeros(BATCH, 1, TOTAL, dtype=torch.bool)
    only[..., :2] = True
    assert torch.allclose(apart, together.step(nets, x, nothing(BATCH), only)[0]["runner"], atol=1e-6)
    hears = torch.rand(BATCH, TOTAL, TOTAL) < 0.5
    view = part(View(x, nothing(BATCH), torch.zeros(BATCH, 0), hears), {"caller": [0, 1, 2]})
    assert torch.equal(view.hears, hears[:, 2:, 2:])
    runners = SPEC.groups["runner"].agents
    assert without(EnvSpec(SPEC.groups, 0, (TOTAL, TOTAL)), runners).hears == (3, 3)
    assert without(EnvSpec(SPEC.groups, 0, (1, TOTAL)), runners).hears == (1, 3)


# Sequences


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", [0, 5])
@torch.no_grad()
def test_unroll_is_repeated_steps_and_foresee_steps_on_successors(way: Way, memory: int) -> None:
    nets, time = team(way, memory=memory), 4
    x, hears = inputs(time, BATCH), torch.rand(time, BATCH, TOTAL, TOTAL, generator=generator()) < 0.5
    ended = torch.rand(time, BATCH, generator=generator(1)) < 0.4
    then, next_hears = inputs(time, BATCH, seed=8), torch.rand(hears.shape, generator=generator(2)) < 0.5
    on = ~ended[:-1]
    next_hears[:-1][on] = hears[1:][on]
    for name in x:
        then[name][:-1][on] = x[name][1:][on]
    now = nothing(BATCH, memory=memory)
    out, after = together.unroll(nets, x, now, ended, hears)
    following = together.foresee(nets, then, out, after, ended, next_hears)
    for t in range(time):
        expected, now = together.step(nets, {n: rows[t] for n, rows in x.items()}, now, hears[t])
        successor = together.step(nets, {n: rows[t] for n, rows in then.items()}, now, next_hears[t])[0]
        for name in x:
            assert torch.allclose(out[name][t], expected[name], atol=1e-5)
            assert torch.allclose(after[name][t], now[name], atol=1e-5)
            assert torch.allclose(following[name][t], successor[name], atol=1e-5)
        now = {n: rows * ~ended[t].view(-1, 1, 1) for n, rows in now.items()}


# Run one agent at a time


@pytest.mark.parametrize("way", ["none", *WAYS])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", [0, 5])
@torch.no_grad()
def test_agents_that_run_alone_act_as_all_together(way: Way, shared: bool, memory: int) -> None:
    """Nothing but messages passes between them; some cannot hear some, and a closed gate sends nothing."""
    nets, now = team(way, shared=shared, memory=memory), nothing(BATCH, memory=memory)
    agents = [together.Alone(nets, n, i, BATCH) for n, net in nets.items() for i in range(net.num_agents)]
    assert [agent.number for agent in agents] == list(range(TOTAL))
    ended = torch.tensor([True, False, True, False, False, False])
    graph = torch.rand(TOTAL, TOTAL, generator=generator(4)) < 0.7
    for t in range(3):
        x = inputs(BATCH, seed=t)
        expected, now = together.step(nets, x, now, graph.expand(BATCH, -1, -1))
        rows = [x[n][:, i] for n, net in nets.items() for i in range(net.num_agents)]
        for agent, row in zip(agents, rows, strict=True):
            agent.see(row)
        for k in range(agents[0].rounds):
            said = {agent.number: agent.speak(k) for agent in agents}
            if way == "gated":
                assert {0.0, 1.0} == {float(gate) for message in said.values() for gate in message[:, -1]}
                for message in said.values():
                    message[message[:, -1] == 0] = 0.0
            for agent in agents:
                agent.listen(k, {j: m for j, m in said.items() if graph[agent.number, j]})
        out = [agent.decide() for agent in agents]
        wanted = [expected[n][:, i] for n, net in nets.items() for i in range(net.num_agents)]
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(out, wanted, strict=True))
        for agent in agents:
            agent.forget(ended)
        now = {n: m * ~ended.view(-1, 1, 1) for n, m in now.items()}


# In the algorithms


def with_hears(batch: Batch, spec: EnvSpec) -> Batch:
    lead, total = batch.ended.shape, spec.num_agents
    batch.hears, batch.next_hears = (torch.rand(*lead, total, total, generator=generator(k)) < 0.7 for k in range(2))
    on = ~batch.ended[:-1]
    batch.next_hears[:-1][on] = batch.hears[1:][on]
    return batch


def ppo(**settings: Any) -> PPO:
    net = {"hidden": (16, 16), "gain": 1.0, "message": 8, **settings.pop("net", {})}
    algorithm = shoal.build("mappo", MIXED, epochs=1, max_grad_norm=0.0, net=net, **settings)
    assert isinstance(algorithm, PPO)
    return algorithm


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", [0, 6])
def test_ppos_ratios_are_one_before_learning_and_everybodys_message_learns(way: Way, memory: int) -> None:
    algorithm = ppo(net={"comm": way, "memory": memory}, minibatches=2)
    batch = with_hears(rollout(memory=memory), MIXED)
    memories = algorithm.initial_memory(5)
    for t in range(len(batch.ended)):  # as it would have been played
        view = View(
            {n: a.obs[t] for n, a in batch.groups.items()},
            {n: a.legal[t] for n, a in batch.groups.items()},
            batch.state[t],
            batch.hears[t],
        )
        for name, agents in batch.groups.items():
            agents.memory[t] = memories[name]
        _, memories = algorithm.act(view, memories, explore=True)
        memories = {n: m * ~batch.ended[t].view(-1, 1, 1) for n, m in memories.items()}
    lesson = algorithm._sequences(algorithm._study(batch))
    now = algorithm._judge(lesson, dict.fromkeys(MIXED.groups, slice(None)))[0]
    assert torch.allclose(now, lesson.log_prob, atol=1e-5)
    before = copy.deepcopy(algorithm.nets)
    algorithm.update(batch)
    for name, net in algorithm.nets.items():
        changed = [not torch.equal(p, q) for p, q in zip(net.parameters(), before[name].parameters(), strict=True)]
        assert all(changed)


def test_ppo_plays_as_it_learns_with_whoever_is_heard() -> None:
    """The gradient of the batch in pieces and in one is the same."""
    grads = []
    for piece in (1, 10_000):
        algorithm = ppo(net={"comm": "attention"})
        algorithm.cut = rollouts.Cut(piece, 10**9)
        algorithm.update(with_hears(rollout(), MIXED))
        grads.append(optim.join([p.detach() for p in algorithm.modules[0].parameters()]))
    assert torch.allclose(grads[0], grads[1], atol=2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("time", "memory", "burn_in"), [(1, 0, 0), (4, 6, 0), (4, 6, 2)])
def test_values_learn_from_messages_computed_anew(way: Way, time: int, memory: int, burn_in: int) -> None:
    net = {"hidden": (16, 16), "memory": memory, "comm": way, "message": 8}
    algorithm = shoal.build("qmix", SPEC, sequence=time, burn_in=burn_in, net=net)
    assert isinstance(algorithm, ValueDecomposition)
    batch = with_hears(random_batch(time=time + burn_in, memory=memory), SPEC)
    before = copy.deepcopy(algorithm.nets)
    algorithm.update(batch)
    for name, one in algorithm.nets.items():
        changed = [not torch.equal(p, q) for p, q in zip(one.parameters(), before[name].parameters(), strict=True)]
        assert sum(changed) >= len(changed) - 2  # a bias may be without influence
    everybody = copy.deepcopy(batch)
    everybody.hears, everybody.next_hears = torch.ones_like(batch.hears), torch.ones_like(batch.next_hears)
    assert not torch.equal(algorithm.update(batch)["loss"], algorithm.update(everybody)["loss"])


class Whisper:
    """A caller sees a number that a worker must answer with; words there are none. One step an episode."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        groups = {
            "caller": GroupSpec(("caller",), (3,), Discrete(1)),
            "worker": GroupSpec(("a", "b"), (1,), Discrete(3)),
        }
        self.spec = EnvSpec(groups, 0, (1, 3))
        self.random = torch.Generator()

    def _view(self) -> View:
        envs = self.num_envs
        self.number = torch.randint(3, (envs, 1), generator=self.random)
        obs = {"caller": torch.eye(3)[self.number], "worker": torch.ones(envs, 2, 1)}
        legal = {"caller": torch.zeros(envs, 1, 0).bool(), "worker": torch.zeros(envs, 2, 0).bool()}
        return View(obs, legal, torch.zeros(envs, 0), torch.ones(envs, 1, 3, dtype=torch.bool))

    def reset(self, seed: int | None = None) -> View:
        if seed is not None:
            self.random.manual_seed(seed)
        self.view = self._view()
        return self.view

    def step(self, actions: Groups) -> shoal.Step:
        right = (actions["worker"] == self.number).float()
        reward = {"worker": right, "caller": right.mean(1, keepdim=True)}
        yes = {n: torch.ones_like(r, dtype=torch.bool) for n, r in reward.items()}
        before, self.view = self.view, self._view()
        return shoal.Step(self.view, before, reward, yes, yes, yes["caller"][:, 0])

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(("name", "way"), [("vdn", "mean"), *(("mappo", way) for way in ("none", *WAYS))])
def test_what_one_group_sees_another_can_act_on(name: str, way: Way) -> None:
    env = Whisper(16)
    settings: dict[str, Any] = {"batch_steps": 256, "epochs": 4, "lr": 3e-3, "minibatches": 2}
    if name == "vdn":
        settings = {"warmup": 256, "update_every": 16, "epsilon_steps": 1500, "lr": 3e-3}
    algorithm = shoal.build(name, env.spec, net={"comm": way, "message": 8, "hidden": (32,)}, **settings)
    for _ in shoal.train(algorithm, env, 4096):
        pass
    earned = shoal.evaluate(algorithm, env, 96).agent_return.mean()
    assert (earned < 0.6) if way == "none" else (earned > 0.95)


# What is refused


WRONG = [
    ("happo", {"net": {"comm": "mean"}}, "one after the other"),
    ("mappo", {"net": {"comm": "attention", "message": 10, "heads": 4}}, "does not divide"),
    ("qmix", {"net": {"comm": "mean", "rounds": 0}}, r"net\.rounds"),
    ("qmix", {"net": {"comm": "mean", "hidden": ()}}, r"net\.hidden"),
]


@pytest.mark.parametrize(("name", "settings", "named"), WRONG)
def test_what_cannot_be_is_said(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ShoalError, match=named):
        shoal.build(name, SPEC, **settings)


@pytest.mark.parametrize("memory", [0, 6])
@pytest.mark.parametrize("name", ["iql", "pqn"])
def test_targets_are_of_those_whom_one_hears_after_the_step(name: str, memory: int) -> None:
    """At the last step, whose successor no other step shows."""
    net = {"hidden": (16, 16), "memory": memory, "comm": "mean", "message": 8}
    time = 4 if memory or name == "pqn" else 1
    algorithm: Any = shoal.build(name, SPEC, net=net, **({"sequence": time} if name == "iql" else {"minibatches": 1}))
    batch = with_hears(random_batch(time=time, memory=memory), SPEC)
    before = gradient(algorithm, batch)
    batch.next_hears[-1] = ~batch.next_hears[-1]
    assert not torch.allclose(gradient(algorithm, batch), before, atol=1e-6)
