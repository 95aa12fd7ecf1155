"""Trained policies as ONNX files for decentralised execution: what one agent computes, without torch and without shoal.

A group becomes one file; a row of its inputs is one agent at one instant, and `agent` says which of the group it is.

    inputs    agent [batch], obs [batch, *obs_shape], legal [batch, size], memory [batch, width],
              messages [batch, rounds, speaker, message], heard [batch, rounds, speaker]
    outputs   action [batch] or [batch, size], logits or std [batch, size], next_memory [batch, width],
              message [batch, rounds, message]

Inputs and outputs that a policy does not need are not there. Agents that talk are asked `rounds + 1` times in a step,
with all that they have heard so far: the k-th answer's `message[:, k]` is what they say in round k (from 0), and the
last answer's `action` and `next_memory` count. `policy.json` beside the files says what must be known to run them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shoal import actions, checkpoint, experiment, registry, tree
from shoal.algorithms.ddpg import DDPG
from shoal.algorithms.hierarchy import Hierarchy
from shoal.algorithms.ppo import PPO
from shoal.algorithms.value_decomposition import ValueDecomposition
from shoal.config import Run, versions
from shoal.envs.common.spaces import AgentAdapter
from shoal.nets import together
from shoal.nets.comm import UNHEARD, listeners
from shoal.nets.conv import Conv, flat, real
from shoal.nets.dense import AgentNet
from shoal.teams.league import League
from shoal.types import Algorithm, Box, Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Tree, VecEnv, View

FORMAT = 1
FILE = "policy.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-5
"""By which numbers of file and policy may differ, absolutely and relatively."""
ENVS, STEPS = 8, 32
"""Environments and steps in which a policy is played to compare it with its files; and as many random views."""
LARGEST = 2**24
"""Numbers in the random views, at most: with large pictures there are fewer."""

Learner = PPO | ValueDecomposition | DDPG
Array = NDArray[Any]
Answers = dict[str, dict[str, Array]]
"""Outputs by group and name, rows of all environments' agents in turn."""


# What one agent computes


