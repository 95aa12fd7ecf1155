"""The DDPG family: its updates against the same mathematics written plainly, one agent at a time, with autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal import tree
from shoal.algorithms.ddpg import DDPG
from shoal.replay import allocate
from shoal.types import Batch, Box, Discrete, EnvSpec, GroupSpec

SPEC = EnvSpec(
    {
        "runner": GroupSpec(("runner_0", "runner_1"), (3,), Box(2)),
        "caller": GroupSpec(("caller_0", "caller_1", "caller_2"), (4,), Discrete(3)),
    }
)
BOXES = EnvSpec({n: GroupSpec(g.agents, g.obs_shape, Box(2)) for n, g in SPEC.groups.items()})


def random_batch(spec: EnvSpec, size: int = 9, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    batch = allocate(spec, (size,), {})
    for name, agents in batch.groups.items():
        for tensor in (agents.obs, agents.next_obs, agents.reward):
            tensor.normal_(generator=g)
        action = spec.groups[name].action
        if isinstance(action, Box):
            agents.action.uniform_(-1, 1, generator=g)
        else:
            agents.action.copy_(torch.randint(action.size, agents.action.shape, generator=g))
        agents.present.copy_(torch.rand(agents.alive.shape, generator=g) < 0.8)
        agents.alive.copy_(agents.present & (torch.rand(agents.alive.shape, generator=g) < 0.8))
        agents.terminated.copy_(torch.rand(agents.terminated.shape, generator=g) < 0.3)
    return batch


def build(name: str, spec: EnvSpec, **settings: object) -> DDPG:
    algorithm = shoal.build(name, spec, max_grad_norm=0.0, output_penalty=0.01, **settings)
    assert isinstance(algorithm, DDPG)
    for k, vector in enumerate(algorithm.target_vectors):  # unlike the learned networks, as after the first update
        vector.add_(0.1 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(k)))
    return algorithm


def plain(net: nn.Module, agent: int, x: Tensor, copy_: int = 0) -> Tensor:
    """Agent `agent`'s own perceptron."""
    h = x
    for k, (weight, bias) in enumerate(net.mlp.layers):
        row = copy_ * net.num_agents + agent
        h = h @ weight[row] + bias[row]
        h = h.relu() if k < len(net.mlp.layers) - 1 else h
    return h


