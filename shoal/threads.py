"""Work shared among threads of this process, each a piece of its own from start to end."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """Threads that wait for work. PyTorch lets go of Python's lock while it computes, so they do compute side by side.

    Dividing a batch once costs a wake-up each. PyTorch's own threads divide every operation, and wait for each other
    after each; on a core that something else also wants, that waiting is many times the work.

    Args:
        count: of threads, the caller's own among them.
    """

    def __init__(self, count: int) -> None:
        self.others = count - 1
        self.pool = ThreadPoolExecutor(self.others, initializer=_start) if self.others else None
        self.inside = threading.local()

    def __deepcopy__(self, memo: object) -> Crew:
        """Copies of what has a crew share its threads."""
        return self

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of every item, in the items' order. Whoever is free takes the next.

        Within an item all threads are taken: what it maps in turn, it does by itself.
        """
        if self.pool is None or len(items) == 1 or getattr(self.inside, "an_item", False):
            return [function(item) for item in items]
        todo = iter(enumerate(items))
        results: dict[int, Result] = {}

        def work() -> None:
            self.inside.an_item = True
            try:
                for place, item in todo:
                    results[place] = function(item)
            finally:
                self.inside.an_item = False

        others = [self.pool.submit(work) for _ in range(min(self.others, len(items) - 1))]
        try:
            work()
        finally:
            wait(others)
        for other in others:
            other.result()
        return [results[place] for place in range(len(items))]


def share(crew: Crew | None, work: Callable[[int], None], count: int) -> None:
    """`work(0)` to `work(count - 1)`, by the threads of a crew if there is one."""
    if crew is None or count == 1:
        for k in range(count):
            work(k)
    else:
        crew.map(work, range(count))


class Sharing(nn.Module):
    """A network whose rows the threads of a crew share."""

    crew: Crew | None = None


def lend(crew: Crew, *modules: nn.Module) -> None:
    """Give it to the networks among these, and within them, that share their rows."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, Sharing):
                part.crew = crew


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as in `train`: it holds for one thread