class Layer(nn.Module):
    """A linear layer, of shared weights or of the agent's own: `[batch, in] -> [batch, out]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.shared = len(weight) == 1
        weight, bias = weight.detach().cpu().clone(), bias.detach().cpu().clone()
        self.register_buffer("weight", weight[0] if self.shared else weight)
        self.register_buffer("bias", bias[0] if self.shared else bias)

    def forward(self, x: Tensor, agent: Tensor) -> Tensor:
        if self.shared:
            return x @ self.weight + self.bias
        return (x.unsqueeze(1) @ self.weight[agent] + self.bias[agent]).squeeze(1)


class Pictures(nn.Module):
    """Convolutions: `[batch, height, width, channel] -> [batch, features]`.

    ONNX's have one set of weights for all rows: of stacked ones all agents' are computed, and the row's own is taken.
    """

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.copies = len(conv.layers[0][0])
        self.strides = conv.strides
        for k, (weight, bias) in enumerate(conv.layers):
            self.register_buffer(f"weight_{k}", weight.detach().cpu().flatten(0, 1).clone())
            self.register_buffer(f"bias_{k}", bias.detach().cpu().flatten().clone())

    def forward(self, x: Tensor, agent: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for k, stride in enumerate(self.strides):
            weight, bias = getattr(self, f"weight_{k}"), getattr(self, f"bias_{k}")
            x = functional.conv2d(x, weight, bias, stride, groups=self.copies if k else 1).relu()
        x = x.unflatten(1, (self.copies, -1)).flatten(2)
        return x[:, 0] if self.copies == 1 else x.gather(1, agent.view(-1, 1, 1).expand(-1, 1, x.shape[2])).squeeze(1)


class Agent(nn.Module):
    """Any one agent of a group: the equations of `AgentNet`, `Channel` and `actions.greedy`, a row an agent.

    Args:
        group: the agents, their observations and actions.
        net: of the group.
        first: place of its first agent among all speakers.
        speakers: agents of all groups that talk with each other.
        log_std: of continuous actions of a stochastic policy, `[agent, size]`; of others `[agent, 0]`. What the network
            puts out behind the means is added.
    """

    identity: Tensor
    log_std: Tensor

    def __init__(self, group: GroupSpec, net: AgentNet, first: int, speakers: int, log_std: Tensor) -> None:
        super().__init__()
        self.group, self.first, self.speakers = group, first, speakers
        self.talk, self.rounds, self.message = net.channel.talk, net.channel.rounds, net.channel.size
        self.memory = net.memory
        self.register_buffer("identity", net.identity.detach().cpu().clone())
        self.register_buffer("log_std", log_std.detach().cpu().clone())
        self.pictures = Pictures(net.eyes.convs[0]) if net.eyes.convs else None
        layers = [*net.mlp.layers, *(net.head.layers if net.split else [])]
        self.hidden = nn.ModuleList(Layer(*layer) for layer in layers[:-1])
        self.head = Layer(*layers[-1])
        self.gru = nn.ModuleList(Layer(*layer) for layer in net.gru.layers) if net.memory else None
        channel = net.channel
        self.mouths, self.ears, self.queries = (
            nn.ModuleList(Layer(*each.mlp.layers[0]) for each in part)  # type: ignore[union-attr, index]
            for part in (channel.mouths, channel.ears, channel.queries)
        )
        shown = np.uint8 if group.image else np.float32
        rows: dict[str, tuple[tuple[int, ...], type]] = {"agent": ((), np.int64), "obs": (group.obs_shape, shown)}
        if group.masked:
            rows["legal"] = (group.action.size,), np.bool_
        if self.memory:
            rows["memory"] = (self.memory,), np.float32
        if self.rounds:
            rows["messages"] = (self.rounds, speakers, self.message), np.float32
            rows["heard"] = (self.rounds, speakers), np.bool_
        self.inputs = rows
        """Shape of a row, and type, of every input."""
        size = (group.action.size,)
        self.outputs: dict[str, tuple[tuple[int, ...], type]]
        if isinstance(group.action, Discrete):
            self.outputs = {"action": ((), np.int64), "logits": (size, np.float32)}
        else:
            self.outputs = {"action": (size, np.float32)}
            if log_std.shape[1]:
                self.outputs["std"] = size, np.float32
        if self.memory:
            self.outputs["next_memory"] = (self.memory,), np.float32
        if self.rounds:
            self.outputs["message"] = (self.rounds, self.message), np.float32

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        now = dict(zip(self.inputs, given, strict=True))
        agent, x = now["agent"], real(now["obs"])
        x = self.pictures(x, agent) if self.pictures else x.flatten(1)
        if self.identity.shape[1]:
            x = torch.cat([x, self.identity[agent]], 1)
        for layer in self.hidden:
            x = layer(x, agent).relu()
        after = []
        if self.gru:
            x = self._remember(x, now["memory"], agent)
            after.append(x)
        said = []
        for k in range(self.rounds):
            said.append(self._speak(k, x, agent))
            x = self._listen(k, x, said[k], now["messages"][:, k], now["heard"][:, k], agent)
        if said:
            after.append(torch.stack(said, 1))
        return (*self._decide(self.head(x, agent), now), *after)

    def _remember(self, x: Tensor, memory: Tensor, agent: Tensor) -> Tensor:
        drive, recall = self.gru  # type: ignore[misc]
        driven, recalled = drive(x, agent).chunk(3, 1), recall(memory, agent).chunk(3, 1)
        r, z = ((driven[j] + recalled[j]).sigmoid() for j in range(2))
        n = (driven[2] + r * recalled[2]).tanh()
        return n + z * (memory - n)  # type: ignore[no-any-return]

    def _speak(self, k: int, x: Tensor, agent: Tensor) -> Tensor:
        said: Tensor = self.mouths[k](x, agent)
        if self.talk.kind != "gated":
            return said
        return torch.cat([said[:, :-1], (said[:, -1:].sigmoid() > 0.5).to(said.dtype)], 1)

    def _listen(self, k: int, x: Tensor, own: Tensor, messages: Tensor, heard: Tensor, agent: Tensor) -> Tensor:
        """`messages` `[batch, speaker, message]`, its own among them or not."""
        me = torch.arange(self.speakers) == (agent + self.first).unsqueeze(1)
        messages = torch.where((heard & ~me).unsqueeze(2), messages, 0.0)
        if self.talk.kind == "attention":
            messages = torch.where(me.unsqueeze(2), own.unsqueeze(1), messages)
            context = self._attend(self.queries[k](x, agent), messages, heard | me)
        else:
            weight = (heard & ~me).to(messages.dtype)
            if self.talk.kind == "gated":
                messages, gate = messages[..., :-1], messages[..., -1]
                weight = weight * gate
            context = (weight.unsqueeze(1) @ messages).squeeze(1) / weight.sum(1, keepdim=True).clamp(min=1.0)
        return self.ears[k](torch.cat([x, context], 1), agent).relu()  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, messages: Tensor, heard: Tensor) -> Tensor:
        heads = self.talk.heads
        signature, value = (part.unflatten(2, (heads, -1)) for part in messages.chunk(2, 2))
        query = query.unflatten(1, (heads, -1)).unsqueeze(1)
        score = (query * signature).sum(3) / math.sqrt(query.shape[-1])  # [batch, speaker, head]
        attention = score.masked_fill(~heard.unsqueeze(2), UNHEARD).softmax(1)
        context: Tensor = (attention.unsqueeze(3) * value).sum(1)
        return context.flatten(1)

    def _decide(self, out: Tensor, now: Groups) -> tuple[Tensor, ...]:
        if isinstance(self.group.action, Discrete):
            logits = actions.mask_logits(out, now["legal"]) if self.group.masked else out
            return logits.argmax(1), logits
        mean, shift = out.tensor_split((self.group.action.size,), 1)
        if not self.log_std.shape[1]:
            return (mean.tanh(),)
        log_std = self.log_std[now["agent"]]
        return mean.tanh(), (log_std + shift if shift.shape[1] else log_std).clamp(-5.0, 1.0).exp()


# Which agents there are


@dataclass(frozen=True)
class Player:
    """A policy without opponents in it, and what it plays of an environment.

    Args:
        seats: places that it can take, each by its own groups: the environment's group, and which of its agents.
    """

    policy: Learner
    seats: list[dict[str, tuple[str, Tensor]]]

    @property
    def spec(self) -> EnvSpec:
        return self.policy.spec

    @property
    def nets(self) -> dict[str, AgentNet]:
        return self.policy.actors if isinstance(self.policy, DDPG) else self.policy.nets

    def shown(self, view: View, memory: Groups, seat: dict[str, tuple[str, Tensor]]) -> tuple[View, Groups]:
        """What it sees and remembers in a seat."""
        obs, legal, own = ({g: x[n][:, a] for g, (n, a) in seat.items()} for x in (view.obs, view.legal, memory))
        return View(obs, legal, view.state, view.hears), own

    def outputs(self, view: View, memory: Groups) -> tuple[Groups, Groups]:
        """What `actions` reads, and memory after the step, by group."""
        view, memory = tree.to(view, self.policy.device), tree.to(memory, self.policy.device)
        with torch.no_grad():
            seen = {name: flat(obs, 2) for name, obs in view.obs.items()}
            out, after = together.step(self.nets, seen, memory, view.hears)
            if isinstance(self.policy, PPO):
                out = {name: self.policy.actors[name].spread(x) for name, x in out.items()}
        return {n: x.cpu() for n, x in out.items()}, {n: x.cpu() for n, x in after.items()}

    def agents(self) -> dict[str, Agent]:
        """One module a group."""
        found, first, total = {}, 0, self.spec.num_agents
        for name, group in self.spec.groups.items():
            found[name] = Agent(group, self.nets[name], first, total, self._log_std(name)).eval()
            first += group.num_agents
        return found

    def _log_std(self, name: str) -> Tensor:
        group = self.spec.groups[name]
        if not isinstance(self.policy, PPO) or isinstance(group.action, Discrete):
            return torch.zeros(group.num_agents, 0)
        return self.policy.actors[name].log_std.expand(group.num_agents, -1)


def players(policy: Algorithm) -> list[Player]:
    """The policy itself, or the newest learner of each side of a league.

    Raises:
        ShoalError: a policy that cannot be played an agent at a time, or whose networks are not known.
    """
    if isinstance(policy, League):
        return [Player(_known(side.learner), [seat.groups for seat in side.seats]) for side in policy.sides]
    whole = {name: (name, torch.arange(group.num_agents)) for name, group in policy.spec.groups.items()}
    return [Player(_known(policy), [whole])]


def _known(policy: Algorithm) -> Learner:
    if isinstance(policy, Learner):
        if isinstance(policy, PPO | ValueDecomposition) and policy.config.net.pool != "none":
            raise ShoalError(f"networks that pool things cannot be exported: net.pool is {policy.config.net.pool}")
        return policy
    if isinstance(policy, Hierarchy):
        raise ShoalError(
            "a hierarchy cannot be exported: its managers see what all agents of their team see, so that no agent "
            "could run alone"
        )
    raise ShoalError(
        f"{type(policy).__name__} cannot be exported: only the networks of shoal's own algorithms are known "
        "(the families of ddpg, value_decomposition and ppo)"
    )


# Files


def export(directory: Path, out: Path, which: str = "best") -> Tree:
    """Write a run's policy into the new directory `out`, and compare what was written with it; what policy.json holds.

    Args:
        directory: of the run.
        which: checkpoint, `best` or `last`.

    Raises:
        ShoalError: packages are missing, `out` holds something, or the policy cannot be exported; or the files do not
            do what the policy does, and then nothing is left behind.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ShoalError(f"{package} cannot be imported ({error}): pip install 'shoal[export]'") from error
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShoalError(f"{out} is there already: choose a new directory for --out")
    run = experiment.open_run(directory)
    task: registry.Environment = experiment.environment_of(run)
    full = experiment.evaluation_env(task, ENVS)
    try:
        policy = experiment.load_policy(directory, which, full.spec)
        steps = checkpoint.step(directory / experiment.CHECKPOINTS, which)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            about = _about(run, which, steps)
            about["groups"] = write(policy, getattr(full, "adapters", {}), partial)
            about["check"] = check(policy, experiment.against(full, run), partial, about["groups"])
            (partial / FILE).write_text(json.dumps(about, indent=2) + "\n")
            if out.exists():
                out.rmdir()
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        full.close()
    return about


