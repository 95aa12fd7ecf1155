"""An algorithm of your own: REINFORCE with a baseline (Williams 1992), agents of a group share a network.

shoal train examples/own_algorithm.py:reinforce mpe/simple_spread --num-envs 64 --total-steps 300000
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal import actions, optim
from shoal.nets import settings
from shoal.nets.conv import flat
from shoal.replay import Fresh
from shoal.returns import lambda_return, mean_weights
from shoal.types import Batch, Discrete, EnvSpec, Groups, Preset, ShoalError, Tree, View


@dataclass(frozen=True)
class Config:
    lr: float = 3e-3
    """Learning rate."""
    gamma: float = 0.95
    """Discount."""
    batch_steps: int = 1600
    """Environment steps (all environments together) that are played, then learned from once."""
    net: settings.Net = field(default_factory=settings.Net)


class Reinforce:
    """`spec` says which groups of agents there are, what they see and can do; `seed` fixes weights and draws."""

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        if device != "cpu" or config.net.memory or config.net.comm != "none":
            raise ShoalError("this example lives on the CPU, remembers nothing and does not talk")
        if not all(isinstance(group.action, Discrete) for group in spec.groups.values()):
            raise ShoalError("this example needs discrete actions")
        self.spec, self.config = spec, config
        weights = torch.Generator().manual_seed(seed)
        self.nets = {name: config.net.build(group, group.action.size, weights) for name, group in spec.groups.items()}
        self.module = nn.ModuleDict(self.nets)
        self.optimizer = optim.Adam(self.module, config.lr, max_grad_norm=10.0)
        self.sampler = torch.Generator().manual_seed(seed)

    # Playing: `View` holds tensors `[env, agent, ...]` by group

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, group.num_agents, 0) for name, group in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        chosen = {}
        for name, obs in view.obs.items():
            space, logits = self.spec.groups[name].action, self.nets[name](flat(obs, 2))[0]
            if explore:
                chosen[name] = actions.sample(space, logits, view.legal[name], self.sampler)
            else:
                chosen[name] = actions.greedy(space, logits, view.legal[name])
        return chosen, {name: memory[name] for name in view.obs}

    # Learning: `Batch` holds tensors `[time, env, agent, ...]` by group

    def experience(self, num_envs: int) -> Fresh:
        """What is played is learned from once, a rollout at a time; a `Replay` would keep it."""
        return Fresh(self.spec, num_envs, max(self.config.batch_steps // num_envs, 1))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        losses = []
        for name, agents in batch.groups.items():
            nothing = torch.zeros_like(agents.reward)  # is known of what comes after the rollout, or a time limit
            ended = batch.ended.unsqueeze(-1)
            returns = lambda_return(agents.reward, agents.terminated, ended, nothing, self.config.gamma, lam=1.0)
            weights = mean_weights(agents.alive)  # who has left, or waits for its turn, has nothing to learn
            advantage = returns - (returns * weights).sum()
            advantage /= (advantage.square() * weights).sum().sqrt() + 1e-6
            logits = self.nets[name](flat(agents.obs, 3))[0]
            space = self.spec.groups[name].action
            log_prob, _ = actions.likelihood(space, logits, agents.action, agents.legal)
            losses.append(-(log_prob * advantage * weights).sum())
        loss = torch.stack(losses).sum()
        grads = torch.autograd.grad(loss, self.optimizer.parameters)
        self.optimizer.grad.copy_(self.optimizer.join(grads))
        return {"loss": loss.detach(), "grad_norm": self.optimizer.step()}

    # Saving: tensors and plain numbers, in dicts and lists

    def state_dict(self) -> Tree:
        return {
            "nets": dict(self.module.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.get_state(),
        }

    def load_state_dict(self, state: Tree) -> None:
        self.module.load_state_dict(state["nets"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.set_state(state["sampler"])


PRESETS = {"reinforce": Preset(Reinforce, Config(), "REINFORCE with a baseline")}
