"""Proximal policy optimisation for many agents: IPPO, MAPPO and HAPPO; with one epoch and no clipping, A2C.

Each agent i has a policy pi_i(a | o_i). Its advantages A_i are estimated (GAE) with a value that sees

    own         what the agent sees (IPPO: de Witt et al. 2020, arXiv 2011.09533)
    central     the global state, once for the team (MAPPO: Yu et al. 2022, arXiv 2103.01955)
    agent       the global state and what the agent sees (MAPPO's "agent-specific" state)

With rho = pi_i(a_i | o_i) / pi_i^old(a_i | o_i), learning maximises (Schulman et al. 2017, arXiv 1707.06347, eq. 7)

    E[min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i)] + entropy * H(pi_i)

and the values minimise the Huber error to A + V^old. HAPPO (Kuba et al. 2022, arXiv 2109.11251) lets agents learn one
after the other, in random order; the advantage of each is multiplied with the ratios of those that have learned before,

    M_i = A prod_{j before i} pi_j^new(a_j | o_j) / pi_j^old(a_j | o_j)

so that no agent's step undoes another's. Agents with memory learn on sequences that start with the memory they had.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal import actions, explore, optim, rollouts, surrogate, tree
from shoal.algorithms import ranges
from shoal.nets import acting, settings, together
from shoal.nets.conv import Block, flat, real
from shoal.nets.dense import AgentNet, orthogonal
from shoal.nets.mlp import ALL
from shoal.nets.normalise import ValueNorm, units
from shoal.replay import Fresh
from shoal.returns import gae, mean_weights, outcome, to_the_end
from shoal.threads import Crew, cores, lend
from shoal.types import Batch, Box, Compiled, EnvSpec, Groups, GroupSpec, Preset, ShoalError, Tree, View

TEAM = "team"  # the central critic's name, where the others have their group's
Turn = dict[str, slice]
"""The agents that learn together: where they stand in their group."""


@dataclass(frozen=True)
class Net(settings.Net):
    orthogonal: bool = True
    """Draw initial weights orthogonal, with biases 0."""
    gain: float = 0.01
    """Scale of the policy's last layer at first (with orthogonal): small, so that all actions start equally likely."""
    std: float = 0.5
    """Standard deviation of continuous actions at first."""
    std_of_state: bool = False
    """The standard deviation depends on what the agent sees; without, it is one number for each action."""


@dataclass(frozen=True)
class Config:
    value: Literal["own", "central", "agent"] = "central"
    """What values see: what the agent sees, the global state, or both."""
    reward: Literal["own", "sum", "mean"] = "mean"
    """What is learned from: each agent's own reward, or the sum or mean of all agents' rewards."""
    sequential: bool = False
    """Agents learn one after the other (HAPPO) instead of all at once."""
    batch_steps: int = 3200
    """Environment steps (all environments together) that are played, then learned from."""
    epochs: int = 10
    """Times that each step is learned from."""
    minibatches: int = 1
    """Parts of a batch, a gradient step each."""
    sequence: int = 0
    """Steps through which memory is learned; 0: all of a rollout."""
    lr: float = 7e-4
    """Learning rate of the policies."""
    critic_lr: float = 7e-4
    """Learning rate of the values."""
    anneal_steps: int = 0
    """Environment steps over which learning rates and entropy fall, linearly; 0: they do not."""
    lr_end: float = 0.0
    """Fraction of the learning rates that is left then."""
    entropy: float = 0.01
    """Weight of the policies' entropy."""
    entropy_end: float = 0.0
    """Fraction of it that is left after anneal_steps."""
    gamma: float = 0.99
    """Discount."""
    lam: float = 0.95
    """Lambda of the advantage estimates: 0 trusts the values, 1 the returns."""
    clip: float = 0.2
    """How far a step's probability may move before it is learned from no longer; 0: no limit."""
    target_kl: float = 0.0
    """Epochs end, those of the values too, when the policy has moved this far (KL divergence from the one that played);
    0: never."""
    value_clip: float = 0.0
    """How far values may move from what they were, in the values' own units; 0: no limit."""
    huber: float = 10.0
    """Where errors of values turn from squared to absolute, in the values' own units; 0: always squared."""
    normalise_value: bool = True
    """Learn values in units of their running mean and standard deviation."""
    value_decay: float = 0.99
    """Of these, from batch to batch."""
    normalise_advantage: bool = True
    """Learn from advantages in units of the group's standard deviation, around their mean."""
    max_grad_norm: float = 10.0
    """Gradients of a group's policies (sequential: of each), and of all values, are scaled down to this norm;
    0: never."""
    workers: int = 0
    """Threads that share the gradient of a batch and compiled rollouts; 0: one a core. Results do not depend on it."""
    net: Net = field(default_factory=Net)