def _about(run: Run, which: str, steps: int) -> Tree:
    import onnx

    return {
        "format": FORMAT,
        "algorithm": run.algorithm,
        "env": run.env,
        "env_args": run.env_args,
        "checkpoint": which,
        "env_steps": steps,
        "versions": {**versions(), "onnx": onnx.__version__},
        "units": {
            "obs": "as the environment gives them, float32; pictures in bytes, 0 to 255, [height, width, channel]",
            "action": "greedy: Discrete the number of the action, from 0; Box numbers in [-1, 1]",
            "logits": "Q-learning: values in units of their running standard deviation; "
            "PPO: logarithms of probabilities, up to a constant; DDPG: scores of the deterministic policy. "
            f"{actions.ILLEGAL:g} where an action is not legal",
            "std": "standard deviation of the policy's normal draws around action, before they are clipped to [-1, 1]",
            "memory": "zeros where an episode starts",
        },
    }


def write(policy: Algorithm, adapters: dict[str, AgentAdapter], folder: Path) -> Tree:
    """One ONNX file a group into `folder`; what policy.json says of each.

    Args:
        adapters: of the environment's agents, where it has such.
    """
    described = {}
    for player in players(policy):
        numbers = {group: _numbers(player, group, policy.spec) for group in player.spec.groups}
        speakers = [agent for group in player.spec.groups.values() for agent in group.agents]
        for name, agent in player.agents().items():
            path = folder / f"{name.replace('/', '_').replace(' ', '_')}.onnx"
            if path.exists():
                raise ShoalError(f"two groups would be written as {path.name}: rename {name!r}")
            to_onnx(agent, path)
            described[name] = {
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "agents": numbers[name],
                "obs": {"shape": list(agent.group.obs_shape), "dtype": "uint8" if agent.group.image else "float32"},
                "action": _space(agent.group),
                "masked": agent.group.masked,
                "memory": agent.memory,
                "rounds": agent.rounds,
                "message": agent.message if agent.rounds else 0,
                "speakers": speakers if agent.rounds else [],
                "inputs": _signature(agent.inputs),
                "outputs": _signature(agent.outputs),
                "environment": {a: _environment(adapters[a]) for a in numbers[name] if a in adapters},
            }
    return described


