"""Where numbers go: metrics.csv, evaluations.jsonl, TensorBoard and Weights & Biases, and the console."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoal.types import Metrics, ShoalError

METRICS, EVALUATIONS, ABSOLUTE = "metrics.csv", "evaluations.jsonl", "absolute.json"
FIRST = ["env_steps", "seconds"]
KEPT = {*FIRST, "agent_return", "team_return", "group_return"}
"""What every evaluation has."""


class Log:
    """Rows of metrics by environment step. A resumed log drops what was written after its checkpoint.

    Args:
        directory: of the run.
        resume_step: environment steps of the checkpoint that training continues from; 0 starts anew.
        tensorboard: also write `tensorboard/`, if the package is installed.
        wandb: project to log to, or empty.
        config: of the run, for Weights & Biases.
    """

    def __init__(
        self,
        directory: Path,
        resume_step: int = 0,
        *,
        tensorboard: bool = False,
        wandb: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(directory) if row["env_steps"] <= resume_step] if resume_step else []
        self.columns = [
            *FIRST,
            *[c for c in dict.fromkeys(key for row in rows for key in row) if c not in FIRST],
        ]
        self._rewrite(rows)
        path = directory / EVALUATIONS
        kept = [e for e in read_evaluations(directory) if e["env_steps"] <= resume_step] if resume_step else []
        replace(path, "".join(json.dumps(evaluation) + "\n" for evaluation in kept))
        (directory / ABSOLUTE).unlink(missing_ok=True)
        self.sinks: list[Any] = []
        if tensorboard and importlib.util.find_spec("tensorboard"):
            self.sinks.append(_TensorBoard(directory, resume_step))
        if wandb:
            self.sinks.append(_Wandb(directory, wandb, config or {}))

    def write(self, env_steps: int, seconds: float, metrics: Metrics) -> None:
        """One row; new columns widen the table."""
        row: dict[str, Any] = {"env_steps": env_steps, "seconds": round(seconds, 3), **metrics}
        new = [key for key in metrics if key not in self.columns]
        if new:
            self.columns += new
            self._rewrite(read_metrics(self.directory))
        with (self.directory / METRICS).open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow({key: _short(value) for key, value in row.items()})
        for sink in self.sinks:
            sink.write(env_steps, metrics)

    def write_evaluation(self, env_steps: int, seconds: float, summary: dict[str, Any]) -> None:
        """One line of evaluations.jsonl."""
        with (self.directory / EVALUATIONS).open("a") as file:
            file.write(json.dumps({"env_steps": env_steps, "seconds": round(seconds, 3), **summary}) + "\n")

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        lines = [",".join(self.columns)]
        lines += [",".join(_short(row[c]) if c in row else "" for c in self.columns) for row in rows]
        replace(self.directory / METRICS, "\n".join(lines) + "\n")

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class _TensorBoard:
    def __init__(self, directory: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an interrupted run logged after its last checkpoint
        self.writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step or None)

    def write(self, env_steps: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, env_steps)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, directory: Path, project: str, config: dict[str, Any]) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ShoalError("--wandb needs the extra: pip install 'shoal[wandb]'")
        import wandb

        self.run: Any = wandb.init(project=project, name=directory.name, dir=str(directory), config=config)

    def write(self, env_steps: int, metrics: Metrics) -> None:
        self.run.log(metrics, step=env_steps)

    def close(self) -> None:
        self.run.finish()


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv; what a row leaves empty is absent. A last line cut off by a crash is skipped."""
    path = directory / METRICS
    if not path.is_file():
        return []
    with path.open(newline="", errors="replace") as file:
        rows = []
        for row in csv.DictReader(file):
            try:
                rows.append({key: float(value) for key, value in row.items() if key and value})
            except (TypeError, ValueError):
                continue
    return [row for row in rows if "env_steps" in row]


def read_evaluations(directory: Path) -> list[dict[str, Any]]:
    """Lines of evaluations.jsonl; those that are none, such as a last one cut off by a crash, are skipped."""
    path = directory / EVALUATIONS
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            evaluation = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(evaluation, dict) and evaluation.keys() >= KEPT:
            found.append(evaluation)
    return found