class Actor(nn.Module):
    """A group's policies: `AgentNet`, and the standard deviation of its continuous actions."""

    def __init__(self, group: GroupSpec, net: Net, generator: torch.Generator) -> None:
        super().__init__()
        self.box, self.std_of_state = isinstance(group.action, Box), net.std_of_state
        size = group.action.size
        self.net = net.build(group, size * (1 + (self.box and net.std_of_state)), generator)
        if net.orthogonal:
            orthogonal(self.net, net.gain, generator)
        if self.box:
            copies = 1 if net.shared else group.num_agents
            self.log_std = nn.Parameter(torch.full((copies, size), math.log(net.std)))

    def spread(self, out: Tensor, agents: slice = ALL) -> Tensor:
        """From the net's output to what `actions` reads: logits, or means and log standard deviations."""
        if not self.box:
            return out
        log_std = self.log_std if self.net.shared else self.log_std[agents]
        mean, shift = out.chunk(2, -1) if self.std_of_state else (out, torch.zeros_like(out))
        return torch.cat([mean, actions.hold(log_std + shift)], -1)

    def chooser(self) -> acting.Chooser:
        """How these policies' actions are drawn."""
        return acting.Chooser("log_std", self.log_std, self.std_of_state) if self.box else acting.Chooser("draw")


@dataclass
class Lesson:
    """What a batch teaches: `[time, batch, ...]`, its columns the agents of all groups in turn."""

    obs: Groups
    legal: Groups
    memory: Groups
    action: Groups
    ended: Tensor
    hears: Tensor
    alive: Tensor
    """`[time, batch, column]`."""
    state: Tensor
    """The global state, where a value sees it."""
    past: Groups
    """Memory before every step, which values see too; `memory` is that before a sequence."""
    counts: Tensor
    """Which values have a target, `[time, batch, value]`."""
    log_prob: Tensor
    """Of the policies that played, `[time, batch, column]`; width 0: not asked for yet."""
    value: Tensor
    """What the critics said when this was played, in the units of that time, `[time, batch, value]`."""
    advantage: Tensor
    """`[time, batch, column]`."""
    target: Tensor
    """Of the values, like these."""