def _numbers(player: Player, group: str, spec: EnvSpec) -> dict[str, int]:
    """The input `agent` of everybody whom a group's network plays."""
    found: dict[str, int] = {}
    for seat in player.seats:
        theirs, places = seat[group]
        found |= {spec.groups[theirs].agents[place]: k for k, place in enumerate(places.tolist())}
    return found


def _space(group: GroupSpec) -> Tree:
    if isinstance(group.action, Box):
        return {"kind": "Box", "size": group.action.size, "low": -1.0, "high": 1.0}
    return {"kind": "Discrete", "size": group.action.size}


def _signature(rows: dict[str, tuple[tuple[int, ...], type]]) -> Tree:
    """Without the batch, which is every first axis."""
    return {name: {"shape": list(shape), "dtype": np.dtype(kind).name} for name, (shape, kind) in rows.items()}


def _environment(adapter: AgentAdapter) -> Tree:
    """One agent's own spaces: from what the environment shows to `obs`, and from `action` to what it takes."""
    space = adapter.action_space
    action: Tree = {"space": str(space), "kind": type(space).__name__, "shape": list(space.shape or ())}
    if isinstance(adapter.action, Box):
        # its action: low + (action + 1) / 2 * (high - low)
        action |= {"low": adapter.low.tolist(), "high": adapter.high.tolist(), "dtype": np.dtype(space.dtype).name}
    elif len(adapter.sizes) == 1 and hasattr(space, "start"):
        action |= {"start": int(np.ravel(space.start)[0]), "dtype": np.dtype(space.dtype).name}  # added to our number
    else:
        action |= {"choices": adapter.sizes}  # numbered as numpy.unravel_index(action, choices) numbers them
    return {"action": action, "obs": {"space": str(adapter.space), "flattened": adapter.flatten}}