def read_absolute(directory: Path) -> dict[str, Any]:
    """The absolute metric of a run that has reached its end; empty: there is none."""
    try:
        found: dict[str, Any] = json.loads((directory / ABSOLUTE).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return found


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


class _Console(Console):
    """One whose reader may go away (`shoal train ... | head`): training goes on."""

    def on_broken_pipe(self) -> None:
        _talk_to_nobody()


def say(text: str) -> None:
    """A line to whoever still reads."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _talk_to_nobody()


def _talk_to_nobody() -> None:
    """What is printed from here on goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Live progress on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, total_steps: int) -> None:
        self.title, self.total_steps = title, total_steps
        self.note = ""
        """What is going on, shown beside the numbers."""
        self.console = _Console()
        self.start_steps: int | None = None
        self.started = self.drawn = time.perf_counter()
        self.metrics: Metrics = {}
        self.learning = False
        self.evaluations: list[tuple[int, float]] = []
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def update(self, env_steps: int) -> None:
        """Redraw, at most five times a second; cheap to call after every rollout."""
        if self.live is None:
            return
        now = time.perf_counter()
        if now - self.drawn > 0.2:
            self.drawn = now
            self._draw(env_steps)

    def log(self, env_steps: int, metrics: Metrics) -> None:
        """New training metrics."""
        self.metrics |= metrics
        if not self.learning and metrics.get("updates"):  # until now much was compiled, which says nothing of rates
            self.learning, self.drawn = True, time.perf_counter()
            self.begin(env_steps)
        if self.live is None and len(metrics) and self._due():
            self.console.print(self._line(env_steps), highlight=False, soft_wrap=True)

    def evaluation(self, env_steps: int, agent_return: float, text: str, seconds: float) -> None:
        """A finished evaluation."""
        self.evaluations.append((env_steps, agent_return))
        line = f"{env_steps:>11,} steps  {seconds:6.0f} s  evaluation: {text}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def close(self, env_steps: int) -> None:
        if self.live:
            self._draw(env_steps)
            self.live.stop()

    def _due(self) -> bool:
        now = time.perf_counter()
        if now - self.drawn < 5.0:
            return False
        self.drawn = now
        return True

    def _rates(self, env_steps: int) -> tuple[float, float]:
        """Environment steps a second of this process, and seconds that remain (evaluations included)."""
        if self.start_steps is None:
            self.start_steps = env_steps
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        rate = (env_steps - self.start_steps) / elapsed
        left = max(self.total_steps - env_steps, 0)  # the last rollout may go beyond
        return rate, left / rate if rate > 0 else float("inf")

    def begin(self, env_steps: int) -> None:
        """Rates count from here; on a terminal, progress is drawn."""
        if self.live:
            self.live.start()
        self.start_steps, self.started = env_steps, time.perf_counter()

    def _line(self, env_steps: int) -> str:
        rate, left = self._rates(env_steps)
        parts = [f"{env_steps:>11,} steps", f"{rate:,.0f} steps/s", f"{clock(left)} left"]
        if "train_agent_return" in self.metrics:
            parts.append(f"return {self.metrics['train_agent_return']:.2f} per agent (exploring)")
        return "  ".join([*parts, self._split(), self.note]).rstrip()

    def _split(self) -> str:
        names = {"play": "playing", "env": "environment", "act": "acting", "learn": "learning"}
        shares = [(label, self.metrics.get(f"time_{name}")) for name, label in names.items()]
        return "time: " + ", ".join(f"{label} {share:.0%}" for label, share in shares if share is not None)

    def _draw(self, env_steps: int) -> None:
        assert self.live is not None
        rate, left = self._rates(env_steps)
        table = Table.grid(padding=(0, 2))
        title = " · ".join(filter(None, [self.title, self.note]))
        table.add_row(Text(title, style="bold"), f"{env_steps:,} / {self.total_steps:,} steps")
        table.add_row(
            ProgressBar(total=self.total_steps, completed=env_steps, width=40),
            f"{rate:,.0f} steps/s   {clock(left)} left",
        )
        exploring = self.metrics.get("train_agent_return")
        if exploring is not None:
            table.add_row(
                _sparkline([value for _, value in self.evaluations]),
                f"return {exploring:.2f} per agent (exploring)",
            )
        shown = [f"{name} {self.metrics[name]:.3g}" for name in self.metrics if name.endswith(("loss", "q"))]
        table.add_row(self._split(), "   ".join(shown))
        self.live.update(Group(table), refresh=True)


def _sparkline(values: list[float]) -> str:
    """Evaluated returns so far as small bars."""
    if not values:
        return "no evaluation yet"
    bars, recent = "▁▂▃▄▅▆▇█", values[-40:]
    low, high = min(recent), max(recent)
    span = (high - low) or 1.0
    return (
        "".join(bars[int((value - low) / span * (len(bars) - 1))] for value in recent) + f" {values[-1]:.2f} evaluated"
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    if seconds == float("inf"):
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
