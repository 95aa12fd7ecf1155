"""Policies that nobody trained: `random` and `still` anywhere, `greedy` in simple_spread, `pursue` and `flee` in tag.

They read what the agents observe and nothing else, so they are yardsticks a learner could reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from shoal import actions
from shoal.types import Action, Box, EnvSpec, Groups, ShoalError, Tree, View

LOOK_AHEAD = 0.4  # seconds: an agent that coasts gets about this far, times its velocity
MOVES = 5  # of a particle agent: stay, left, right, down, up


class Scripted:
    """A memoryless policy from a function of one group's observations.

    Args:
        spec: of the environment.
        name: one of `SCRIPTS`.
        seed: for `random`.

    Raises:
        ShoalError: no such script.
    """

    def __init__(self, spec: EnvSpec, name: str, seed: int = 0) -> None:
        if name not in SCRIPTS:
            raise ShoalError(f"there is no script {name!r}; known: {', '.join(SCRIPTS)}")
        self.spec, self.script = spec, SCRIPTS[name]
        self.generator = torch.Generator().manual_seed(seed)

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, g.num_agents, 0) for name, g in self.spec.groups.items()}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        return {name: self.script(self, name, obs, view.legal[name]) for name, obs in view.obs.items()}, memory

    def state_dict(self) -> Tree:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Tree) -> None:
        self.generator.set_state(state["generator"])


def _random(policy: Scripted, group: str, obs: Tensor, legal: Tensor) -> Tensor:
    return actions.random(policy.spec.groups[group].action, legal, policy.generator)


def _still(policy: Scripted, group: str, obs: Tensor, legal: Tensor) -> Tensor:
    space = policy.spec.groups[group].action
    zeros = actions.empty(space, tuple(obs.shape[:2]))
    return actions.greedy(space, torch.zeros(*obs.shape[:2], space.size), legal) if legal.shape[-1] else zeros


def _greedy(policy: Scripted, group: str, obs: Tensor, legal: Tensor) -> Tensor:
    """Every agent goes to its landmark of the assignment with the smallest summed distance.

    Each sees everybody, so all find the same assignment. Needs simple_spread's full observation.
    """
    n = policy.spec.groups[group].num_agents
    if obs.shape[-1] != 6 * n or n > 7:
        raise ShoalError("the script greedy plays simple_spread with up to 7 agents that see everything")
    landmarks = obs[..., 4 : 4 + 2 * n].unflatten(-1, (n, 2))  # [env, agent, landmark, 2], relative
    orders = torch.tensor(list(itertools.permutations(range(n))))
    cost = landmarks.norm(dim=-1)[:, torch.arange(n), orders].sum(-1)  # [env, order]
    mine = orders[cost.argmin(1)]  # [env, agent]
    target = landmarks.gather(2, mine[:, :, None, None].expand(-1, -1, 1, 2)).squeeze(2)
    return _towards(policy.spec.groups[group].action, target, obs[..., :2])


def _tag_others(policy: Scripted, group: str, obs: Tensor) -> tuple[Tensor, int, int]:
    """Relative positions of the others in simple_tag, how many come before the good agents, how many are good."""
    try:
        chasers, runners = policy.spec.groups["adversary"], policy.spec.groups["agent"]
    except KeyError as error:
        raise ShoalError("the scripts pursue and flee play simple_tag, with groups adversary and agent") from error
    others = chasers.num_agents + runners.num_agents - 1
    good_seen = runners.num_agents - (group == "agent")
    first = obs.shape[-1] - 2 * good_seen - 2 * others
    positions = obs[..., first : first + 2 * others].unflatten(-1, (others, 2))
    return positions, chasers.num_agents - (group == "adversary"), good_seen


def _pursue(policy: Scripted, group: str, obs: Tensor, legal: Tensor) -> Tensor:
    """A chaser of simple_tag runs to the nearest good agent."""
    if group != "adversary":
        raise ShoalError(f"the script pursue plays the adversaries of simple_tag, not {group}")
    others, before, _ = _tag_others(policy, group, obs)
    return _towards(policy.spec.groups[group].action, _nearest(others[:, :, before:]), obs[..., :2])


def _flee(policy: Scripted, group: str, obs: Tensor, legal: Tensor) -> Tensor:
    """A good agent of simple_tag runs from its chasers, the nearer the more, and from the edge of the field."""
    if group != "agent":
        raise ShoalError(f"the script flee plays the good agents of simple_tag, not {group}")
    others, before, _ = _tag_others(policy, group, obs)
    chasers = others[:, :, :before]
    push = -(chasers / chasers.norm(dim=-1, keepdim=True).clamp(min=0.1) ** 3).sum(2)
    place = obs[..., 2:4]
    push = push - 20 * place.sign() * (place.abs() - 0.7).clamp(min=0)
    return _towards(policy.spec.groups[group].action, push, 0 * place)


def _nearest(positions: Tensor) -> Tensor:
    """`[env, agent, other, 2]` relative positions; the nearest's `[env, agent, 2]`."""
    index = positions.norm(dim=-1).argmin(-1)
    return positions.gather(2, index[:, :, None, None].expand(-1, -1, 1, 2)).squeeze(2)


def _towards(space: Action, target: Tensor, velocity: Tensor) -> Tensor:
    """A particle agent's action that brings it to `target` (relative), braking in time."""
    error = target - LOOK_AHEAD * velocity
    if isinstance(space, Box):  # stay, left, right, down, up; a push is the difference of two, halved
        push = (error / 0.2).clamp(-1, 1)
        move = torch.stack(
            [-torch.ones_like(push[..., 0]), -push[..., 0], push[..., 0], -push[..., 1], push[..., 1]], -1
        )
        silent = -torch.ones(*move.shape[:-1], space.size - MOVES)
        return torch.cat([move, silent], -1)
    sideways = error[..., 0].abs() > error[..., 1].abs()
    move = torch.where(sideways, torch.where(error[..., 0] > 0, 2, 1), torch.where(error[..., 1] > 0, 4, 3))
    return torch.where(error.abs().amax(-1) < 0.05, 0, move)


SCRIPTS: dict[str, Callable[[Scripted, str, Tensor, Tensor], Tensor]] = {
    "random": _random,
    "still": _still,
    "greedy": _greedy,
    "pursue": _pursue,
    "flee": _flee,
}