@pytest.mark.parametrize("name", ["iddpg", "maddpg", "matd3"])
def test_update_is_the_papers_equations(name: str) -> None:
    """All actions continuous, no target noise: everything is deterministic, so gradients must agree exactly."""
    algorithm = build(name, BOXES, target_noise=0.0, actor_every=1)
    reference = copy.deepcopy(algorithm)
    batch, config = random_batch(BOXES), algorithm.config
    algorithm.update(batch)

    def critic_input(name_: str, i: int, obs: dict[str, Tensor], act: dict[str, Tensor]) -> Tensor:
        if not config.central:
            return torch.cat([obs[name_][:, i], act[name_][:, i]], -1)
        return torch.cat([*(o.flatten(1) for o in obs.values()), *(a.flatten(1) for a in act.values())], -1)

    obs = {n: a.obs for n, a in batch.groups.items()}
    next_obs = {n: a.next_obs for n, a in batch.groups.items()}
    taken = {n: a.action * a.present[..., None] for n, a in batch.groups.items()}
    next_act = {}
    for n, a in batch.groups.items():
        each = [plain(reference.target_actors[n], i, a.next_obs[:, i]).tanh() for i in range(a.obs.shape[1])]
        next_act[n] = torch.stack(each, 1) * ~a.terminated[..., None]

    critic_loss = torch.zeros(())
    for n, a in batch.groups.items():
        for i in range(a.obs.shape[1]):
            following = critic_input(n, i, next_obs, next_act)
            copies = range(config.critics)
            q_next = torch.stack([plain(reference.target_critics[n], i, following, k) for k in copies]).amin(0)[:, 0]
            y = (a.reward[:, i] + config.gamma * q_next * ~a.terminated[:, i]).detach()
            for k in copies:
                q = plain(reference.critics[n], i, critic_input(n, i, obs, taken), k)[:, 0]
                critic_loss = critic_loss + ((q - y).square() * a.present[:, i]).sum() / a.present.sum()
    parameters = list(reference.modules[1].parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(critic_loss, parameters)])
    assert torch.allclose(algorithm.critic_optimizer.grad, expected, atol=1e-6)

    # the actor's gradient is taken through the critic that has just been updated
    reference.modules[1].load_state_dict(algorithm.modules[1].state_dict())
    actor_loss = torch.zeros(())
    for n, a in batch.groups.items():
        for i in range(a.obs.shape[1]):
            output = plain(reference.actors[n], i, a.obs[:, i])
            mixed = {m: t.clone() for m, t in taken.items()}
            mixed[n][:, i] = output.tanh()
            q = plain(reference.critics[n], i, critic_input(n, i, obs, mixed))[:, 0]
            loss = config.output_penalty * output.square().mean(-1) - q
            actor_loss = actor_loss + (loss * a.alive[:, i]).sum() / a.alive.sum()
    parameters = list(reference.modules[0].parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(actor_loss, parameters)])
    assert expected.abs().max() > 1e-4
    assert torch.allclose(algorithm.actor_optimizer.grad, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["iddpg", "maddpg", "matd3"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_actor_and_critic_learns(name: str, shared: bool) -> None:
    """Mixed continuous and discrete groups. (The tutorial's actors never got a gradient.)"""
    algorithm = build(name, SPEC, actor_every=1, net={"shared": shared})
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in algorithm.modules]
    for seed in range(3):
        algorithm.update(random_batch(SPEC, seed=seed))
    for module, old in zip(algorithm.modules, before, strict=True):
        for key, value in module.state_dict().items():
            if "identity" not in key:
                assert (value != old[key]).flatten(1).any(1).all(), key  # every agent's


def test_discrete_actors_climb_their_critic() -> None:
    """With a critic that has learned r = [a = 2], straight-through gradients make action 2 the greedy one."""
    spec = EnvSpec({"agent": GroupSpec(("a", "b"), (2,), Discrete(3))})
    algorithm = build("maddpg", spec, lr=3e-3, gamma=0.0)
    for seed in range(400):
        batch = random_batch(spec, size=64, seed=seed)
        agents = batch.groups["agent"]
        agents.reward.copy_((agents.action == 2).float())
        agents.alive.fill_(True)
        agents.present.fill_(True)
        algorithm.update(batch)
    view = shoal.View({"agent": torch.randn(50, 2, 2)}, {"agent": torch.zeros(50, 2, 0).bool()}, torch.zeros(50, 0))
    chosen, _ = algorithm.act(view, algorithm.initial_memory(50), explore=False)
    assert (chosen["agent"] == 2).all()


def test_critics_are_told_apart_by_reward() -> None:
    """Agent i's critic learns agent i's reward. (The tutorial trained one critic, on agent 0's.)"""
    spec = EnvSpec({"agent": GroupSpec(("a", "b"), (2,), Box(1))})
    algorithm = build("maddpg", spec, lr=1e-2, gamma=0.0)
    for seed in range(300):
        batch = random_batch(spec, size=32, seed=seed)
        batch.groups["agent"].alive.fill_(True)
        batch.groups["agent"].present.fill_(True)
        batch.groups["agent"].reward.copy_(torch.tensor([1.0, -1.0]).expand(32, 2))
        algorithm.update(batch)
    joint = algorithm._joint({"agent": (batch.groups["agent"].obs, batch.groups["agent"].action)})["agent"]
    q = algorithm.critics["agent"](joint)[0, :, :, 0].mean(0)
    assert q.tolist() == pytest.approx([1.0, -1.0], abs=0.1)


def test_exploring_varies_and_greedy_does_not() -> None:
    algorithm = build("maddpg", SPEC, warmup=0, noise=0.3)
    view = shoal.View(
        {n: torch.randn(1, g.num_agents, *g.obs_shape).expand(200, -1, -1) for n, g in SPEC.groups.items()},
        {n: torch.zeros(200, g.num_agents, 0).bool() for n, g in SPEC.groups.items()},
        torch.zeros(200, 0),
    )
    memory = algorithm.initial_memory(200)
    state = algorithm.sampler.get_state()
    greedy, _ = algorithm.act(view, memory, explore=False)
    assert torch.equal(state, algorithm.sampler.get_state())
    assert (greedy["runner"] == greedy["runner"][0]).all()
    assert not torch.equal(greedy["runner"][0, 0], greedy["runner"][0, 1])  # own actors, not agent 0's for all
    explored, _ = algorithm.act(view, memory, explore=True)
    assert (explored["runner"] - greedy["runner"]).std().item() == pytest.approx(0.3, rel=0.2)
    assert len(explored["caller"][:, 0].unique()) > 1


def test_warmup_is_uniform() -> None:
    algorithm = build("maddpg", SPEC, warmup=10_000)
    view = shoal.View(
        {n: torch.zeros(2000, g.num_agents, *g.obs_shape) for n, g in SPEC.groups.items()},
        {n: torch.zeros(2000, g.num_agents, 0).bool() for n, g in SPEC.groups.items()},
        torch.zeros(2000, 0),
    )
    chosen, _ = algorithm.act(view, algorithm.initial_memory(2000), explore=True)
    assert chosen["runner"].mean().abs() < 0.05
    assert torch.bincount(chosen["caller"].flatten()).float().div(6000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_illegal_actions_are_never_taken() -> None:
    spec = EnvSpec({"agent": GroupSpec(("a",), (2,), Discrete(4), masked=True)})
    algorithm = build("maddpg", spec, warmup=100)
    legal = torch.tensor([[[True, False, False, True]]]).expand(150, 1, 4)
    view = shoal.View({"agent": torch.randn(150, 1, 2)}, {"agent": legal}, torch.zeros(150, 0))
    for explore in (True, True, False):  # uniform, Gumbel, greedy
        chosen, _ = algorithm.act(view, algorithm.initial_memory(150), explore=explore)
        assert set(chosen["agent"].unique().tolist()) <= {0, 3}


def test_state_continues_identically() -> None:
    one, two = build("matd3", SPEC), build("matd3", SPEC, seed=9)
    for seed in range(3):
        one.update(random_batch(SPEC, seed=seed))
    two.load_state_dict(tree.map(torch.clone, one.state_dict()))
    for algorithm in (one, two):
        for seed in range(3, 6):
            algorithm.update(random_batch(SPEC, seed=seed))
    for a, b in zip(tree.leaves(one.state_dict()), tree.leaves(two.state_dict()), strict=True):
        assert torch.equal(a, b)


def test_actors_and_targets_move_with_every_second_update_of_the_critics() -> None:
    """TD3's delay; and then the targets go a share tau of the way."""
    algorithm = build("matd3", SPEC, actor_every=2, tau=0.25)
    optimizers = algorithm.actor_optimizer, algorithm.critic_optimizer
    for update in range(1, 5):
        learned = [optimizer.vector.clone() for optimizer in optimizers]
        targets = [vector.clone() for vector in algorithm.target_vectors]
        algorithm.update(random_batch(SPEC, seed=update))
        late = update % 2 == 0
        assert [not torch.equal(o.vector, old) for o, old in zip(optimizers, learned, strict=True)] == [late, True]
        for vector, old, optimizer in zip(algorithm.target_vectors, targets, optimizers, strict=True):
            assert torch.allclose(vector, old + 0.25 * late * (optimizer.vector - old), atol=1e-6)


def test_target_actions_are_smoothed_by_clipped_noise() -> None:
    algorithm, agents = build("matd3", BOXES, target_noise=0.2), random_batch(BOXES, 5000).groups["runner"]
    agents.next_obs.zero_()
    agents.terminated.fill_(False)
    noise = algorithm._target_action("runner", agents) - algorithm.target_actors["runner"](agents.next_obs)[0].tanh()
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert noise.abs().max().item() == pytest.approx(0.5, abs=1e-5)  # 2.5 deviations


def test_critics_are_never_shown_illegal_actions_of_actors() -> None:
    """Nor those that were legal before the step."""
    spec = EnvSpec({"agent": GroupSpec(("a", "b"), (2,), Discrete(4), masked=True)})
    algorithm, agents = build("maddpg", spec), random_batch(spec, 300).groups["agent"]
    agents.terminated.fill_(False)
    agents.legal[..., :2], agents.next_legal[..., 2:] = True, True
    following = algorithm._target_action("agent", agents)
    now = algorithm._action("agent", algorithm.actors["agent"](agents.obs)[0], agents.legal)[0]
    for chosen, legal in ((following, agents.next_legal), (now, agents.legal)):
        assert torch.equal(chosen.sum(-1), torch.ones(300, 2))
        assert not chosen[~legal].any()
        assert (chosen.sum((0, 1)) > 0).sum() == 2  # each of the two legal ones is drawn


def test_soft_draws_have_the_settings_temperature() -> None:
    """At half the temperature, squares of what they are at 1."""
    logits, none = torch.randn(20, 3, 3), torch.zeros(20, 3, 0, dtype=torch.bool)
    soft, sharp = (build("maddpg", SPEC, temperature=t)._action("caller", logits, none)[1] for t in (1.0, 0.5))
    assert torch.allclose(sharp, soft.square() / soft.square().sum(-1, keepdim=True), atol=1e-5)


def test_discrete_actions_are_drawn_where_critics_see_them() -> None:
    """Of the actors' probabilities, not their favourites only: the same observations, unlike actions."""
    algorithm, agents = build("maddpg", SPEC), random_batch(SPEC, 3000).groups["caller"]
    agents.next_obs.zero_()
    agents.terminated.fill_(False)
    share = algorithm._target_action("caller", agents).mean(0)
    expected = algorithm.target_actors["caller"](agents.next_obs[:1])[0, 0].softmax(-1)
    assert torch.allclose(share, expected, atol=0.04)
