"""Settings for a task, where the defaults are not the best known: measured ones, with what they reached.

They replace defaults; options on the command line replace them. `shoal train` prints which it used.
"""

from __future__ import annotations

from typing import Any

TASKS: dict[tuple[str, str], dict[str, Any]] = {}


def task(algorithm: str, env: str) -> dict[str, Any]:
    """Field names of `Settings` and of the algorithm's `Config`, with their values for this task."""
    return TASKS.get((algorithm, env), {})
