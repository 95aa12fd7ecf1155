"""Do the files do what the policy does?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal import actions
from shoal.export.player import Player, players
from shoal.nets.comm import listeners
from shoal.types import Algorithm, Discrete, Groups, ShoalError, Tree, VecEnv, View

TOLERANCE = 1e-5
"""By which numbers of file and policy may differ, absolutely and relatively."""
ENVS, STEPS = 8, 32
"""Environments and steps in which a policy is played to compare it with its files; and as many random views."""
LARGEST = 2**24
"""Numbers in the random views, at most: with large pictures there are fewer."""

Array = NDArray[Any]
Answers = dict[str, dict[str, Array]]
"""Outputs by group and name, rows of all environments' agents in turn."""


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
        for count in (max(min(LARGEST // max(_size(player), 1), ENVS * STEPS), 1), 1):  # one is a batch too
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
