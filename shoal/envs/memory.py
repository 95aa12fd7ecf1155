"""Memory tasks: what must be done depends on what is no longer seen, so no memoryless policy can solve them.

    recall    a cue at the first step, nothing for `delay` steps, then the cue is asked for

The cue-recall idea is that of the T-maze of Bakker 2001, "Reinforcement learning with long short-term memory": a sign
at the start tells which way to turn at the end of a corridor. Here the corridor walks by itself, so that nothing but
memory is tested, and every agent has its own sign.

    step             observation          action
    0                its cue, one-hot     ignored, pays nothing
    1 .. delay       zeros                ignored, pays nothing
    delay + 1        the flag 'now'       pays 1 if it is the agent's own cue, else 0; the episode terminates

Every agent's cue is drawn at the start of an episode, independently and uniformly. Nothing that an agent sees tells
the time. There is no global state: one that told the cues would let a monotonic mixer weigh away the agents that are
wrong instead of teaching them (QMIX then stays at chance).

Returns are per agent in [0, 1]: remembering earns 1, anything without memory 1 / cues on average.
"""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.types import Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View


class Recall:
    """Batched; satisfies `VecEnv`. Episodes are equally long, so all environments begin and end together.

    Args:
        num_envs: environments that step together.
        num_agents: agents, each with a cue of its own.
        cues: different cues, and as many actions.
        delay: steps between the cue and the question.
    """

    def __init__(self, num_envs: int = 1, num_agents: int = 2, cues: int = 4, delay: int = 8) -> None:
        for name, value, least in (
            ("num_envs", num_envs, 1),
            ("num_agents", num_agents, 1),
            ("cues", cues, 2),
            ("delay", delay, 1),
        ):
            if value < least:
                raise ShoalError(f"{name} must be at least {least}, not {value}")
        self.num_envs, self.num_agents, self.cues, self.delay = num_envs, num_agents, cues, delay
        names = tuple(f"agent_{i}" for i in range(num_agents))
        self.spec = EnvSpec({"agent": GroupSpec(names, (cues + 1,), Discrete(cues))})
        self.steps = 0
        self.generator = torch.Generator().manual_seed(0)
        self.asked = torch.zeros(num_envs, num_agents, dtype=torch.int64)  # the cues of the episodes before
        self.answers = torch.full((num_envs, num_agents), -1)  # what was answered there; -1: no episode before
        self.legal = {"agent": torch.zeros(num_envs, num_agents, 0, dtype=torch.bool)}
        self.always = {"agent": torch.ones(num_envs, num_agents, dtype=torch.bool)}
        self._show(torch.zeros(num_envs, num_agents, dtype=torch.int64))

    def _show(self, cue: Tensor) -> None:
        """Make `cue` `[env, agent]` that of the episode."""
        self.cue = cue
        self.one_hot = torch.nn.functional.one_hot(cue, self.cues).float()

    def _begin(self) -> None:
        self.steps = 0
        self._show(torch.randint(self.cues, (self.num_envs, self.num_agents), generator=self.generator))

    def _view(self) -> View:
        obs = torch.zeros(self.num_envs, self.num_agents, self.cues + 1)
        if self.steps == 0:
            obs[..., :-1] = self.one_hot
        elif self.steps == self.delay + 1:
            obs[..., -1] = 1.0
        return View({"agent": obs}, self.legal, torch.zeros(self.num_envs, 0))

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the random stream goes on."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.answers = torch.full_like(self.answers, -1)
        self._begin()
        return self._view()

    def step(self, actions: Groups) -> Step:
        chosen = actions["agent"]
        if not ((chosen >= 0) & (chosen < self.cues)).all():
            raise ShoalError(f"actions of agent must be 0..{self.cues - 1}")
        last = self.steps == self.delay + 1
        reward = (chosen == self.cue).float() if last else torch.zeros(self.num_envs, self.num_agents)
        self.steps += 1
        view = successor = self._view()
        if last:
            self.asked, self.answers = self.cue, chosen.clone()
            self._begin()
            view = self._view()
        ended = torch.full((self.num_envs,), last)
        terminated = {"agent": ended.unsqueeze(1).expand(-1, self.num_agents)}
        return Step(view, successor, {"agent": reward}, terminated, self.always, ended)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Every agent's cue, filled while the agent sees it, and the answer at the end of the episode before."""
        from PIL import Image, ImageColor, ImageDraw

        scale, (width, height) = 2, (420, 44 + 44 * self.num_agents)
        picture = Image.new("RGB", (width * scale, height * scale), "white")
        draw = ImageDraw.Draw(picture)

        def text(x: int, y: int, words: str, color: str = "#333333", size: int = 14) -> None:
            draw.text((x * scale, y * scale), words, fill=color, font_size=size * scale, anchor="lm")

        def disc(x: int, y: int, cue: int, filled: bool) -> None:
            color = ImageColor.getrgb(f"hsv({360 * cue // self.cues},70%,75%)")
            box = [(x - 15) * scale, (y - 15) * scale, (x + 15) * scale, (y + 15) * scale]
            draw.ellipse(box, fill=color if filled else "white", outline=color, width=2 * scale)
            fill = "white" if filled else color
            draw.text((x * scale, y * scale), str(cue), fill=fill, font_size=15 * scale, anchor="mm")

        text(10, 22, f"step {self.steps} of {self.delay + 2}")
        if self.steps == self.delay + 1:
            draw.rounded_rectangle([130 * scale, 9 * scale, 200 * scale, 35 * scale], 6 * scale, fill="#333333")
            text(149, 22, "now", "white", 16)
        else:
            text(130, 22, "cue shown" if self.steps == 0 else "wait", "#888888")
        text(230, 22, "last answer", "#888888")
        for i, name in enumerate(self.spec.groups["agent"].agents):
            y = 64 + 44 * i
            cue, asked, answer = (int(cues[index, i]) for cues in (self.cue, self.asked, self.answers))
            text(10, y, name)
            disc(150, y, cue, filled=self.steps == 0)
            if answer < 0:
                text(230, y, "none yet", "#888888")
                continue
            right = answer == asked
            disc(246, y, answer, filled=True)
            verdict = "right" if right else f"wrong, it was {asked}"
            text(272, y, verdict, "#2c7a46" if right else "#c8443c")
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))

    def state_dict(self) -> Tree:
        return {
            "cue": self.cue,
            "steps": self.steps,
            "asked": self.asked,
            "answers": self.answers,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Tree) -> None:
        self._show(state["cue"].clone())
        self.steps = state["steps"]
        self.asked, self.answers = state["asked"].clone(), state["answers"].clone()
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        pass


def names() -> list[str]:
    """The suite's environments."""
    return ["recall"]


def make(name: str, num_envs: int, **arguments: Any) -> Recall:
    """A batch of `recall`."""
    return Recall(num_envs, **arguments)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs."""
    found = dict(inspect.signature(Recall).parameters)
    del found["num_envs"]
    return found


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return get_type_hints(Recall.__init__)


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return (Recall,)
