"""The PPO family: its update against the same mathematics written plainly, an agent and a step at a time."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_value_decomposition import SPEC, WIDTH, plain_net, random_batch, view_of
from torch import Tensor

import shoal
from shoal import actions, checkpoint, cli, log, rollouts, tree
from shoal.algorithms import ppo
from shoal.algorithms.ppo import PPO, Actor, Config
from shoal.nets.dense import AgentNet, orthogonal
from shoal.returns import gae
from shoal.types import Batch, Box, Discrete, EnvSpec, GroupSpec, ShoalError, View

MIXED = EnvSpec({**SPEC.groups, "arm": GroupSpec(("arm_0", "arm_1"), (2,), Box(2))}, 5)


def columns(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


# Equations


def test_gae_by_hand() -> None:
    no = torch.zeros(3, 1, 1, dtype=torch.bool)
    advantage = gae(columns(1, 2, 3), no, no, columns(4, 5, 6), columns(5, 6, 7), 0.5, 0.5)
    deltas = [1 + 2.5 - 4, 2 + 3 - 5, 3 + 3.5 - 6]  # -0.5, 0, 0.5
    assert advantage.flatten().tolist() == [deltas[0] + deltas[2] / 16, deltas[2] / 4, deltas[2]]


def test_gae_at_a_time_limit_counts_the_successor_and_not_the_next_episode() -> None:
    no = torch.zeros(3, 1, 1, dtype=torch.bool)
    ended = torch.tensor([False, True, False]).view(3, 1, 1)
    advantage = gae(columns(1, 2, 100), no, ended, columns(4, 5, 6), columns(5, 8, 7), 0.5, 0.5)
    assert advantage.flatten().tolist()[:2] == [-0.5 + 1 / 4, 1.0]  # delta_1 = 2 + 4 - 5


def test_gae_stops_for_an_agent_that_has_terminated_while_others_go_on() -> None:
    terminated = torch.tensor([[False, False], [True, False], [True, False]]).view(3, 1, 2)
    same = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 1, 2)
    advantage = gae(same, terminated, torch.zeros(3, 1, 1, dtype=torch.bool), 0 * same, 4 + 0 * same, 0.5, 1.0)
    assert advantage[:, 0, 0].tolist() == [3 + 0.5 * 2, 2, 3]
    assert advantage[:, 0, 1].tolist() == [3 + 0.5 * 4 + 0.25 * 5, 4 + 0.5 * 5, 5]


def test_likelihood_of_choices_is_the_softmax_over_legal_ones() -> None:
    output, legal = torch.randn(50, 2, 4), torch.rand(50, 2, 4) < 0.6
    legal[..., 0] = True
    action = actions.random(Discrete(4), legal, torch.Generator())
    log_prob, entropy = actions.likelihood(Discrete(4), output, action, legal)
    theirs = torch.distributions.Categorical(logits=output.masked_fill(~legal, -1e9))
    assert torch.allclose(log_prob, theirs.log_prob(action), atol=1e-5)
    assert torch.allclose(entropy, theirs.entropy(), atol=1e-5)


def test_samples_follow_the_softmax_and_are_legal() -> None:
    output = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5]).expand(40_000, 2, 5)
    legal = torch.tensor([False, True, True, False, True]).expand(40_000, 2, 5)
    drawn = actions.sample(Discrete(5), output, legal, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    expected = output[0, 0].masked_fill(~legal[0, 0], -torch.inf).softmax(-1)
    assert share[~legal[0, 0]].sum() == 0
    assert torch.allclose(share, expected, atol=0.01)


def test_continuous_likelihood_is_that_of_clipped_draws() -> None:
    """Inside the density of a normal distribution; at the bounds all that lies beyond: one in sum."""
    output = torch.tensor([0.9, math.log(0.7)]).view(1, 1, 2)
    grid = torch.linspace(-1, 1, 20_001)[1:-1].view(-1, 1, 1)
    none = torch.zeros(1, 1, 0, dtype=torch.bool)
    density = actions.likelihood(Box(1), output.expand(len(grid), 1, 2), grid, none)[0].exp()
    ends = actions.likelihood(Box(1), output.expand(2, 1, 2), torch.tensor([-1.0, 1.0]).view(2, 1, 1), none)[0].exp()
    assert abs(density.sum() * 1e-4 + ends.sum() - 1) < 1e-3
    draws = actions.sample(Box(1), output.expand(100_000, 1, 2), none, torch.Generator().manual_seed(0))
    assert abs((draws == 1).float().mean() - ends[1]) < 0.01
    assert abs((draws == -1).float().mean() - ends[0, 0]) < 0.01
    inside = torch.distributions.Normal(math.tanh(0.9), 0.7)
    assert torch.allclose(density.log()[5], inside.log_prob(grid[5]).squeeze(), atol=1e-5)
    assert torch.allclose(actions.likelihood(Box(1), output, grid[:1], none)[1], inside.entropy())


def test_orthogonal_weights_have_their_gains() -> None:
    net = AgentNet(2, (6, 16, 4), shared=False, memory=8, generator=torch.Generator())
    orthogonal(net, 0.01, torch.Generator().manual_seed(0))
    (first, bias), (last, _) = net.mlp.layers[0], net.head.layers[0]
    for k in range(2):
        assert torch.allclose(first[k] @ first[k].T, 2 * torch.eye(6), atol=1e-5)
        assert torch.allclose(last[k].T @ last[k], 1e-4 * torch.eye(4), atol=1e-7)
        for gate in net.gru.memory_weight[k].chunk(3, -1):
            assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)
    assert not bias.any()
    assert not torch.equal(first[0], first[1])


# The update


def build(name: str = "mappo", spec: EnvSpec = MIXED, **settings: Any) -> PPO:
    settings = {"epochs": 1, "max_grad_norm": 0.0, **settings}
    settings["net"] = {"hidden": (16, 16), "gain": 1.0, **settings.get("net", {})}
    algorithm = shoal.build(name, spec, **settings)
    assert isinstance(algorithm, PPO)
    return algorithm


def rollout(time: int = 6, memory: int = 0, spec: EnvSpec = MIXED) -> Batch:
    """Random, with agents that die, both kinds of ends, and (in `MIXED`) numbers at and between the bounds."""
    discrete = EnvSpec({n: g for n, g in spec.groups.items() if isinstance(g.action, Discrete)}, spec.state_size)
    batch = random_batch(discrete, time, 5, memory)
    if "arm" in spec.groups:
        arm = random_batch(EnvSpec({"arm": GroupSpec(("a", "b"), (2,), Discrete(2))}, 0), time, 5, memory, seed=3)
        agents = arm.groups["arm"]
        agents.action = torch.randn(time, 5, 2, 2, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
        on = ~batch.ended[:-1]
        agents.next_obs[:-1][on] = agents.obs[1:][on]
        agents.terminated |= batch.groups["caller"].terminated.all(-1, keepdim=True) & batch.ended.unsqueeze(-1)
        batch.groups["arm"] = agents
    return batch


@torch.no_grad()
def remember(algorithm: PPO, batch: Batch) -> None:
    """Give a batch the memory that this algorithm would have had."""
    after = plain_policy(algorithm, batch)[2]
    for name, agents in batch.groups.items():
        agents.memory[1:] = after[name][:-1] * ~batch.ended[:-1, :, None, None]


def plain_log_prob(actor: Actor, group: GroupSpec, i: int, out: Tensor, a: Any, t: int) -> tuple[Tensor, Tensor]:
    """Of agent i at time t: `[batch]`."""
    if isinstance(group.action, Discrete):
        if group.masked:
            out = out.masked_fill(~a.legal[t, :, i], -1e9)
        categorical = torch.distributions.Categorical(logits=out)
        return categorical.log_prob(a.action[t, :, i]), categorical.entropy()
    std = actor.log_std[0 if actor.net.shared else i].exp().expand_as(out)
    normal = torch.distributions.Normal(out.tanh(), std)
    x = a.action[t, :, i]
    inside = normal.log_prob(x.clamp(-0.999999, 0.999999))
    above, below = (1 - normal.cdf(torch.ones(()))).log(), normal.cdf(-torch.ones(())).log()
    log_prob = torch.where(x >= 1, above, torch.where(x <= -1, below, inside))
    return log_prob.sum(-1), normal.entropy().sum(-1)


def plain_policy(algorithm: PPO, batch: Batch) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Log-probabilities and entropies, an agent each `[time, batch]`, and memory after each step by group."""
    log_probs, entropies, remembered = [], [], {}
    for name, a in batch.groups.items():
        actor, per_agent = algorithm.actors[name], []
        for i in range(a.obs.shape[2]):
            h, found, after = a.memory[0, :, i], [], []
            for t in range(len(batch.ended)):
                out, h = plain_net(actor.net, i, a.obs[t, :, i], h)
                found.append(plain_log_prob(actor, algorithm.spec.groups[name], i, out, a, t))
                after.append(h)
                h = h * ~batch.ended[t].unsqueeze(-1)
            log_probs.append(torch.stack([p for p, _ in found]))
            entropies.append(torch.stack([e for _, e in found]))
            per_agent.append(torch.stack(after))
        remembered[name] = torch.stack(per_agent, 2)
    return log_probs, entropies, remembered


