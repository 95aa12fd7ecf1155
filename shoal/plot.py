"""Learning curves of one run as a picture."""

from __future__ import annotations

from pathlib import Path

from shoal.log import read_evaluations, read_metrics

UNIT = "return per agent\n(mean over agents of the undiscounted episode reward)"


def curves(directory: Path, title: str) -> Path:
    """Draw `curves.png`: greedy evaluations with 95 % intervals, and exploring returns, against steps and seconds."""
    from matplotlib.figure import Figure

    evaluations, rows = read_evaluations(directory), read_metrics(directory)
    training = [row for row in rows if "train_agent_return" in row]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in (
        (left, "env_steps", "environment steps"),
        (right, "seconds", "seconds of training"),
    ):
        axes.plot(
            [row[key] for row in training],
            [row["train_agent_return"] for row in training],
            color="#9ab7d3",
            linewidth=1,
            label="exploring, while training",
        )
        x = [e[key] for e in evaluations]
        axes.plot(
            x,
            [e["agent_return"]["mean"] for e in evaluations],
            color="#1f4e79",
            marker="o",
            markersize=3,
            label="evaluation",
        )
        low, high = ([e["agent_return"]["ci95"][side] for e in evaluations] for side in (0, 1))
        axes.fill_between(x, list(low), list(high), color="#1f4e79", alpha=0.2, linewidth=0)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(UNIT, fontsize=8)
    left.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    path = directory / "curves.png"
    figure.savefig(path, dpi=120)
    return path
