"""Deterministic policy gradients for many agents: IDDPG, MADDPG and MATD3.

Each agent i has an actor mu_i(o_i), which is all that acts, and a critic Q_i, which only learns. With x everything that
all agents observed (`central`, MADDPG: Lowe et al. 2017, arXiv 1706.02275, eq. 5 and 6), or only agent i's own part of
it (independent DDPG: Lillicrap et al. 2016, arXiv 1509.02971):

    y_i     = r_i + gamma (1 - terminated_i) min_k Q'_ik(x', mu'_1(o'_1), ..., mu'_N(o'_N))
    critic:   minimise  sum_k (Q_ik(x, a_1, ..., a_N) - y_i)^2
    actor:    ascend    grad_theta mu_i(o_i)  grad_a Q_i1(x, a_1, ..., a, ..., a_N) at a = mu_i(o_i)
    targets:  theta' <- tau theta + (1 - tau) theta'

The others' actions in the actor's gradient are those of the replay. MATD3 (Ackermann et al. 2019, arXiv 1910.01465)
adds TD3's three changes: the smaller of `critics=2` targets, noise on the target action, a delayed actor. Continuous
actions are tanh(mu) with Gaussian noise while exploring; discrete ones are one-hot and pass gradients by
straight-through Gumbel-softmax.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal import actions, explore, optim, tree
from shoal.algorithms import ranges
from shoal.nets import acting
from shoal.nets.conv import flat, real
from shoal.nets.dense import AgentNet
from shoal.replay import Replay
from shoal.returns import mean_weights, td_target
from shoal.types import Action, Agents, Batch, Box, Compiled, Discrete, EnvSpec, Groups, Preset, ShoalError, Tree, View

LARGEST = 4096
"""Numbers of a picture that is still read as plain numbers."""


@dataclass(frozen=True)
class Net:
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, actor and critic alike."""
    shared: bool = False
    """One set of weights for all agents of a group (told apart by an identity input) instead of one each."""


@dataclass(frozen=True)
class Config:
    central: bool = True
    """Critics see every agent's observation and action (MADDPG) rather than their own agent's only (IDDPG)."""
    critics: int = 1
    """Critics per agent; targets take the smallest (2: TD3)."""
    actor_every: int = 1
    """Critic updates for each update of the actors and the targets (2: TD3)."""
    target_noise: float = 0.0
    """Standard deviation of the noise on continuous target actions, clipped at 2.5 of it (0.2: TD3)."""
    lr: float = 1e-3
    """Learning rate of the critics, and of the actors unless actor_lr is given."""
    actor_lr: float = 0.0
    """Learning rate of the actors; 0: the same as lr."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """How far the target networks move towards the learned ones in each update."""
    noise: float = 0.1
    """Standard deviation of the exploration noise on continuous actions in [-1, 1]."""
    temperature: float = 1.0
    """Of the Gumbel-softmax through which discrete actions pass gradients."""
    output_penalty: float = 1e-3
    """Weight of the mean squared actor output (logits, or means before tanh), which keeps gradients alive."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm; 0: never."""
    batch_size: int = 64
    """Transitions in an update."""
    buffer_size: int = 100_000
    """Transitions kept in the replay."""
    update_every: int = 1
    """Environment steps (all environments together) for each update."""
    warmup: int = 1000
    """Environment steps with uniformly random actions, and before the first update."""
    net: Net = field(default_factory=Net)