def plain_value(algorithm: PPO, batch: Batch, t: int, after: dict[str, Tensor] | None) -> Tensor:
    """`[batch, value]` at time t; with `after`, memory after each step, of the successors."""
    state = batch.state[t] if after is None else batch.next_state[t]
    obs = {n: (a.obs if after is None else a.next_obs)[t] for n, a in batch.groups.items()}
    memory = {n: a.memory[t] if after is None else after[n][t] for n, a in batch.groups.items()}
    if algorithm.config.value == "central":
        x = torch.cat([state, *[m.flatten(1) for m in memory.values()]], -1)
        return plain_net(algorithm.critics["team"], 0, x, x)[0]
    found = []
    for name, critic in algorithm.critics.items():
        for i in range(obs[name].shape[1]):
            x = torch.cat([obs[name][:, i], memory[name][:, i]], -1)
            if algorithm.config.value == "agent":
                x = torch.cat([state, x], -1)
            found.append(plain_net(critic, i, x, x)[0][:, 0])
    return torch.stack(found, -1)


def plain_gradients(algorithm: PPO, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Of the first step: the actors' by group, and the critics'."""
    config, time = algorithm.config, len(batch.ended)
    log_probs, entropies, after = plain_policy(algorithm, batch)
    after = {n: m.detach() for n, m in after.items()}
    value = torch.stack([plain_value(algorithm, batch, t, None) for t in range(time)])
    reward = torch.cat([a.reward for a in batch.groups.values()], -1)
    stop = torch.cat([a.terminated for a in batch.groups.values()], -1)
    alive = torch.cat([a.alive for a in batch.groups.values()], -1)
    counts = torch.cat([a.present for a in batch.groups.values()], -1)
    if config.reward == "mean":
        reward = reward.mean(-1, keepdim=True).expand(-1, -1, value.shape[-1])
        stop = stop.all(-1, keepdim=True).expand_as(value)  # what is shared is earned until all have left
        counts = counts.any(-1, keepdim=True).expand_as(value)
    with torch.no_grad():
        advantage = torch.zeros_like(value)
        for t in reversed(range(time)):
            next_value = plain_value(algorithm, batch, t, after)
            on = batch.ended[t].logical_not().unsqueeze(-1) & ~stop[t]
            delta = reward[t] + config.gamma * next_value * ~stop[t] - value[t]
            advantage[t] = delta
            if t + 1 < time:
                advantage[t] += config.gamma * config.lam * advantage[t + 1] * on
        target = value + advantage
        scaled = advantage.expand(alive.shape).clone()
        start = 0
        for group in algorithm.spec.groups.values():
            here = slice(start, start + group.num_agents)
            kept = scaled[..., here][alive[..., here]]
            scaled[..., here] = (scaled[..., here] - kept.mean()) / (kept.std(correction=0) + 1e-5)
            start += group.num_agents
    loss = torch.zeros(())
    for i, (log_prob, entropy) in enumerate(zip(log_probs, entropies, strict=True)):
        ratio = (log_prob - log_prob.detach()).exp()
        loss = loss - ((ratio * scaled[..., i] + config.entropy * entropy) * alive[..., i]).sum() / alive.sum()
    error = torch.nn.functional.huber_loss(value, target, reduction="none", delta=config.huber)
    value_loss = (error * counts).sum() / counts.sum()
    actor_grads = []
    for actor in algorithm.actors.values():
        grads = torch.autograd.grad(loss, list(actor.parameters()), retain_graph=True)
        actor_grads.append(torch.cat([g.flatten() for g in grads]))
    return actor_grads, torch.cat([g.flatten() for g in torch.autograd.grad(value_loss, list(critics(algorithm)))])


def critics(algorithm: PPO) -> list[Tensor]:
    return [p for critic in algorithm.critics.values() for p in critic.parameters()]


@pytest.mark.parametrize("value", ["own", "central", "agent"])
@pytest.mark.parametrize("reward", ["own", "mean"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", [0, WIDTH])
def test_update_is_the_papers_equations(value: str, reward: str, shared: bool, memory: int, monkeypatch: Any) -> None:
    """Masks, deaths, both kinds of ends, three unlike groups, one of them continuous; the batch in several pieces."""
    monkeypatch.setattr(rollouts, "PIECE", 10)
    net = {"shared": shared, "memory": memory}
    algorithm = build(value=value, reward=reward, normalise_value=False, net=net)
    batch = rollout(memory=memory)
    remember(algorithm, batch)
    expected, expected_critic = plain_gradients(algorithm, batch)
    algorithm.update(batch)
    for name, grad in zip(algorithm.actors, expected, strict=True):
        assert grad.abs().max() > 1e-2
        assert torch.allclose(algorithm.actor_optimizers[name].grad, grad, atol=1e-5, rtol=1e-3), name
    assert expected_critic.abs().max() > 1e-2
    assert torch.allclose(algorithm.critic_optimizer.grad, expected_critic, atol=1e-5, rtol=1e-3)


def test_memory_is_learned_through_sequences_of_the_chosen_length() -> None:
    """Stored memory starts each; with the memory that was played with, probabilities are the same either way."""
    env = shoal.make("memory/recall", num_envs=4)
    probabilities = []
    for sequence in (0, 5):
        algorithm = build("ippo", env.spec, net={"memory": 8}, sequence=sequence, batch_steps=40, minibatches=2)
        batch = next(iter(shoal.train(algorithm, env, 40))).collector.rollout
        fresh = build("ippo", env.spec, net={"memory": 8}, sequence=sequence, batch_steps=40, minibatches=2)
        lesson = fresh._sequences(fresh._study(batch))
        assert lesson.ended.shape == ((10, 4) if sequence == 0 else (5, 8))
        turn = dict.fromkeys(env.spec.groups, slice(None))
        assert torch.allclose(fresh._judge(lesson, turn)[0], lesson.log_prob, atol=1e-5)
        probabilities.append(lesson.log_prob.sum())
    assert torch.allclose(*probabilities)


def test_clipping_stops_what_has_moved_far_enough() -> None:
    """By hand: an action that is e^0.5 as likely as when played teaches nothing more if it was good."""
    algorithm = build("ippo", SPEC, entropy=0.0, minibatches=2)
    lesson = algorithm._sequences(algorithm._study(rollout(spec=SPEC)))
    turn = algorithm._turns()[0]
    before = lesson.log_prob.clone()
    for change, sign in ((0.5, 1.0), (-0.5, -1.0)):
        lesson.log_prob = before - change
        lesson.advantage = torch.full_like(before, sign)
        algorithm._anneal()
        algorithm._step(lesson, turn, values=False)
        assert not algorithm.actor_optimizers["caller"].grad.any()
        lesson.advantage = -lesson.advantage
        algorithm._step(lesson, turn, values=False)
        assert algorithm.actor_optimizers["caller"].grad.any()


def test_values_are_held_near_those_that_played() -> None:
    algorithm = build(value_clip=0.1, normalise_value=False)
    lesson = algorithm._sequences(algorithm._study(rollout()))
    value = lesson.value.clone()
    lesson.value, lesson.target = value - 1, value - 2  # values already moved further than 0.1, towards the wrong side
    loss = algorithm._value_loss(lesson, lesson.counts.sum())
    assert torch.allclose(loss, torch.tensor(2.0))  # (2 - 0)^2 / 2, not the held ones' (1.1)^2 / 2
    lesson.value, lesson.target = value - 1, value
    assert torch.allclose(algorithm._value_loss(lesson, lesson.counts.sum()), torch.tensor(0.9**2 / 2))


def test_values_are_held_near_what_the_networks_said() -> None:
    """Also if by now it would mean something else: values have other units after every batch."""
    algorithm = build(value_clip=0.1)
    algorithm._study(rollout())
    lesson = algorithm._sequences(algorithm._study(rollout()))
    assert torch.equal(lesson.value, algorithm._judge_values(lesson))
    assert (lesson.target != algorithm.norm.normalise(lesson.value)).any()


def test_a_deviation_beyond_its_bounds_comes_back() -> None:
    x = torch.tensor([-6.0, -6.0, 0.0, 0.0, 2.0, 2.0], requires_grad=True)
    held = actions.hold(x)
    assert held.tolist() == [-5.0, -5.0, 0.0, 0.0, 1.0, 1.0]
    (grad,) = torch.autograd.grad(held, x, torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]))
    assert grad.tolist() == [-1.0, 0.0, -1.0, 1.0, 0.0, 1.0]  # gradients are descended


def test_errors_of_values_are_squared_or_hubers() -> None:
    error = torch.tensor([0.5, -3.0])
    assert build(huber=0.0)._error(error, torch.zeros(2)).tolist() == [0.125, 4.5]
    assert build(huber=1.0)._error(error, torch.zeros(2)).tolist() == [0.125, 2.5]
    error.requires_grad_()
    assert torch.autograd.grad(build(huber=0.0)._error(error, torch.zeros(2)).sum(), error)[0].tolist() == [0.5, -3.0]


def test_a_batch_in_which_nobody_is_alive_teaches_nothing() -> None:
    algorithm, batch = build(), rollout()
    for agents in batch.groups.values():
        agents.alive[:] = agents.present[:] = False
    before = algorithm.actor_optimizers["arm"].vector.clone()
    metrics = algorithm.update(batch)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert torch.equal(algorithm.actor_optimizers["arm"].vector, before)


def test_results_do_not_depend_on_the_number_of_workers(monkeypatch: Any) -> None:
    monkeypatch.setattr(rollouts, "PIECE", 7)
    grads = []
    for workers in (1, 3):
        algorithm = build(workers=workers, epochs=3, minibatches=2)
        algorithm.update(rollout())
        grads.append(algorithm.critic_optimizer.vector.clone())
    assert torch.equal(*grads)


def test_minibatches_learn_every_step_once() -> None:
    algorithm = build(minibatches=4)
    lesson = algorithm._sequences(algorithm._study(rollout()))
    parts = list(algorithm._minibatches(lesson))
    assert len(parts) == 4
    assert torch.equal(torch.cat([p.target for p in parts], 1).flatten().sort()[0], lesson.target.flatten().sort()[0])


def test_the_first_epoch_says_what_was_likely_when_it_was_played() -> None:
    """With one minibatch nobody looks before: the same gradients as if somebody had."""
    vectors = []
    for look in (False, True):
        algorithm = build(epochs=3)
        lesson = algorithm._sequences(algorithm._study(rollout()))
        if look:
            lesson.log_prob = algorithm._judge_all(lesson)
        algorithm._anneal()
        for _ in range(3):
            algorithm._step(lesson, algorithm._turns()[0], values=True)
        vectors.append(algorithm.actor_optimizers["caller"].vector.clone())
    assert torch.allclose(*vectors, atol=1e-6)


def test_kl_stop_ends_the_epochs() -> None:
    one, all_of_them = build(epochs=50, lr=0.01, target_kl=1e-6), build(epochs=50, lr=0.01)
    for algorithm in (one, all_of_them):
        algorithm.update(rollout())
    assert one.critic_optimizer.steps == 2  # nothing has moved in the first
    assert all_of_them.critic_optimizer.steps == 50


def test_learning_rates_and_entropy_fall_with_environment_steps() -> None:
    algorithm = build(anneal_steps=1000, lr=0.1, critic_lr=0.2, lr_end=0.5, entropy=0.4)
    algorithm.env_steps = 500
    algorithm.update(rollout())
    assert algorithm.actor_optimizers["caller"].lr == pytest.approx(0.075)
    assert algorithm.critic_optimizer.lr == pytest.approx(0.15)
    assert algorithm.entropy == pytest.approx(0.2)


# HAPPO


def rows(algorithm: PPO) -> dict[tuple[str, int], Tensor]:
    return {
        (name, k): row.clone()
        for name, optimizer in algorithm.actor_optimizers.items()
        for k, row in enumerate(optimizer.vector)
    }


def test_happo_changes_one_agent_at_a_time_and_compounds_their_ratios() -> None:
    algorithm = build("happo", lr=0.01)
    lesson = algorithm._sequences(algorithm._study(rollout()))
    algorithm._anneal()
    advantage, factor = lesson.advantage.clone(), torch.ones_like(lesson.advantage[..., :1])
    turns = algorithm._turns()
    assert sorted(next(iter(t.items()))[0] for t in turns) == ["arm"] * 2 + ["caller"] * 3 + ["runner"] * 2
    for turn in turns:
        ((name, agents),) = turn.items()
        before = rows(algorithm)
        algorithm._step(lesson, turn, values=False)
        changed = [key for key, row in rows(algorithm).items() if not torch.equal(row, before[key])]
        assert changed == [(name, agents.start)]
        algorithm._compound(lesson, turn)
        everyone = dict.fromkeys(algorithm.spec.groups, slice(None))
        column = algorithm.start[name] + agents.start
        ratio = (algorithm._judge(lesson, everyone)[0] - lesson.log_prob)[..., column].exp()
        factor = factor * torch.where(lesson.alive[..., column], ratio, 1.0).unsqueeze(-1)
        assert torch.allclose(lesson.advantage, advantage * factor, rtol=1e-4)
    assert (factor - 1).abs().max() > 0.01


def test_happos_first_agent_learns_as_mappos() -> None:
    """One epoch without normalised gradients: the same direction for the agent whose turn comes first."""
    happo, mappo = build("happo"), build("mappo", net={"shared": False})
    first = next(iter(happo._turns()[0].items()))
    happo.shuffler.manual_seed(0)
    for algorithm in (happo, mappo):
        algorithm.update(rollout())
    name, k = first[0], first[1].start
    own = happo.actor_optimizers[name].vector[k]
    theirs = torch.cat([p[k].flatten() for p in mappo.actors[name].parameters()])
    assert torch.allclose(own, theirs, atol=2e-5)


def test_agents_that_learn_in_turn_need_their_own_weights() -> None:
    with pytest.raises(ShoalError, match=r"net\.shared"):
        build("happo", net={"shared": True})


# Playing and learning


def test_greedy_play_takes_the_mean_and_changes_nothing() -> None:
    algorithm = build()
    batch = rollout()
    view = View(
        {n: a.obs[0] for n, a in batch.groups.items()}, {n: a.legal[0] for n, a in batch.groups.items()}, batch.state[0]
    )
    memory = algorithm.initial_memory(5)
    before = tree.map(torch.clone, algorithm.state_dict())
    one, two = (algorithm.act(view, memory, explore=False)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(before), tree.leaves(algorithm.state_dict()), strict=True))
    assert not torch.equal(algorithm.act(view, memory, explore=True)[0]["arm"], one["arm"])


@pytest.mark.parametrize("std_of_state", [False, True])
def test_deviation_is_a_number_or_depends_on_what_is_seen(std_of_state: bool) -> None:
    algorithm = build(net={"std": 0.3, "std_of_state": std_of_state})
    actor = algorithm.actors["arm"]
    out = actor.spread(actor.net.step(torch.randn(50, 2, 2), torch.zeros(50, 2, 0))[0])
    log_std = out[..., 2:]
    assert out.shape == (50, 2, 4)
    assert (log_std.std(0) > 1e-3).all() == std_of_state
    if not std_of_state:
        assert torch.allclose(log_std, torch.tensor(0.3).log())


FACTORY = f"{Path(__file__).parent / 'conftest.py'}:Relay"
SMALL = ["--net.hidden", "8", "--batch-steps", "20", "--epochs", "2", "--eval-episodes", "4", "--eval-every", "100"]


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("mappo", "mpe/simple_spread", ["--num-envs", "4", "--minibatches", "2", "--net.memory", "4"]),
        ("ippo", FACTORY, ["--num-envs", "2", "--net.memory", "4", "--sequence", "5"]),
        ("happo", FACTORY, ["--num-envs", "2", "--env.callers", "2", "--anneal-steps", "400"]),
    ],
)
def test_train_stop_resume_is_train_through(tmp_path: Path, algorithm: str, env: str, options: list[str]) -> None:
    """Bit for bit, in the middle of episodes; agents that leave, continuous and discrete ones together."""
    for name, steps in (("through", "400"), ("parts", "220")):
        arguments = ["train", algorithm, env, *SMALL, *options, "--no-tensorboard", "--out", str(tmp_path / name)]
        assert cli.main([*arguments, "--total-steps", steps]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "400"]) == 0
    one, two = (
        tree.leaves(checkpoint.load(tmp_path / name / "checkpoint")["algorithm"]) for name in ("through", "parts")
    )
    assert len(one) > 20
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


LEARNS = [
    ("ippo", "matrix/climbing", [], 175.0),
    ("mappo", "matrix/two_step", [], 7.0),
    ("happo", "matrix/two_step", [], 7.0),
    pytest.param(
        "ippo", "memory/recall", ["--net.memory", "32", "--total-steps", "200000"], 0.95, marks=pytest.mark.slow
    ),
    ("mappo", "tutorial/drift", ["--total-steps", "120000"], 180.0),
]


@pytest.mark.parametrize(("algorithm", "env", "options", "at_least"), LEARNS)
def test_learns(tmp_path: Path, algorithm: str, env: str, options: list[str], at_least: float) -> None:
    """With what `shoal train NAME ENV` uses: at its best evaluation."""
    out = tmp_path / "run"
    assert cli.main(["train", algorithm, env, *options, "--workers", "1", "--no-tensorboard", "--out", str(out)]) == 0
    assert max(e["agent_return"]["mean"] for e in log.read_evaluations(out)) >= at_least


WRONG = [
    ({"epochs": 0}, "epochs"),
    ({"clip": -0.1}, "clip"),
    ({"net": {"std": 0.0}}, "net.std"),
    ({"net": {"hidden": (), "memory": 8}}, "net.hidden"),
]


@pytest.mark.parametrize(("settings", "named"), WRONG)
def test_impossible_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ShoalError, match=named):
        build(**settings)


def test_rollouts_must_divide_into_sequences() -> None:
    algorithm = build(net={"memory": 8}, sequence=7, batch_steps=100)
    with pytest.raises(ShoalError, match="sequences of 7"):
        algorithm.experience(10)


def test_presets_are_what_their_names_say() -> None:
    for name, value, epochs in (("ia2c", "own", 1), ("maa2c", "central", 1), ("ippo", "own", 10)):
        config = ppo.PRESETS[name].config
        assert isinstance(config, Config)
        assert (config.value, config.epochs) == (value, epochs)
        assert (config.clip == 0) == (epochs == 1)


def test_happos_values_learn_once_and_every_agent_once() -> None:
    algorithm = build("happo", epochs=3)
    algorithm.update(rollout())
    assert algorithm.critic_optimizer.steps == 3
    assert all((optimizer.steps == 3).all() for optimizer in algorithm.actor_optimizers.values())


def test_happos_order_is_drawn_anew() -> None:
    algorithm = build("happo")
    assert len({str(algorithm._turns()) for _ in range(10)}) > 5


def test_happos_later_agents_learn_from_what_the_earlier_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, step, seen = build("happo", lr=0.01), PPO._step, []

    def watch(self: PPO, lesson: Any, *rest: Any, **options: Any) -> Any:
        seen.append(lesson.advantage.clone())
        return step(self, lesson, *rest, **options)

    monkeypatch.setattr(PPO, "_step", watch)
    algorithm.update(rollout())
    assert len(seen) == 7
    assert not any(torch.equal(one, two) for one, two in itertools.pairwise(seen))


def test_advantages_are_in_their_own_units_or_the_rewards() -> None:
    settings = {"gamma": 0.0, "value": "own", "reward": "own", "normalise_value": False}
    for normalise in (False, True):
        lesson = build(normalise_advantage=normalise, **settings)._study(rollout())
        plain = torch.cat([a.reward for a in rollout().groups.values()], -1) - lesson.value
        assert torch.allclose(lesson.advantage, plain, atol=1e-5) != normalise


def test_values_units_are_each_agents_and_follow_as_the_settings_say() -> None:
    norm = build("ippo", value_decay=0.5).norm
    assert norm.decay == 0.5
    assert norm.columns.tolist() == list(range(MIXED.num_agents))
    assert build("mappo").norm.columns.tolist() == [0]


def test_at_first_all_actions_are_equally_likely() -> None:
    for gain, even in ((0.01, True), (1.0, False)):
        algorithm = shoal.build("mappo", SPEC, net={"gain": gain})
        found = algorithm.probabilities(view_of(1), algorithm.initial_memory(1))
        spread = max(float(p.max() - p.min()) for p in found.values())
        assert (spread < 0.02) == even


def test_independent_agents_learn_from_their_own_rewards() -> None:
    """And teams from the mean."""
    found = {name: preset.config.reward for name, preset in ppo.PRESETS.items()}
    assert found == {"ippo": "own", "ia2c": "own", "mappo": "mean", "happo": "mean", "maa2c": "mean"}


def test_a_share_of_the_entropy_is_left() -> None:
    algorithm = build(anneal_steps=1000, entropy=0.4, entropy_end=0.25)
    for steps, entropy in ((500, 0.25), (3000, 0.1)):
        algorithm.env_steps = steps
        algorithm.update(rollout())
        assert algorithm.entropy == pytest.approx(entropy)


def test_kl_stop_looks_at_the_whole_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, calls = build(epochs=5, minibatches=2, target_kl=0.1), [0]

    def step(self: PPO, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        return {"kl": torch.tensor([0.0, 0.3][calls[0] % 2])}  # the last of an epoch has moved least

    monkeypatch.setattr(PPO, "_step", step)
    algorithm.update(rollout())
    assert calls == [2]


def test_targets_of_values_are_in_units_of_the_batch_they_are_from() -> None:
    algorithm = build(value="own", reward="own", normalise_advantage=False)
    batch = rollout()
    for agents in batch.groups.values():
        agents.reward.mul_(20).add_(100)
    lesson = algorithm._study(batch)  # of the first batch, values are in the rewards' units
    assert torch.allclose(algorithm.norm.restore(lesson.target), lesson.value + lesson.advantage, rtol=1e-4)
    assert lesson.target[lesson.counts].square().mean() < 10  # the rewards' are in the hundreds
