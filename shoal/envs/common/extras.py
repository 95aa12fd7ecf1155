"""Packages that only some suites need."""

from __future__ import annotations

import importlib
import os
import re
from types import ModuleType

from shoal.types import ShoalError


def headless() -> None:
    """Let suites draw without a screen or a sound card; must run before they are imported."""
    for variable in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(variable, "dummy")
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYGLET_HEADLESS", "1")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, ready to draw without a screen.

    Raises:
        ShoalError: it is not installed; names shoal's extra that brings it.
    """
    headless()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ShoalError(f"{module} cannot be imported ({error}): pip install 'shoal[{extra}]'") from error


def unversioned(name: str) -> str:
    """`Foraging-8x8-2p-1f-v3` -> `Foraging-8x8-2p-1f`."""
    return re.sub(r"-v\d+$", "", name)
