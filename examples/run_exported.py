"""Agents that run from the files of `shoal export` alone: numpy and onnxruntime, neither torch nor shoal.

python examples/run_exported.py DIR    an episode of mpe2's simple_spread, by a policy that learned mpe/simple_spread
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Agent:
    """One agent, on a machine of its own if you like: messages are all that passes between agents."""

    def __init__(self, directory, name):
        groups = json.loads((Path(directory) / "policy.json").read_text())["groups"].values()
        self.group = next(group for group in groups if name in group["agents"])
        self.session = onnxruntime.InferenceSession(Path(directory) / self.group["file"])
        self.inputs = {key: np.zeros([1, *x["shape"]], x["dtype"]) for key, x in self.group["inputs"].items()}
        self.inputs["agent"][0] = self.group["agents"][name]

    def ask(self):
        answers = self.session.run(list(self.group["outputs"]), self.inputs)
        return {key: value[0] for key, value in zip(self.group["outputs"], answers, strict=True)}

    def act(self):
        answer = self.ask()
        if "next_memory" in answer:
            self.inputs["memory"][0] = answer["next_memory"]  # zeros again where an episode starts
        return answer["action"]


def step(agents, observations):
    """Everybody's action, by name; where actions are masked, set `inputs["legal"][0]` first."""
    for name, agent in agents.items():
        agent.inputs["obs"][0] = observations[name]
    for k in range(max(agent.group["rounds"] for agent in agents.values())):
        said = {name: agent.ask()["message"][k] for name, agent in agents.items()}
        for agent in agents.values():
            for number, speaker in enumerate(agent.group["speakers"]):
                agent.inputs["messages"][0, k, number] = said[speaker]
                agent.inputs["heard"][0, k, number] = True
    return {name: agent.act() for name, agent in agents.items()}


if __name__ == "__main__":
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env()
    observations, _ = env.reset(seed=0)
    agents, total = {name: Agent(sys.argv[1], name) for name in env.agents}, 0.0
    while env.agents:
        observations, rewards, *_ = env.step(step(agents, observations))
        total += sum(rewards.values())
    print(f"team return {total:.3f}")
