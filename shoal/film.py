"""Films of greedy episodes: GIF with pillow, MP4 with the extra `mp4`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shoal.types import Groups, Policy, Renderable, ShoalError, Step, VecEnv

Frame = NDArray[np.uint8]
COLOURS = 256
"""Of a GIF, at most."""


def frames(policy: Policy, env: VecEnv, episodes: int = 4, seed: int = 0, max_frames: int = 1000) -> Iterator[Frame]:
    """Pictures through `episodes` greedy episodes of environment 0; several environments side by side in a grid.

    Where the environment cannot draw itself, its observations, actions and rewards are drawn as bars.
    """
    view, start = env.reset(seed), policy.initial_memory(env.num_envs)
    memory = {name: tensor.clone() for name, tensor in start.items()}
    draws = _draws(env)
    if draws:
        yield grid([env.render(i) for i in range(env.num_envs)])  # type: ignore[attr-defined]
    for _ in range(max_frames):
        actions, memory = policy.act(view, memory, explore=False)
        step = env.step(actions)
        episodes -= int(step.ended[0])
        if not draws:
            yield grid([schematic(env, step, actions, i) for i in range(env.num_envs)])
        elif episodes > 0:  # where an episode has ended, a picture already shows the next one's start
            yield grid([env.render(i) for i in range(env.num_envs)])  # type: ignore[attr-defined]
        if episodes <= 0:
            return
        for name, remembered in memory.items():
            remembered[step.ended] = start[name][step.ended]
        view = step.view


def grid(pictures: list[Frame]) -> Frame:
    """Pictures of one size in a grid about as wide as high, a line between them."""
    if len(pictures) == 1:
        return pictures[0]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    sheet = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 200, np.uint8)
    for k, picture in enumerate(pictures):
        top, left = (k // columns) * (height + 2), (k % columns) * (width + 2)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _draws(env: VecEnv) -> bool:
    if not isinstance(env, Renderable):
        return False
    try:
        env.render(0)
    except Exception:  # whatever a user's render() raises without a screen: draw it ourselves
        return False
    return True


def schematic(env: VecEnv, step: Step, actions: Groups, index: int = 0, width: int = 480) -> Frame:
    """Every agent as a row: observation bars, the action, the reward. For environments that have no picture."""
    rows = [(n, j) for n, group in env.spec.groups.items() for j in range(group.num_agents)]
    height = 34 * len(rows) + 8
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for k, (name, j) in enumerate(rows):
        top, alive = 6 + 34 * k, bool(step.alive[name][index, j])
        draw.text((6, top + 8), env.spec.groups[name].agents[j], fill="#222222" if alive else "#bbbbbb")
        obs = step.successor.obs[name][index, j].flatten().numpy()[:60]
        scale = max(float(np.abs(obs).max(initial=0)), 1e-9)
        bar = 200 / max(len(obs), 1)
        for i, value in enumerate(obs):
            x, y = 110 + i * bar, top + 14
            end = y - 13 * float(value) / scale
            draw.rectangle([x, min(y, end), x + max(bar - 1, 0), max(y, end)], fill="#5b8db8" if alive else "#dddddd")
        chosen = np.array2string(actions[name][index, j].numpy(), precision=2, separator=",")
        draw.text((325, top + 2), f"action {chosen}"[:26], fill="#222222" if alive else "#bbbbbb")
        draw.text(
            (325, top + 15),
            f"reward {float(step.reward[name][index, j]):.2f}",
            fill="#222222" if alive else "#bbbbbb",
        )
    return np.asarray(picture)


def check_name(path: Path) -> None:
    """Refuse what `write` could not write, before anything is played.

    Raises:
        ShoalError: neither .gif nor .mp4, or the extra for .mp4 is missing.
    """
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ShoalError(f"a film ends in .gif or .mp4, not {path.name!r}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ShoalError("MP4 needs the extra: pip install 'shoal[mp4]' (a .gif needs nothing)")


def _palette(images: list[Frame]) -> Image.Image:
    """One for all frames, since colours flicker with one each: every colour there is, or where there are too many the
    most frequent of 32 frames."""
    found: set[Any] = set()
    for image in images:
        colours = Image.fromarray(image).getcolors(COLOURS)
        found |= {colour for _, colour in colours or []}
        if colours is None or len(found) > COLOURS:
            sample = np.concatenate(images[:: max(len(images) // 32, 1)])
            return Image.fromarray(sample).quantize(COLOURS, dither=Image.Dither.NONE)
    exact = Image.new("P", (1, 1))
    exact.putpalette([value for colour in sorted(found) for value in colour])
    return exact


def write(path: Path, pictures: Iterator[Frame], fps: int = 10) -> Path:
    """A .gif, or a .mp4 (extra: mp4).

    Raises:
        ShoalError: another ending, a missing extra, or no pictures.
    """
    check_name(path)
    images = list(pictures)
    if not images:
        raise ShoalError("there is nothing to show: no episode was played")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        first = _palette(images)
        drawn = [Image.fromarray(i).quantize(COLOURS, palette=first, dither=Image.Dither.NONE) for i in images]
        drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=1000 // fps, loop=0)
        return path
    import imageio.v2

    imageio_: Any = imageio.v2
    with imageio_.get_writer(path, fps=fps, macro_block_size=None) as writer:
        for image in images:
            even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
            writer.append_data(even)
    return path
