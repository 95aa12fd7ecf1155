"""Pictures of particle worlds, as people know them: white ground, coloured discs with a dark rim, words below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from shoal.envs.mpe.env import ParticleEnv

SMOOTH = 3  # drawn this much larger, then scaled down: antialiasing
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def draw(env: ParticleEnv, index: int, size: int = 350) -> NDArray[np.uint8]:
    """Environment `index` as `[size, size, 3]`. The view widens when something leaves the field, [-1.1, 1.1]."""
    world, layout = env.world_of(index), env.layout
    field = 1.1
    reach = max(field, 1.02 * float((np.abs(world.pos).max(1) + world.size).max()))
    large, colors = size * SMOOTH, env.colors(index)
    picture = Image.new("RGB", (large, large), "white")
    canvas = ImageDraw.Draw(picture)
    agents = len(layout.agents)
    for entity in np.argsort(-world.size, kind="stable").tolist():  # large below small: nothing is hidden
        x, y = (world.pos[entity, 0] / reach + 1) * large / 2, (1 - world.pos[entity, 1] / reach) * large / 2
        r = world.size[entity] / (reach if env.dynamic_rescaling else field) * large / 2
        fill = tuple(int(255 * min(max(c, 0.0), 1.0)) for c in colors[entity])
        if entity < agents:  # paler than landmarks
            fill = tuple(int(c + (255 - c) * 0.25) for c in fill)
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline="#333333", width=SMOOTH)
    speakers = [i for i, agent in enumerate(layout.agents) if not agent.silent]
    for line, i in enumerate(reversed(speakers)):
        place = (8 * SMOOTH, large - (22 + 16 * line) * SMOOTH)
        text = f"{layout.agents[i].name} says {_word(world.comm[i], env.continuous)}"
        canvas.text(place, text, fill="black", font_size=12 * SMOOTH)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def _word(said: NDArray[np.float64], continuous: bool) -> str:
    if not said.any():
        return "_"
    if continuous:
        return "[" + " ".join(f"{c:.1f}" for c in said) + "]"
    return ALPHABET[int(said.argmax()) % len(ALPHABET)]
