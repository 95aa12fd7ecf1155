"""Deterministic policy gradients for many agents: IDDPG, MADDPG and MATD3.

Each agent i has an actor mu_i(o_i), which is all that acts, and a critic, which only learns. With x everything that all
agents observed and did (`central`, Lowe et al. 2017, arXiv 1706.02275, eq. 6), or only agent i's own part of it
(independent DDPG, Lillicrap et al. 2016, arXiv 1509.02971):

    y_i     = r_i + gamma (1 - terminated_i) min_k Q'_ik(x', mu'_1(o'_1), ..., mu'_N(o'_N))
    critic:   minimise  sum_k (Q_ik(x, a_1, ..., a_N) - y_i)^2
    actor:    maximise  Q_i1(x, a_1, ..., mu_i(o_i), ..., a_N)          the others' actions from the replay
    targets:  theta' <- tau theta + (1 - tau) theta'

MATD3 (Ackermann et al. 2019, arXiv 1910.01465) adds TD3's three changes: the smaller of `critics=2` targets, noise on
the target action, a delayed actor. Discrete actions are one-hot and pass gradients by straight-through Gumbel-softmax;
continuous ones are tanh(mu) with Gaussian noise while exploring.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal import actions, explore, optim, tree
from shoal.nets.dense import AgentNet
from shoal.replay import Replay
from shoal.returns import masked_mean, td_target
from shoal.types import Action, Agents, Batch, Box, Discrete, EnvSpec, Groups, Tree, View


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


PRESETS = {
    "iddpg": Config(central=False),
    "maddpg": Config(),
    "matd3": Config(critics=2, actor_every=2, target_noise=0.2, tau=0.005),
}


SUMMARIES = {
    "iddpg": "independent deep deterministic policy gradient, one critic an agent that sees only that agent",
    "maddpg": "critics that see all observations and actions, actors that see their own",
    "matd3": "MADDPG with twin critics, target smoothing and delayed actors",
}


class DDPG:
    """See the module's docstring. `spec` is the environment's; `seed` fixes weights, exploration and replay draws."""

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        self.spec, self.config, self.seed, self.device = spec, config, seed, torch.device(device)
        self.sampler = torch.Generator(self.device).manual_seed(seed)
        self.env_steps = self.updates = 0
        joint = sum(g.num_agents * (g.obs_size + g.action.size) for g in spec.groups.values())
        init = torch.Generator().manual_seed(seed)
        actors, critics = {}, {}
        for name, group in spec.groups.items():
            agents, hidden, out = group.num_agents, config.net.hidden, group.action.size
            seen = joint if config.central else group.obs_size + out
            actors[name] = AgentNet(agents, (group.obs_size, *hidden, out), shared=config.net.shared, generator=init)
            critics[name] = AgentNet(
                agents, (seen, *hidden, 1), shared=config.net.shared, generator=init, ensemble=config.critics
            )
        self.actors = nn.ModuleDict(actors).to(self.device)
        self.critics = nn.ModuleDict(critics).to(self.device)
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.actor_optimizer = optim.adam(self.actors.parameters(), config.actor_lr or config.lr)
        self.critic_optimizer = optim.adam(self.critics.parameters(), config.lr)

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, g.num_agents, 0) for name, g in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        chosen = {}
        view = tree.to(view, self.device)
        for name, group in self.spec.groups.items():
            legal = view.legal[name]
            if explore and self.env_steps < self.config.warmup:
                chosen[name] = actions.random(group.action, legal, self.sampler)
                continue
            output = self.actors[name](_flat(view.obs[name]))
            chosen[name] = (self._explored if explore else actions.greedy)(group.action, output, legal)
        if explore:
            self.env_steps += len(view.state)
        return chosen, memory

    def _explored(self, space: Action, output: Tensor, legal: Tensor) -> Tensor:
        if isinstance(space, Discrete):
            noise = actions.gumbel_like(output, self.sampler)
            return actions.greedy(space, actions.mask_logits(output, legal) + noise, legal)
        return explore.gaussian(output.tanh(), self.config.noise, self.sampler)

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

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.updates += 1
        batch = tree.to(batch, self.device)
        encoded = {n: self._encode(n, agents) for n, agents in batch.groups.items()}
        metrics = self._update_critics(batch, encoded)
        if self.updates % self.config.actor_every == 0:
            metrics |= self._update_actors(batch, encoded)
            optim.follow(self.target_actors, self.actors, self.config.tau)
            optim.follow(self.target_critics, self.critics, self.config.tau)
        return metrics

    def _update_critics(self, batch: Batch, encoded: Groups) -> dict[str, Tensor]:
        with torch.no_grad():
            next_obs = {n: a.next_obs for n, a in batch.groups.items()}
            next_action = {n: self._target_action(n, agents) for n, agents in batch.groups.items()}
        obs = {n: a.obs for n, a in batch.groups.items()}
        losses, values = [], []
        for name, agents in batch.groups.items():
            with torch.no_grad():
                next_q = self._q(self.target_critics, name, next_obs, next_action).amin(0)
                target = td_target(agents.reward, agents.terminated, next_q, self.config.gamma)
            q = self._q(self.critics, name, obs, encoded)
            losses.append(torch.stack([masked_mean((one - target).square(), agents.alive) for one in q]).sum())
            values.append(q.detach().mean())
        loss = torch.stack(losses).sum()
        norm = optim.step(self.critic_optimizer, loss, self.config.max_grad_norm)
        return {"critic_loss": loss.detach(), "q": torch.stack(values).mean(), "critic_grad_norm": norm}

    def _update_actors(self, batch: Batch, encoded: Groups) -> dict[str, Tensor]:
        obs = {n: a.obs for n, a in batch.groups.items()}
        losses = []
        for name, agents in batch.groups.items():
            output = self.actors[name](_flat(agents.obs))
            own = self._differentiable_action(name, output, agents.legal)
            q = self._q(self.critics, name, obs, encoded, own)[0]
            penalty = masked_mean(output.square(), agents.alive)
            losses.append(self.config.output_penalty * penalty - masked_mean(q, agents.alive))
        loss = torch.stack(losses).sum()
        norm = optim.step(self.actor_optimizer, loss, self.config.max_grad_norm)
        return {"actor_loss": loss.detach(), "actor_grad_norm": norm}

    def _q(self, critics: nn.ModuleDict, name: str, obs: Groups, action: Groups, own: Tensor | None = None) -> Tensor:
        """Q of the group's agents `[critics, batch, agent]`; with `own` `[batch, agent, size]`, agent i's critic sees
        own[i] in the place of agent i's action and the given actions in all other places."""
        if not self.config.central:
            x = torch.cat([_flat(obs[name]), action[name] if own is None else own], -1)
        else:
            agents = self.spec.groups[name].num_agents
            parts = [_flat(obs[n]).flatten(1) for n in obs]
            if own is None:
                parts += [action[n].flatten(1) for n in action]
                x = torch.cat(parts, -1).unsqueeze(1).expand(-1, agents, -1)
            else:
                mine = torch.eye(agents, dtype=torch.bool, device=own.device)[:, :, None]
                mixed = {n: a.unsqueeze(1).expand(-1, agents, -1, -1) for n, a in action.items()}
                mixed[name] = torch.where(mine, own.unsqueeze(1), mixed[name])
                parts = [part.unsqueeze(1).expand(-1, agents, -1) for part in parts]
                x = torch.cat(parts + [a.flatten(2) for a in mixed.values()], -1)
        q: Tensor = critics[name](x).squeeze(-1)
        return q if self.config.critics > 1 else q.unsqueeze(0)

    def _encode(self, name: str, agents: Agents) -> Tensor:
        """What the agents did, as critic input; nothing where an agent was not there to act."""
        return actions.encode(self.spec.groups[name].action, agents.action) * agents.alive.unsqueeze(-1)

    def _target_action(self, name: str, agents: Agents) -> Tensor:
        output = self.target_actors[name](_flat(agents.next_obs))
        action = self._differentiable_action(name, output, agents.next_legal)
        scale = self.config.target_noise
        if scale and isinstance(self.spec.groups[name].action, Box):
            noise = torch.empty_like(action).normal_(generator=self.sampler).mul_(scale)
            action = (action + noise.clamp_(-2.5 * scale, 2.5 * scale)).clamp_(-1, 1)
        return action.masked_fill_(agents.terminated.unsqueeze(-1), 0.0)

    def _differentiable_action(self, name: str, output: Tensor, legal: Tensor) -> Tensor:
        if isinstance(self.spec.groups[name].action, Box):
            return output.tanh()
        noise = actions.gumbel_like(output, self.sampler)
        return actions.relax(actions.mask_logits(output, legal), noise, self.config.temperature)

    # Saving

    def _modules(self) -> dict[str, nn.ModuleDict]:
        return {
            "actors": self.actors,
            "critics": self.critics,
            "target_actors": self.target_actors,
            "target_critics": self.target_critics,
        }

    def state_dict(self) -> Tree:
        return {
            "nets": {name: dict(module.state_dict()) for name, module in self._modules().items()},
            "actor_optimizer": optim.state_dict(self.actor_optimizer),
            "critic_optimizer": optim.state_dict(self.critic_optimizer),
            "sampler": self.sampler.get_state(),
            "env_steps": self.env_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Tree) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["nets"][name])
        optim.load_state_dict(self.actor_optimizer, state["actor_optimizer"])
        optim.load_state_dict(self.critic_optimizer, state["critic_optimizer"])
        self.sampler.set_state(state["sampler"])
        self.env_steps, self.updates = state["env_steps"], state["updates"]


BUILD = DDPG


def _flat(obs: Tensor) -> Tensor:
    """`[batch, agent, *obs_shape] -> [batch, agent, features]`."""
    return obs.flatten(2).to(torch.float32)
