"""What algorithms have in common whose agents act by values of their actions: networks, mixers, exploration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from shoal import actions, explore, rollouts, tree
from shoal.algorithms import ranges
from shoal.nets import acting, settings, together
from shoal.nets.conv import Block, Eyes, flat, real
from shoal.nets.mixers import Monotonic, Sum
from shoal.nets.normalise import ValueNorm, units
from shoal.returns import to_the_end
from shoal.threads import Crew, cores
from shoal.types import Action, Batch, Compiled, Discrete, EnvSpec, Groups, ShoalError, View


@dataclass(frozen=True)
class Net(settings.Net):
    identity: bool = True
    """Tell agents that share weights apart by a number in their input."""


@dataclass(frozen=True)
class QConfig:
    mixer: Literal["none", "sum", "monotonic"] = "none"
    """How the agents' values make the team's: not at all (IQL), added (VDN), by a monotonic network (QMIX)."""
    reward: Literal["own", "sum", "mean"] = "mean"
    """What is learned from: each agent's own reward (mixer none only), or the sum or mean of all agents' rewards."""
    normalise: bool = True
    """Learn values in units of their running mean and standard deviation."""
    lr: float = 5e-4
    """Learning rate."""
    anneal_steps: int = 0
    """Environment steps over which the learning rate falls to 0, linearly; 0: it does not."""
    gamma: float = 0.99
    """Discount."""
    epsilon_start: float = 1.0
    """Probability of a random action at first."""
    epsilon_end: float = 0.05
    """Probability of a random action after epsilon_steps."""
    epsilon_steps: int = 50_000
    """Environment steps (all environments together) over which it falls, linearly."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this norm; 0: never."""
    embed: int = 32
    """Units of the monotonic mixing network."""
    hyper: int = 64
    """Hidden units of the network that makes the mixer's weights from the state, and of weighted QMIX's Q*."""
    workers: int = 0
    """Threads that share the gradient of a batch and compiled rollouts; 0: one a core. Results do not depend on it."""
    net: Net = field(default_factory=Net)


