"""Learning curves of one run as a picture."""

from __future__ import annotations

from pathlib import Path

from shoal.log import read_evaluations, read_metrics

FEW = 20
"""Points that are marked one by one."""
WIDE = 100
"""Between the largest loss and the smallest, from which decades are drawn alike."""
UNIT = "return per agent\n(mean over agents of the undiscounted episode reward)"


def curves(directory: Path, title: str) -> Path:
    """Draw `curves.png`: evaluations (95 % intervals) and exploring returns against steps and seconds; and losses."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    evaluations, rows = read_evaluations(directory), read_metrics(directory)
    training = [row for row in rows if "train_agent_return" in row]
    losses = [name for name in dict.fromkeys(name for row in rows for name in row) if name.endswith("loss")]
    figure = Figure(figsize=(14 if losses else 10, 4), layout="constrained")
    left, right, *rest = figure.subplots(1, 3 if losses else 2)
    right.sharey(left)
    for axes, key, label in (
        (left, "env_steps", "environment steps"),
        (right, "seconds", "seconds of training"),
    ):
        axes.plot(
            [row[key] for row in training],
            [row["train_agent_return"] for row in training],
            color="#9ab7d3",
            linewidth=1,
            marker="." if len(training) < FEW else None,
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
        axes.fill_between(x, list(low), list(high), color="#1f4e79", alpha=0.2, linewidth=0, label="95 % interval")
        axes.set_xlabel(label)
    for axes in rest:
        for name in losses:
            known = [row for row in rows if name in row]
            axes.plot([row["env_steps"] for row in known], [row[name] for row in known], linewidth=1, label=name)
        sizes = [abs(row[name]) for name in losses for row in rows if row.get(name)]
        if sizes and max(sizes) > WIDE * min(sizes):  # of either sign, and of any size
            axes.set_yscale("symlog", linthresh=max(min(sizes), max(sizes) / 1e6))
        axes.set_ylabel("loss", fontsize=8)
        axes.set_xlabel("environment steps")
        axes.legend(frameon=False, fontsize=8)
    for axes in (left, right, *rest):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    left.set_ylabel(UNIT, fontsize=8)
    left.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    path = directory / "curves.png"
    figure.savefig(path, dpi=120)
    return path