def to_onnx(agent: Agent, path: Path) -> None:
    """Write what `agent` computes, with a batch of any length."""
    import onnx

    batch = torch.export.Dim("batch")
    given = tuple(torch.from_numpy(np.zeros((3, *shape), kind)) for shape, kind in agent.inputs.values())
    with quiet():
        program = torch.onnx.export(
            agent,
            given,
            input_names=list(agent.inputs),
            output_names=list(agent.outputs),
            dynamic_shapes=(tuple({0: batch} for _ in given),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # where in whose source it was traced
    onnx.save(model, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress and the warnings of torch's exporter, which are about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# Are they the same?


def check(policy: Algorithm, env: VecEnv, folder: Path, groups: Tree) -> Tree:
    """Ask ONNX Runtime and the policy for the same agents, over random views and while the policy plays `env`.

    Greedy actions must be equal (but for logits that are), all other numbers within `TOLERANCE`.

    Returns:
        How many agents' steps were compared, and the largest difference, by group.

    Raises:
        ShoalError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    everybody = [(player, _sessions(player, folder, groups)) for player in players(policy)]
    compared: dict[str, list[Any]] = {name: [0, 0.0] for _, sessions in everybody for name in sessions}
    for player, sessions in everybody:
        for count in (max(min(LARGEST // _size(player), ENVS * STEPS), 1), 1):  # one is a batch too
            _compare(player, sessions, *_random_view(player, count, generator), compared)
    view, memory = env.reset(0), policy.initial_memory(env.num_envs)
    start = {name: rows.clone() for name, rows in memory.items()}
    for _ in range(STEPS):
        for player, sessions in everybody:
            for seat in player.seats:
                _compare(player, sessions, *player.shown(view, memory, seat), compared)
        chosen, memory = policy.act(view, memory, explore=False)
        step = env.step(chosen)
        view = step.view
        for name, rows in memory.items():
            rows[step.ended] = start[name][step.ended]
    return {name: {"compared": count, "largest_difference": largest} for name, (count, largest) in compared.items()}


def _sessions(player: Player, folder: Path, groups: Tree) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return {n: onnxruntime.InferenceSession(str(folder / groups[n]["file"]), options) for n in player.spec.groups}


def _size(player: Player) -> int:
    """Numbers that the agents of one environment are shown, and told."""
    spec = player.spec
    told = (net.channel.rounds * spec.num_agents * net.channel.size for net in player.nets.values())
    return sum(g.num_agents * (g.obs_size + t) for g, t in zip(spec.groups.values(), told, strict=True))


def _random_view(player: Player, count: int, generator: torch.Generator) -> tuple[View, Groups]:
    """Whatever could be shown: `count` environments with random observations, masks, memories, and who hears whom."""
    obs, legal, memory, total = {}, {}, {}, player.spec.num_agents
    for name, g in player.spec.groups.items():
        lead = (count, g.num_agents)
        obs[name] = torch.randn(*lead, *g.obs_shape, generator=generator)
        if g.image:
            obs[name] = torch.randint(0, 256, (*lead, *g.obs_shape), generator=generator, dtype=torch.uint8)
        legal[name] = torch.rand(*lead, g.action.size * g.masked, generator=generator) < 0.5
        legal[name][..., :1] = True
        memory[name] = torch.rand(*lead, player.nets[name].memory, generator=generator) * 2 - 1
    hears = torch.rand(count, total, total, generator=generator) < 0.7
    return View(obs, legal, torch.zeros(count, player.spec.state_size), hears), memory


def ask(player: Player, sessions: dict[str, Any], view: View, memory: Groups) -> Answers:
    """All agents of all environments through their files, messages passed among them as in use."""
    groups, count = player.spec.groups, len(next(iter(view.obs.values())))
    asked: dict[str, dict[str, Array]] = {}
    rounds = next(iter(player.nets.values())).channel.rounds
    whom = listeners(view.hears, [group.num_agents for group in groups.values()])
    for (name, group), (hears, _) in zip(groups.items(), whom, strict=True):
        rows = {"obs": view.obs[name], "legal": view.legal[name], "memory": memory[name]}
        rows["agent"] = torch.arange(group.num_agents).expand(count, -1)
        hears = hears.expand(count, group.num_agents, -1).unsqueeze(2)
        rows["heard"] = hears.expand(-1, -1, rounds, -1)
        rows["messages"] = torch.zeros(*rows["heard"].shape, player.nets[name].channel.size)
        wanted = [one.name for one in sessions[name].get_inputs()]
        asked[name] = {key: rows[key].flatten(0, 1).contiguous().numpy() for key in wanted}
    for k in range(rounds + 1):
        answers = {}
        for name, session in sessions.items():
            outputs = [one.name for one in session.get_outputs()]
            answers[name] = dict(zip(outputs, session.run(outputs, asked[name]), strict=True))
        if k < rounds:
            said = np.concatenate(
                [x["message"].reshape(count, -1, *x["message"].shape[1:]) for x in answers.values()], 1
            )
            for name, group in groups.items():
                asked[name]["messages"][:, k] = said[:, :, k].repeat(group.num_agents, 0)
    return answers


def _compare(
    player: Player, sessions: dict[str, Any], view: View, memory: Groups, compared: dict[str, list[Any]]
) -> None:
    """Adds to what was `compared` of each group: agents' steps, and the largest difference."""
    found = ask(player, sessions, view, memory)
    outputs, after = player.outputs(view, memory)
    chosen, _ = player.policy.act(view, memory, explore=False)
    for name, group in player.spec.groups.items():
        answer, out, action = found[name], outputs[name].flatten(0, 1), chosen[name].flatten(0, 1)
        pairs = {"next_memory": after[name].flatten(0, 1)} if "next_memory" in answer else {}
        if isinstance(group.action, Discrete):
            pairs["logits"] = actions.mask_logits(out, view.legal[name].flatten(0, 1))
            both = torch.stack([action, torch.from_numpy(answer["action"])], 1)
            ours, theirs = pairs["logits"].gather(1, both).unbind(1)
            wrong = int((ours - theirs > TOLERANCE * (1 + ours.abs())).sum())
            if wrong:
                raise ShoalError(f"the file of {name} chooses other actions than the policy, {wrong} of {len(ours)}")
        else:
            pairs["action"] = action
            if "std" in answer:
                pairs["std"] = out[:, group.action.size :].exp()
        compared[name][0] += len(action)
        for key, right in pairs.items():
            difference = np.abs(answer[key] - right.numpy())
            if not (difference <= TOLERANCE * (1 + right.abs().numpy())).all():
                raise ShoalError(f"the file of {name} differs from the policy: {key} by {difference.max():.2g}")
            compared[name][1] = max(compared[name][1], float(difference.max(initial=0.0)))
