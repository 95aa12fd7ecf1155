"""One process at a time in a directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from shoal.types import ShoalError

LOCK = ".lock"
POLL = 0.2  # seconds


@contextlib.contextmanager
def locked(directory: Path, patience: float = 60.0) -> Iterator[int]:
    """Nobody else works in `directory`; the descriptor that holds the lock (-1 where the system has none).

    Raises:
        ShoalError: somebody else still does after `patience` seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield -1
        return
    with (directory / LOCK).open("w") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ShoalError(f"another process still works in {directory}") from None
                time.sleep(POLL)
        yield file.fileno()
