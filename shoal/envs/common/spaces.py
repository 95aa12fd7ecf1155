"""The spaces of gymnasium, agent by agent: how observations are read, actions written, and who forms a group."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from shoal.types import SELF, Action, Box, Discrete, GroupSpec, Part, ShoalError

MAX_CHOICES = 4096
"""Joint choices that are still numbered one by one."""
MAX_FLAT = 65_536
"""Numbers in a flattened observation."""
MASK = "action_mask"
FLATTENED = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Tuple, spaces.Dict)
CHANNELS = (1, 3, 4)


class Misfit(ShoalError):
    """What an environment shows or asks for does not fit.

    Args:
        what: was seen.
        fix: what would be right.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}: {fix[0].lower()}{fix[1:]}")
        self.what, self.fix = what, fix


class AgentAdapter:
    """One agent's spaces: how its observations are read and its actions written.

    Raises:
        Misfit: a space that cannot be used.
    """

    def __init__(self, agent: str, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.agent = agent
        self.shows_mask = isinstance(observation, spaces.Dict) and MASK in observation.spaces
        self.beside = [k for k in observation.spaces if k != MASK] if isinstance(observation, spaces.Dict) else []
        self.space = self._without_mask(observation)
        self.flatten = isinstance(self.space, FLATTENED)
        self.shape = self._shape()
        self.image = self._is_image()
        self.obs_shape = self._layout(np.zeros(self.shape, np.uint8)).shape if self.image else self.shape
        self.action_space, self.sizes = action, _sizes(action)
        self.low = self.high = np.zeros(0, np.float32)
        """Bounds of continuous actions; nothing for others."""
        self.action: Action = self._action(action)
        self.masked = self.shows_mask and isinstance(self.action, Discrete)
        """Whether not all actions are legal at all times. Who finds masks elsewhere (in `info`) sets it."""

    def _without_mask(self, observation: Any) -> Any:
        if not self.shows_mask:
            return observation
        if self.beside == ["observation"]:
            return observation["observation"]
        if not self.beside:
            raise Misfit(f"{self.agent} observes its action mask and nothing else", "Add an entry `observation`")
        return spaces.Dict({key: observation[key] for key in self.beside})

    def _shape(self) -> tuple[int, ...]:
        if self.flatten:
            if not self.space.is_np_flattenable:
                raise Misfit(f"the observation space of {self.agent} cannot be flattened ({self.space})", "Give a Box")
            size = spaces.flatdim(self.space)
            if size > MAX_FLAT:
                raise Misfit(
                    f"the observation space of {self.agent} flattens to {size:,} numbers ({self.space})",
                    f"Give a Box, or at most {MAX_FLAT:,} numbers; a Discrete(n) becomes n of them",
                )
            return (size,)
        if isinstance(self.space, spaces.Box):
            return self.space.shape or (1,)
        raise Misfit(
            f"the observation space of {self.agent} is {self.space}", "Give a Box, or a space that flattens to one"
        )

    def _is_image(self) -> bool:
        """Bytes up to 255 in two or three axes; planes of zeros and ones are numbers like others."""
        space = self.space
        return (
            isinstance(space, spaces.Box)
            and space.dtype == np.uint8
            and len(self.shape) in (2, 3)
            and int(space.high.max()) == 255
        )

    def _layout(self, picture: NDArray[Any]) -> NDArray[Any]:
        """`[height, width, channel]` from a picture without channels, or with channels first."""
        if picture.ndim == 2:
            return picture[..., None]
        first = picture.shape[0] in CHANNELS and picture.shape[-1] not in CHANNELS
        return np.moveaxis(picture, 0, -1) if first else picture

    def _action(self, space: spaces.Space[Any]) -> Action:
        if isinstance(space, spaces.Box):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise Misfit(
                    f"the action space of {self.agent} has no bounds ({space})",
                    "Give it finite low and high, to which actions in [-1, 1] are rescaled",
                )
            self.low, self.high = space.low.ravel(), space.high.ravel()
            return Box(int(np.prod(space.shape)))
        if not self.sizes:
            raise Misfit(
                f"the action space of {self.agent} is {space}",
                "Give a Discrete, a Box, or a space that consists of discrete choices",
            )
        if len(self.sizes) > 1 and math.prod(self.sizes) > MAX_CHOICES:
            raise Misfit(
                f"the action space of {self.agent} has {math.prod(self.sizes):,} joint choices ({space})",
                f"Give at most {MAX_CHOICES:,}, which are numbered one by one, or a Box",
            )
        return Discrete(math.prod(self.sizes))

    def plain(self, value: Any) -> Any:
        """What is observed, without an action mask beside it."""
        if not self.shows_mask:
            return value
        return value["observation"] if self.beside == ["observation"] else {key: value[key] for key in self.beside}

    def read(self, value: Any) -> NDArray[Any]:
        """Observation `[*obs_shape]`.

        Raises:
            Misfit: it has another shape, or holds NaN, infinity or no numbers.
        """
        value = self.plain(value)
        obs = np.asarray(spaces.flatten(self.space, value) if self.flatten else value)
        if obs.shape != self.shape and not obs.size == math.prod(self.shape) == 1:
            raise Misfit(
                f"the observation of {self.agent} has shape {obs.shape}, its space says {self.shape}",
                "Make observation_space and what is returned agree",
            )
        if obs.dtype.kind not in "fiub":
            raise Misfit(f"the observation of {self.agent} holds {obs.dtype}", "Return numbers")
        if obs.dtype.kind == "f" and not np.isfinite(obs).all():
            raise Misfit(
                f"the observation of {self.agent} holds NaN or infinity", "Find the division or the overflow behind it"
            )
        return self._layout(obs) if self.image else obs.reshape(self.shape)

    def read_mask(self, observation: Any, info: Any, *, strict: bool = False) -> NDArray[np.bool_] | None:
        """Which actions are legal `[size]`; None where nothing says so, and all are.

        The mask of a joint action is one of all joint choices, or a tuple with one of each part.

        Raises:
            Misfit: it has another size; if `strict`, also that it holds something else than 0 and 1.
        """
        found = observation.get(MASK) if self.shows_mask else info.get(MASK) if isinstance(info, dict) else None
        if found is None:
            return None
        joint = isinstance(found, tuple | list) and len(found) == len(self.sizes) > 1
        for part in (found if joint else (found,)) if strict else ():
            numbers = np.asarray(part, np.float64)
            if not np.isin(numbers, (0, 1)).all():
                raise Misfit(f"the action mask of {self.agent} holds {numbers.tolist()}", "1: legal, 0: not")
        if joint:
            parts = [np.asarray(part, bool).ravel() for part in found]
            mask = functools.reduce(np.logical_and.outer, parts).ravel()
        else:
            mask = np.asarray(found, bool)
        if mask.shape != (self.action.size,):
            raise Misfit(
                f"the action mask of {self.agent} has shape {mask.shape}",
                f"One entry for each of its {self.action.size} actions is needed",
            )
        return mask

    def write(self, action: NDArray[Any]) -> Any:
        """The environment's own action from ours."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return int(action) + int(space.start)
        if isinstance(space, spaces.Box):
            scaled = self.low + (action.clip(-1, 1) + 1) / 2 * (self.high - self.low)
            return scaled.astype(space.dtype).reshape(space.shape).clip(space.low, space.high)
        return _value(space, iter(np.unravel_index(int(action), self.sizes)))

    @property
    def parts(self) -> tuple[Part, ...]:
        """A `Dict`'s entries `[thing, size]` are things of a kind; nothing where it has none."""
        entries = self.space.spaces if isinstance(self.space, spaces.Dict) else {}
        found = [
            Part(key, entry.shape[1], entry.shape[0])
            if isinstance(entry, spaces.Box) and len(entry.shape) == 2 and key != SELF
            else Part(SELF, spaces.flatdim(entry))
            for key, entry in entries.items()
        ]
        return tuple(found) if any(part.name != SELF for part in found) else ()

    @property
    def kind(self) -> tuple[str, tuple[int, ...], Action, bool, bool, tuple[Part, ...]]:
        """Agents of the same kind share a group."""
        stem = re.sub(r"[_\-]?\d+$", "", self.agent) or "agent"
        return stem, self.obs_shape, self.action, self.masked, self.image, self.parts


def _sizes(space: spaces.Space[Any]) -> list[int]:
    """The numbers of choices of which a space consists; empty where it is not made of choices."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.ravel()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * math.prod(space.shape)
    if isinstance(space, spaces.Tuple | spaces.Dict):
        parts = [_sizes(part) for part in _parts(space)]
        return [n for part in parts for n in part] if all(parts) else []
    return []


def _parts(space: spaces.Tuple | spaces.Dict) -> list[spaces.Space[Any]]:
    return list(space.spaces.values()) if isinstance(space, spaces.Dict) else list(space.spaces)


def _value(space: spaces.Space[Any], chosen: Iterator[Any]) -> Any:
    """An element of `space` from the number of each choice, in the order of `_sizes`."""
    if isinstance(space, spaces.Discrete):
        return int(next(chosen)) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        numbers = np.array([next(chosen) for _ in range(space.nvec.size)]).reshape(space.nvec.shape)
        return (numbers + space.start).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return np.array([next(chosen) for _ in range(math.prod(space.shape))], space.dtype).reshape(space.shape)
    if isinstance(space, spaces.Dict):
        return {key: _value(part, chosen) for key, part in space.spaces.items()}
    assert isinstance(space, spaces.Tuple)
    return tuple(_value(part, chosen) for part in space.spaces)


def group_agents(adapters: list[AgentAdapter]) -> dict[str, GroupSpec]:
    """Groups by kind, named by the stem; where unlike agents share a stem, all but the first get a number."""
    kinds: dict[Any, list[str]] = {}
    for adapter in adapters:
        kinds.setdefault(adapter.kind, []).append(adapter.agent)
    groups: dict[str, GroupSpec] = {}
    for (stem, obs_shape, action, masked, image, parts), names in kinds.items():
        name, number = stem, 1
        while name in groups:
            number += 1
            name = f"{stem}_{number}"
        groups[name] = GroupSpec(tuple(names), obs_shape, action, masked, image, parts)
    return groups