class PPO:
    """See the module's docstring. `spec` is the environment's; `seed` fixes weights, draws and orders."""

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        ranges.check(config)
        _check(config)
        self.spec, self.config, self.device = spec, config, torch.device(device)
        self.sampler = torch.Generator(self.device).manual_seed(seed)
        self.shuffler = torch.Generator().manual_seed(seed)
        self.env_steps = 0
        self.start = dict(zip(spec.groups, _starts(spec), strict=True))  # a group's first column
        self.num_values = spec.num_agents if config.value != "central" or config.reward == "own" else 1
        generator = torch.Generator().manual_seed(seed)
        actors = {name: Actor(group, config.net, generator) for name, group in spec.groups.items()}
        critics = {name: self._critic(*inputs, generator) for name, inputs in self._critic_inputs().items()}
        self.actors, self.critics = actors, critics
        self.nets = {name: actor.net for name, actor in actors.items()}
        self.modules = [nn.ModuleDict(nets).to(self.device) for nets in (actors, critics)]
        columns = units(spec, self.num_values, by_group=config.net.pool != "none")
        self.norm = ValueNorm(config.value_decay, columns).to(self.device)
        self.actor_optimizers = {
            name: optim.Adam(actor, config.lr, config.max_grad_norm, spec.groups[name].num_agents * config.sequential)
            for name, actor in actors.items()
        }
        self.critic_optimizer = optim.Adam(self.modules[1], config.critic_lr, config.max_grad_norm)
        self.cut = rollouts.Cut.of([*self.nets.values(), *critics.values()])
        if config.sequential:  # one agent at a time has too little to learn for two threads
            self.cut = replace(self.cut, least=self.cut.most)
        self.crew = Crew((config.workers or cores()) if self.device.type == "cpu" else 1)
        lend(self.crew, *self.modules)

    @property
    def _sees_state(self) -> bool:
        """Whether values see the environment's global state; else, everybody's observations."""
        return self.spec.state_size > 0 and self.config.net.pool == "none"

    def _critic_inputs(self) -> dict[str, tuple[int, tuple[Block, ...], int]]:
        """Agents, inputs and outputs of each critic."""
        spec, value, memory = self.spec, self.config.value, self.config.net.memory
        own = {name: (Block(g.obs_shape, parts=g.parts), Block((memory,))) for name, g in spec.groups.items()}
        everything = tuple(Block(g.obs_shape, g.num_agents, g.parts, team=True) for g in spec.groups.values())
        state = (Block((spec.state_size,)),) if self._sees_state else everything
        if value == "central":
            memories = tuple(Block((memory,), g.num_agents, team=True) for g in spec.groups.values())
            return {TEAM: (1, (*state, *memories), self.num_values)}
        before = state if value == "agent" else ()
        return {name: (g.num_agents, (*before, *own[name]), 1) for name, g in spec.groups.items()}

    def _critic(self, agents: int, inputs: tuple[Block, ...], outputs: int, generator: torch.Generator) -> AgentNet:
        net = self.config.net
        sizes = (sum(block.size for block in inputs), *net.hidden, outputs)
        critic = AgentNet(
            agents, sizes, shared=net.shared, identity=net.identity, generator=generator, blocks=inputs, conv=net.conv,
            pool=net.pool, norm=net.norm == "layer",
        )  # fmt: skip
        if net.orthogonal:
            orthogonal(critic, 1.0, generator)
        return critic

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        width = self.config.net.memory
        return {name: torch.zeros(num_envs, g.num_agents, width) for name, g in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        chosen, remembered = {}, {}
        view, outputs, after = self._outputs(view, memory)
        for name, out in outputs.items():
            space, legal = self.spec.groups[name].action, view.legal[name]
            drawn = actions.sample(space, out, legal, self.sampler) if explore else actions.greedy(space, out, legal)
            chosen[name], remembered[name] = drawn.cpu(), after[name].cpu()
        if explore:
            self.env_steps += len(view.state)
        return chosen, remembered

    def compiled_player(self, env: Compiled, memory: Groups, steps: int) -> acting.Player | None:
        """See `collect`."""
        if not acting.can_play(self.nets, env):
            return None
        choosers = {name: actor.chooser() for name, actor in self.actors.items()}
        return acting.Player(self.nets, choosers, env, memory, steps, self._draw, self.crew)

    def _draw(self, noise: Groups) -> float:
        """Of one step, as `actions.sample` draws it; nothing is done at random."""
        for name, numbers in noise.items():
            box = isinstance(self.spec.groups[name].action, Box)
            (numbers.normal_ if box else numbers.uniform_)(generator=self.sampler)
        self.env_steps += len(numbers)
        return 0.0

    @torch.no_grad()
    def probabilities(self, view: View, memory: Groups) -> Groups:
        """Of every discrete action, `[env, agent, size]`: what `act` draws from."""
        view, outputs, _ = self._outputs(view, memory)
        return {name: actions.mask_logits(out, view.legal[name]).softmax(-1).cpu() for name, out in outputs.items()}

    def _outputs(self, view: View, memory: Groups) -> tuple[View, Groups, Groups]:
        """The view where the networks live; what `actions` reads, and memory after the step, by group."""
        view, memory = tree.to(view, self.device), tree.to(memory, self.device)
        nets = {name: self.nets[name] for name in view.obs}
        out, after = together.step(nets, {n: flat(obs, 2) for n, obs in view.obs.items()}, memory, view.hears)
        return view, {name: self.actors[name].spread(x) for name, x in out.items()}, after

    # Learning

    def experience(self, num_envs: int) -> Fresh:
        config = self.config
        return rollouts.fresh(self.spec, num_envs, config.batch_steps, config.sequence, config.net.memory)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs of gradient steps on a rollout `[time, env, ...]`."""
        config = self.config
        lesson = self._sequences(self._study(tree.to(batch, self.device)))
        self._anneal()
        metrics: list[dict[str, Tensor]] = []
        for number, turn in enumerate(self._turns()):
            for _ in range(config.epochs):
                steps = [self._step(part, turn, values=number == 0) for part in self._minibatches(lesson)]
                metrics += steps
                if 0 < config.target_kl < torch.stack([step["kl"] for step in steps]).mean():
                    break
            if config.sequential:
                self._compound(lesson, turn)
        named = {name: [step[name] for step in metrics if name in step] for name in metrics[0]}
        return {name: torch.stack(values).mean() for name, values in named.items()}

    @torch.no_grad()
    def _study(self, batch: Batch) -> Lesson:
        """What a rollout teaches: old probabilities, values, advantages."""
        config = self.config
        batch = to_the_end(batch) if self.num_values > 1 and config.reward != "own" else batch
        groups = batch.groups
        obs = {name: flat(agents.obs, 3) for name, agents in groups.items()}
        memory = {name: agents.memory for name, agents in groups.items()}
        reward, terminated, counts = outcome(batch, config.reward, team=self.num_values == 1)
        alive = torch.cat([agents.alive for agents in groups.values()], -1)
        unknown = reward.new_zeros(*reward.shape[:2], 0)
        lesson = Lesson(
            obs=obs,
            legal={name: agents.legal for name, agents in groups.items()},
            memory=memory,
            action={name: agents.action for name, agents in groups.items()},
            ended=batch.ended,
            hears=batch.hears,
            alive=alive,
            state=batch.state,
            past=memory,
            counts=counts,
            log_prob=unknown,
            value=unknown,
            advantage=unknown,
            target=unknown,
        )
        value = torch.cat(self.crew.map(self._judge_values, self.cut(lesson, lesson.ended)), 1)
        following, known = self.norm.restore(self._following(batch, value)), self.norm.restore(value)
        ended = batch.ended.unsqueeze(-1)
        advantage = gae(reward, terminated, ended, known, following, config.gamma, config.lam)
        target = known + advantage
        if config.normalise_value:
            self.norm.update(target, mean_weights(counts))
        advantage = advantage.expand(alive.shape).clone()
        if config.normalise_advantage:
            for name, group in self.spec.groups.items():
                columns = slice(self.start[name], self.start[name] + group.num_agents)
                _standardise(advantage[..., columns], alive[..., columns])
        lesson = replace(lesson, value=value, advantage=advantage, target=self.norm.normalise(target))
        if config.sequential or config.minibatches > 1:
            lesson.log_prob = torch.cat(self.crew.map(self._judge_all, self.cut(lesson, lesson.ended)), 1)
        return lesson

    def _value(self, obs: Groups, memory: Groups, state: Tensor) -> Tensor:
        """`[..., value]` in the networks' units."""
        seen = self._seen(obs, memory, state)
        return torch.cat([self.critics[name](x)[0].flatten(-2) for name, x in seen.items()], -1)

    def _seen(self, obs: Groups, memory: Groups, state: Tensor) -> Groups:
        """What each critic sees, `[..., agent, columns]`: with memory, also what the agents remember."""
        if self.config.value == "own":
            return {name: _join([obs[name], memory[name]]) for name in obs}
        state = state if self._sees_state else _join([x.flatten(-2) for x in obs.values()])
        if self.config.value == "central":
            return {TEAM: _join([state, *[x.flatten(-2) for x in memory.values()]]).unsqueeze(-2)}
        beside = {name: state.unsqueeze(-2).expand(*x.shape[:-1], -1) for name, x in obs.items()}
        return {name: _join([beside[name], obs[name], memory[name]]) for name in obs}

    def _following(self, batch: Batch, value: Tensor) -> Tensor:
        """Values of the successors: the next step's; anew where that is another episode's, or there is none."""
        anew = batch.ended.clone()
        anew[-1] = True
        obs, memory = {}, {}
        for name, agents in batch.groups.items():
            obs[name], memory[name] = flat(agents.next_obs[anew], 2), agents.memory[anew]
            if self.config.net.memory:
                x = flat(agents.obs[anew], 2).unsqueeze(0)
                memory[name] = self.nets[name].features(x, memory[name], anew[anew].unsqueeze(0))[1][0]
        following = torch.cat([value[1:], value[-1:]])
        following[anew] = self._value(obs, memory, batch.next_state[anew])
        return following

    def _sequences(self, lesson: Lesson) -> Lesson:
        """From `[time, env, ...]` to sequences, each with its first memory; without memory, single steps."""
        length = (self.config.sequence or len(lesson.ended)) if self.config.net.memory else 1
        lesson = rollouts.sequences(lesson, length)
        return replace(lesson, memory={name: memory[:1] for name, memory in lesson.memory.items()})

    def _turns(self) -> list[Turn]:
        """Who learns when: all agents at once, or one after the other."""
        if not self.config.sequential:
            return [dict.fromkeys(self.spec.groups, ALL)]
        everyone = [{name: slice(k, k + 1)} for name, g in self.spec.groups.items() for k in range(g.num_agents)]
        return [everyone[k] for k in torch.randperm(len(everyone), generator=self.shuffler).tolist()]

    def _columns(self, x: Tensor, turn: Turn) -> Tensor:
        """The columns of `x` that belong to the agents of `turn`."""
        if len(turn) == len(self.spec.groups) and ALL in turn.values():
            return x
        ((name, agents),) = turn.items()
        return x[..., self.start[name] + agents.start : self.start[name] + agents.stop]

    def _minibatches(self, lesson: Lesson) -> Iterator[Lesson]:
        count = self.config.minibatches
        return rollouts.minibatches(lesson, lesson.ended.shape[1], count, self.shuffler, self.device)

    def _step(self, lesson: Lesson, turn: Turn, values: bool) -> dict[str, Tensor]:
        """One gradient step of the policies of `turn`, and of the values too if they learn."""
        learners = [self.actor_optimizers[name] for name in turn] + [self.critic_optimizer] * values
        parameters = [p for learner in learners for p in learner.parameters]
        counts = self._columns(lesson.alive, turn).sum().clamp(min=1), lesson.counts.sum().clamp(min=1)

        def gradients(piece: Lesson) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
            metrics, log_prob = self._policy_losses(piece, turn, counts[0])
            loss = metrics["policy_loss"] - self.entropy * metrics["entropy"]
            if values:
                metrics["value_loss"] = self._value_loss(piece, counts[1])
                loss = loss + metrics["value_loss"]
            found = iter(torch.autograd.grad(loss, parameters))
            return [learner.join([next(found) for _ in learner.parameters]) for learner in learners], metrics, log_prob

        results = self.crew.map(gradients, self.cut(lesson, lesson.ended))
        metrics = {name: torch.stack([m[name].detach() for _, m, _ in results]).sum() for name in results[0][1]}
        for k, learner in enumerate(learners):
            torch.sum(torch.stack([grads[k] for grads, _, _ in results]), 0, out=learner.grad)
        if not lesson.log_prob.shape[-1]:
            lesson.log_prob = torch.cat([log_prob for _, _, log_prob in results], 1)
        norms = [self.actor_optimizers[name].step(agents.start or 0) for name, agents in turn.items()]
        if values:
            self.critic_optimizer.step()
        return {**metrics, "grad_norm": torch.stack(norms).mean()}

    def _policy_losses(self, lesson: Lesson, turn: Turn, count: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The objective's parts, and how far the policy has moved: sums over `lesson`, divided by `count`.

        And log-probabilities `[time, batch, column]`, without gradient.
        """
        log_prob, entropy = self._judge(lesson, turn)
        now = log_prob.detach()
        alive, advantage = self._columns(lesson.alive, turn), self._columns(lesson.advantage, turn)
        old = self._columns(lesson.log_prob, turn) if lesson.log_prob.shape[-1] else now
        sums = surrogate.clipped(log_prob, old, advantage, entropy, alive, self.config.clip)
        names = "policy_loss", "entropy", "kl", "clipped"
        return {name: part / count for name, part in zip(names, sums, strict=True)}, now

    def _value_loss(self, lesson: Lesson, count: Tensor) -> Tensor:
        value, limit = self._value(lesson.obs, lesson.past, lesson.state), self.config.value_clip
        loss = self._error(value, lesson.target)
        if limit:
            held = lesson.value + (value - lesson.value).clamp(-limit, limit)
            loss = torch.maximum(loss, self._error(held, lesson.target))
        return (loss * lesson.counts).sum() / count

    def _error(self, value: Tensor, target: Tensor) -> Tensor:
        huber = self.config.huber
        return functional.huber_loss(value, target, reduction="none", delta=huber or math.inf)

    def _judge(self, lesson: Lesson, turn: Turn) -> tuple[Tensor, Tensor]:
        """Log-probabilities of what was done and entropies, `[time, batch, column]`, by the policies as they are."""
        obs, memory, legal, action = (
            {name: x[name] if agents == ALL else x[name][:, :, agents] for name, agents in turn.items()}
            for x in (lesson.obs, lesson.memory, lesson.legal, lesson.action)
        )
        nets, some = {name: self.nets[name] for name in turn}, next(iter(turn.values()))
        start = {name: rows[0] for name, rows in memory.items()}
        out = together.unroll(nets, obs, start, lesson.ended, lesson.hears, some)[0]
        found = []
        for name, agents in turn.items():
            read = self.actors[name].spread(out[name], agents)
            found.append(actions.likelihood(self.spec.groups[name].action, read, action[name], legal[name]))
        if len(found) == 1:
            return found[0]
        return torch.cat([log_prob for log_prob, _ in found], -1), torch.cat([entropy for _, entropy in found], -1)

    @torch.no_grad()
    def _judge_all(self, lesson: Lesson) -> Tensor:
        """Log-probabilities of all agents."""
        return self._judge(lesson, dict.fromkeys(self.spec.groups, ALL))[0]

    @torch.no_grad()
    def _judge_values(self, lesson: Lesson) -> Tensor:
        return self._value(lesson.obs, lesson.past, lesson.state)

    @torch.no_grad()
    def _compound(self, lesson: Lesson, turn: Turn) -> None:
        """Multiply advantages by the ratios of those who have just learned (Kuba et al. 2022, eq. 10)."""
        change = self._judge(lesson, turn)[0] - self._columns(lesson.log_prob, turn)
        lesson.advantage *= torch.where(self._columns(lesson.alive, turn), change.exp(), 1.0)

    def _anneal(self) -> None:
        config = self.config
        progress = self.env_steps / config.anneal_steps if config.anneal_steps else 0.0
        left = explore.linear(1.0, config.lr_end, progress)
        for optimizer in self.actor_optimizers.values():
            optimizer.lr = left * config.lr
        self.critic_optimizer.lr = left * config.critic_lr
        self.entropy = config.entropy * explore.linear(1.0, config.entropy_end, progress)

    # Saving

    def tied(self) -> list[str]:
        """See `Scalable`."""
        central = self.config.value == "central" and self.config.reward == "own"
        return self.config.net.tied() + ["reward to sum or mean"] * central

    @property
    def _optimizers(self) -> list[optim.Adam]:
        return [*self.actor_optimizers.values(), self.critic_optimizer]

    def state_dict(self) -> Tree:
        return {
            "nets": [dict(module.state_dict()) for module in (*self.modules, self.norm)],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "generators": [self.sampler.get_state(), self.shuffler.get_state()],
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: Tree) -> None:
        for module, saved in zip((*self.modules, self.norm), state["nets"], strict=True):
            module.load_state_dict(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for generator, saved in zip((self.sampler, self.shuffler), state["generators"], strict=True):
            generator.set_state(saved)
        self.env_steps = state["env_steps"]


def _check(config: Config) -> None:
    if config.sequential and config.net.shared:
        raise ShoalError("agents that learn one after the other need weights of their own: set net.shared to False")
    if config.sequential and config.net.comm != "none":
        raise ShoalError(
            "agents that learn one after the other must leave each other's policies as they are, and what one says "
            "changes what others do: set net.comm to none, or use mappo"
        )


def _starts(spec: EnvSpec) -> list[int]:
    """Each group's first column, where agents of all groups stand side by side."""
    sizes = [group.num_agents for group in spec.groups.values()]
    return [sum(sizes[:k]) for k in range(len(sizes))]


def _join(parts: list[Tensor]) -> Tensor:
    parts = [part for part in parts if part.shape[-1]] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat([real(part) for part in parts], -1)


def _standardise(x: Tensor, mask: Tensor) -> None:
    """Shift and scale to mean 0 and standard deviation 1 where `mask`."""
    weights = mean_weights(mask)
    x -= (x * weights).sum()
    x /= (x.square() * weights).sum().sqrt() + 1e-5


PRESETS = {
    "ippo": Preset(
        PPO, Config(value="own", reward="own"), "independent PPO: an agent's value sees what the agent sees"
    ),
    "mappo": Preset(PPO, Config(), "PPO with a value of the global state for the team"),
    "happo": Preset(
        PPO,
        Config(sequential=True, net=Net(shared=False)),
        "MAPPO whose agents learn one after the other, each aware of what the others changed",
    ),
    "ia2c": Preset(
        PPO,
        Config(value="own", reward="own", epochs=1, clip=0.0, batch_steps=320),
        "independent advantage actor-critic: IPPO with one epoch and no clipping",
    ),
    "maa2c": Preset(
        PPO, Config(epochs=1, clip=0.0, batch_steps=320), "advantage actor-critic with a value of the global state"
    ),
}