class DDPG:
    """See the module's docstring. `spec` is the environment's; `seed` fixes weights, exploration and replay draws."""

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        ranges.check(config)
        _check(spec)
        self.spec, self.config, self.seed, self.device = spec, config, seed, torch.device(device)
        self.sampler = torch.Generator(self.device).manual_seed(seed)
        self.env_steps = self.updates = 0
        self.actors, self.critics = self._networks(torch.Generator().manual_seed(seed))
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        nets = (self.actors, self.critics, self.target_actors, self.target_critics)
        self.modules = [nn.ModuleDict(net).to(self.device) for net in nets]
        self.actor_optimizer = optim.Adam(self.modules[0], config.actor_lr or config.lr, config.max_grad_norm)
        self.critic_optimizer = optim.Adam(self.modules[1], config.lr, config.max_grad_norm)
        self.target_vectors = [optim.flatten(module)[0] for module in self.modules[2:]]

    def _networks(self, generator: torch.Generator) -> tuple[dict[str, AgentNet], dict[str, AgentNet]]:
        actors, critics = {}, {}
        hidden, shared = self.config.net.hidden, self.config.net.shared
        self.action_column = {}  # of a critic's input, where the group's actions begin
        obs_columns = sum(g.num_agents * g.obs_size for g in self.spec.groups.values())
        columns = obs_columns + sum(g.num_agents * g.action.size for g in self.spec.groups.values())
        for name, g in self.spec.groups.items():
            if self.config.central:
                seen, self.action_column[name] = columns, obs_columns
                obs_columns += g.num_agents * g.action.size
            else:
                seen, self.action_column[name] = g.obs_size + g.action.size, g.obs_size
            sizes = (g.obs_size, *hidden, g.action.size)
            actors[name] = AgentNet(g.num_agents, sizes, shared=shared, generator=generator)
            sizes, ensemble = (seen, *hidden, 1), self.config.critics
            critics[name] = AgentNet(g.num_agents, sizes, shared=shared, generator=generator, ensemble=ensemble)
        return actors, critics

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, g.num_agents, 0) for name, g in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        view = tree.to(view, self.device)
        chosen = {}
        for name in view.obs:
            group, legal = self.spec.groups[name], view.legal[name]
            if explore and self.env_steps < self.config.warmup:
                action = actions.random(group.action, legal, self.sampler)
            else:
                output = self.actors[name](_plain(view.obs[name]))[0]
                action = (self._explored if explore else actions.greedy)(group.action, output, legal)
            chosen[name] = action.cpu()
        if explore:
            self.env_steps += len(view.state)
        return chosen, memory

    def _explored(self, space: Action, output: Tensor, legal: Tensor) -> Tensor:
        if isinstance(space, Discrete):
            return actions.sample(space, output, legal, self.sampler)
        return explore.gaussian(output.tanh(), self.config.noise, self.sampler)

    def compiled_player(self, env: Compiled, memory: Groups, steps: int) -> acting.Player | None:
        """See `collect`."""
        if not acting.can_play(self.actors, env):
            return None
        discrete, choosers = acting.Chooser("draw"), {}
        for name, group in self.spec.groups.items():
            copies, size = (1 if self.config.net.shared else group.num_agents), group.action.size
            noisy = acting.Chooser("std", torch.full((copies, size), self.config.noise))
            choosers[name] = discrete if isinstance(group.action, Discrete) else noisy
        return acting.Player(self.actors, choosers, env, memory, steps, self._draw, None)

    def _draw(self, noise: Groups) -> float:
        """Of one step, as `act` draws it; returns whether all of it is random."""
        random = self.env_steps < self.config.warmup
        for name, numbers in noise.items():
            if isinstance(self.spec.groups[name].action, Discrete):
                numbers.uniform_(generator=self.sampler)
            elif random:
                numbers.uniform_(-1, 1, generator=self.sampler)
            else:
                numbers.normal_(generator=self.sampler)
        self.env_steps += len(numbers)
        return float(random)

    # Learning

    def experience(self, num_envs: int) -> Replay:
        return Replay(
            self.spec,
            num_envs,
            capacity=self.config.buffer_size,
            batch_size=self.config.batch_size,
            update_every=self.config.update_every,
            warmup=self.config.warmup,
            generator=torch.Generator().manual_seed(self.seed),
        )

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.updates += 1
        batch = tree.to(batch, self.device)
        joint = self._joint({n: (a.obs, self._taken(n, a)) for n, a in batch.groups.items()})
        metrics = self._update_critics(batch, joint)
        if self.updates % self.config.actor_every == 0:
            metrics |= self._update_actors(batch, joint)
            for target, learned in zip(self.target_vectors, (self.actor_optimizer, self.critic_optimizer), strict=True):
                optim.follow(target, learned.vector, self.config.tau)
        return metrics

    def _update_critics(self, batch: Batch, joint: Groups) -> dict[str, Tensor]:
        next_joint = self._joint({n: (a.next_obs, self._target_action(n, a)) for n, a in batch.groups.items()})
        losses, values = [], []
        for name, agents in batch.groups.items():
            next_q = self.target_critics[name](next_joint[name]).squeeze(-1).amin(0)
            target = td_target(agents.reward, agents.terminated, next_q, self.config.gamma)
            q, pullback = self.critics[name].linearize(joint[name])
            error, weights = q.squeeze(-1) - target, mean_weights(agents.present)  # [critics, batch, agent]
            weighted = error * weights
            pullback.weights(2 * weighted.unsqueeze(-1))
            losses.append((weighted * error).sum())
            values.append((q.squeeze(-1).mean(0) * weights).sum())
        norm = self.critic_optimizer.step()
        return {"critic_loss": sum(losses[1:], losses[0]), "q": torch.stack(values).mean(), "critic_grad_norm": norm}

    def _update_actors(self, batch: Batch, joint: Groups) -> dict[str, Tensor]:
        values = []
        for name, agents in batch.groups.items():
            output, pullback = self.actors[name].linearize(_plain(agents.obs))
            output = output[0]
            action, soft = self._action(name, output, agents.legal)
            q, critic_pullback = self.critics[name].linearize(self._with_own(name, joint[name], action))
            weights = mean_weights(agents.alive).unsqueeze(-1)
            grad_q = torch.cat([weights.unsqueeze(0), q.new_zeros(len(q) - 1, *weights.shape)])  # of the first critic
            grad_action = self._own(name, critic_pullback.input(grad_q))
            grad_output = self._action_gradient(name, action, soft, grad_action)
            penalty = 2 * self.config.output_penalty / output.shape[-1]
            pullback.weights((penalty * weights * output - grad_output).unsqueeze(0))
            values.append((q[0] * weights).sum())
        norm = self.actor_optimizer.step()
        return {"actor_q": sum(values[1:], values[0]), "actor_grad_norm": norm}

    def _joint(self, seen: dict[str, tuple[Tensor, Tensor]]) -> Groups:
        """What each group's critics see `[batch, agent, columns]`, from every group's observations and actions."""
        if not self.config.central:
            return {n: torch.cat([_plain(obs), action], -1) for n, (obs, action) in seen.items()}
        parts = [_plain(obs).flatten(1) for obs, _ in seen.values()] + [
            action.flatten(1) for _, action in seen.values()
        ]
        everything = torch.cat(parts, -1).unsqueeze(1)
        return {n: everything.expand(-1, self.spec.groups[n].num_agents, -1) for n in seen}

    def _with_own(self, name: str, joint: Tensor, action: Tensor) -> Tensor:
        """`joint` with a_i replaced by action[:, i] in what agent i's critic sees, and in nothing else."""
        joint = joint.clone(memory_format=torch.contiguous_format)
        self._own(name, joint).copy_(action)
        return joint

    def _own(self, name: str, joint: Tensor) -> Tensor:
        """Agent i's own action in what agent i's critic sees: a view `[batch, agent, size]` of `joint`.

        Of two agents with central critics, rows of `joint`, it is the marked actions:

            critic 0    all observations | [a_0] a_1
            critic 1    all observations | a_0 [a_1]
        """
        row, agent, column = joint.stride()
        size = self.spec.groups[name].action.size
        if self.config.central:
            agent += size * column  # the next critic's own action also lies further right
        start = joint.storage_offset() + self.action_column[name] * column
        return joint.as_strided((*joint.shape[:2], size), (row, agent, column), start)

    def _taken(self, name: str, agents: Agents) -> Tensor:
        """What the agents did, as critic input; nothing where an agent was not there to act."""
        return actions.encode(self.spec.groups[name].action, agents.action) * agents.present.unsqueeze(-1)

    def _target_action(self, name: str, agents: Agents) -> Tensor:
        """mu'(o') as critic input; nothing where an agent's return has ended."""
        action, _ = self._action(name, self.target_actors[name](_plain(agents.next_obs))[0], agents.next_legal)
        scale = self.config.target_noise
        if scale and isinstance(self.spec.groups[name].action, Box):
            noise = torch.empty_like(action, memory_format=explore.CONTIGUOUS).normal_(generator=self.sampler)
            noise.mul_(scale)
            action = (action + noise.clamp_(-2.5 * scale, 2.5 * scale)).clamp_(-1, 1)
        return action.masked_fill_(agents.terminated.unsqueeze(-1), 0.0)

    def _action(self, name: str, output: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
        """An actor's output as critic input, and (discrete) the soft draw that gradients go through."""
        if isinstance(self.spec.groups[name].action, Box):
            return output.tanh(), output
        noise = actions.gumbel_like(output, self.sampler)
        return actions.relax(actions.mask_logits(output, legal), noise, self.config.temperature)

    def _action_gradient(self, name: str, action: Tensor, soft: Tensor, grad: Tensor) -> Tensor:
        """Chain rule through `_action`."""
        if isinstance(self.spec.groups[name].action, Box):
            return grad * (1 - action.square())
        return actions.relax_gradient(soft, grad, self.config.temperature)

    # Saving

    def state_dict(self) -> Tree:
        return {
            "nets": [dict(module.state_dict()) for module in self.modules],
            "optimizers": [self.actor_optimizer.state_dict(), self.critic_optimizer.state_dict()],
            "sampler": self.sampler.get_state(),
            "env_steps": self.env_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Tree) -> None:
        for module, saved in zip(self.modules, state["nets"], strict=True):
            module.load_state_dict(saved)
        for optimizer, saved in zip((self.actor_optimizer, self.critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.sampler.set_state(state["sampler"])
        self.env_steps, self.updates = state["env_steps"], state["updates"]


def _check(spec: EnvSpec) -> None:
    for name, group in spec.groups.items():
        if len(group.obs_shape) == 3 and group.obs_size > LARGEST:
            raise ShoalError(
                f"observations of {name} are pictures {group.obs_shape}, and these algorithms have no convolutions: "
                f"use ippo, mappo or value decomposition, or pictures of at most {LARGEST:,} numbers"
            )


def _plain(obs: Tensor) -> Tensor:
    """`[batch, agent, *obs_shape] -> [batch, agent, columns]` float32."""
    return real(flat(obs, 2))


PRESETS = {
    "iddpg": Preset(DDPG, Config(central=False), "independent DDPG: an agent's critic sees that agent only"),
    "maddpg": Preset(DDPG, Config(), "critics see all observations and actions, actors their own"),
    "matd3": Preset(
        DDPG,
        Config(critics=2, actor_every=2, target_noise=0.2, tau=0.005),
        "MADDPG with twin critics, target smoothing and delayed actors",
    ),
}