class QAgents:
    """Agents that take the best legal action by their networks' values, and with probability epsilon a random one.

    Args:
        spec: of the environment.
        config: of the algorithm.
        seed: fixes weights and exploration.
        reads_state: whether what is learned needs the global state.

    Raises:
        ShoalError: continuous actions, or a mixer of rewards that are each agent's own.
    """

    config: QConfig

    def __init__(self, spec: EnvSpec, config: QConfig, *, seed: int, device: str, reads_state: bool) -> None:
        ranges.check(config)
        for name, group in spec.groups.items():
            if not isinstance(group.action, Discrete):
                raise ShoalError(
                    f"Q-learning needs discrete actions, and those of {name} are continuous: use mappo, maddpg or matd3"
                )
        if config.mixer != "none" and config.reward == "own":
            raise ShoalError(f"the mixer {config.mixer!r} learns one value for the team: set reward to sum or mean")
        self.spec, self.config, self.seed, self.device = spec, config, seed, torch.device(device)
        self.reads_state = reads_state
        self.sampler = torch.Generator(self.device).manual_seed(seed)
        self.env_steps = 0
        self.generator = torch.Generator().manual_seed(seed)  # of weights
        self.nets = {n: config.net.build(group, group.action.size, self.generator) for n, group in spec.groups.items()}
        self.eyes = self._eyes()
        self.mixer = self._mixer()
        self.cut = rollouts.Cut.of(self.nets.values())
        self.crew = Crew((config.workers or cores()) if self.device.type == "cpu" else 1)

    def _eyes(self) -> Eyes:
        """What the mixer sees of the state: where it is everybody's pictures, their features."""
        if self.spec.state_size or not self.reads_state:
            return Eyes((Block((self.spec.state_size,)),), self.config.net.conv, 1, self.generator)
        blocks = tuple(Block(g.obs_shape, g.num_agents) for g in self.spec.groups.values())
        return Eyes(blocks, self.config.net.conv, 1, self.generator)

    def _mixer(self) -> nn.Module:
        config = self.config
        if config.mixer == "monotonic":
            return Monotonic(self.spec.num_agents, self.eyes.size, config.embed, config.hyper, self.generator)
        return Sum() if config.mixer == "sum" else nn.Identity()

    @property
    def units(self) -> tuple[int, ...]:
        """See `ValueNorm`: those of independent agents are their networks'.

        Agents of one network that had units of their own would have different targets where they see the same.
        """
        if self.config.mixer != "none" or not self.config.normalise:
            return ()
        return units(self.spec, self.spec.num_agents, by_group=self.config.net.shared)

    def absent(self, norm: ValueNorm) -> float:
        """The value of an agent who is not there, in the networks' units: where values add up each has a share of the
        mean, and so has none who has left."""
        return norm.zero(self.spec.num_agents) if self.config.mixer == "sum" else 0.0

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        width = self.config.net.memory
        return {name: torch.zeros(num_envs, g.num_agents, width) for name, g in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        view, memory = tree.to(view, self.device), tree.to(memory, self.device)
        chosen, remembered = {}, {}
        nets = {name: self.nets[name] for name in view.obs}
        q, after = together.step(nets, {n: flat(obs, 2) for n, obs in view.obs.items()}, memory, view.hears)
        for name in view.obs:
            choose = self._explored if explore else actions.greedy
            chosen[name] = choose(self.spec.groups[name].action, q[name], view.legal[name]).cpu()
            remembered[name] = after[name].cpu()
        if explore:
            self.env_steps += len(view.state)
        return chosen, remembered

    def compiled_player(self, env: Compiled, memory: Groups, steps: int) -> acting.Player | None:
        """See `collect`."""
        if not acting.can_play(self.nets, env):
            return None
        choosers = dict.fromkeys(self.nets, acting.Chooser("greedy"))
        return acting.Player(self.nets, choosers, env, memory, steps, self._draw, self.crew)

    def _draw(self, noise: Groups) -> float:
        """Of one step, as `_explored` draws it; returns epsilon."""
        epsilon = self.epsilon
        for numbers in noise.values():
            numbers.uniform_(generator=self.sampler)
        self.env_steps += numbers.shape[1]
        return epsilon

    @property
    def epsilon(self) -> float:
        """Probability with which an agent that explores acts at random."""
        config = self.config
        return explore.linear(config.epsilon_start, config.epsilon_end, self.env_steps / max(config.epsilon_steps, 1))

    def _explored(self, space: Action, q: Tensor, legal: Tensor) -> Tensor:
        best, random = actions.greedy(space, q, legal), actions.random(space, legal, self.sampler)
        return explore.epsilon_uniform(best, random, self.epsilon, self.sampler)

    # Learning

    @property
    def lr(self) -> float:
        """The learning rate at this time."""
        if not self.config.anneal_steps:
            return self.config.lr
        return explore.linear(self.config.lr, 0.0, self.env_steps / self.config.anneal_steps)

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the mixer sees, before and after: the global state, or everybody's observations where there is none."""
        if self.spec.state_size or not self.reads_state:
            return batch.state, batch.next_state
        groups = batch.groups.values()
        return beside([real(a.obs) for a in groups]), beside([real(a.next_obs) for a in groups])

    def until_the_end(self, batch: Batch) -> Batch:
        """What independent agents learn of a batch: of a reward that all share, to the end."""
        return to_the_end(batch) if self.config.mixer == "none" and self.config.reward != "own" else batch

    def tied(self) -> list[str]:
        """See `Scalable`."""
        return self.config.net.tied() + ["mixer to sum or none"] * (self.config.mixer == "monotonic")


def look(eyes: Eyes, state: Tensor) -> Tensor:
    """`[time, batch, columns]` as the mixer sees it."""
    seen: Tensor = eyes(state.flatten(0, 1).unsqueeze(0))
    return seen.view(*state.shape[:-1], -1)


def beside(parts: list[Tensor]) -> Tensor:
    """One row `[time, batch, ...]` of every agent's columns."""
    return tree.join([part.flatten(2) for part in parts], -1)
