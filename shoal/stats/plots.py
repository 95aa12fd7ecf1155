"""Figures of a comparison: curves, final performance, profile, probability of improvement.

Ink and lines have colours of their own (`INK`, `FAINT`), which a report replaces by its theme's.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from shoal.config import slug
from shoal.evaluate import WORDS
from shoal.stats import aggregate
from shoal.stats.aggregate import Array
from shoal.stats.references import Reference
from shoal.stats.runs import Comparison
from shoal.stats.summary import normalised

# Okabe and Ito 2008: told apart with any colour vision, on white and on black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)))  # a second and third round of the colours
MARKERS = ("o", "s", "D")
INK, FAINT = "#1b1f24", "#c9ced6"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shoal",
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "pdf.fonttype": 42,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
}
AXES = {"env_steps": "environment steps", "seconds": "seconds of training"}


def quantity(metric: str) -> str:
    """Of an axis."""
    return WORDS.get(metric, f"return per agent of {metric.partition('.')[2]}")


def look(comparison: Comparison, label: str) -> dict[str, Any]:
    """Colour and line of a label, the same in every figure."""
    index = comparison.labels.index(label)
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def draw_all(comparison: Comparison, references: dict[str, Reference], summary: dict[str, Any]) -> dict[str, Any]:
    """Every figure by its file's name."""
    import matplotlib

    found: dict[str, Any] = {}
    with matplotlib.rc_context(STYLE):
        for task in comparison.tasks:
            name = slug(task)
            for x in AXES:
                found[f"{name}_{x}"] = _curves(comparison, task, x)
            found[f"{name}_final"] = _final(comparison, task, summary)
        if comparison.everywhere and (references or len(comparison.tasks) == 1):
            found["profile"] = _profile(comparison, references)
        if summary["improvement"]:
            found["improvement"] = _improvement(comparison, summary)
        if references and comparison.everywhere and len(comparison.tasks) > 1:
            found["all_tasks_env_steps"] = _overall_curves(comparison, references)
        for figure in found.values():  # laid out once, for all formats
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return found


def save(figures: dict[str, Any], directory: Path) -> None:
    """Each as PNG, SVG and PDF."""
    import matplotlib

    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in figures.items():
            for ending in ("png", "svg", "pdf"):
                dated = {"Date": None} if ending == "svg" else {"CreationDate": None} if ending == "pdf" else {}
                figure.savefig(directory / f"{name}.{ending}", dpi=160, facecolor="white", metadata=dated)


def svg(figure: Any, name: str) -> str:
    """An inline drawing: transparent, as wide as its place, its ink the theme's, its ids its own (`name`)."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", drawing, count=1)
    drawing = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    return drawing.replace(INK, "var(--ink)").replace(FAINT, "var(--line)")


def _axes(width: float = 5.4, height: float = 3.5) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _short(value: float) -> str:
    """150k, 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _legend(figure: Any, labels: list[str]) -> None:
    """Above the axes; one column where labels are long."""
    columns = max(1, min(len(labels), 60 // (max(map(len, labels)) + 5)))
    figure.legend(loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.4, borderpad=0.1)


def _band(axes: Any, grid: Array, line: Array, low: Array, high: Array, style: dict[str, Any], label: str) -> None:
    if len(grid) == 1:
        axes.plot(grid, line, marker="o", label=label, **style)
    else:
        axes.plot(grid, line, linewidth=1.9, label=label, **style)
    axes.fill_between(grid, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _curves(comparison: Comparison, task: str, x: str) -> Any:
    """Interquartile mean over the runs against steps or seconds, with its band.

    Where one run was over before another was first evaluated there is no second to compare them at: then every run has
    a line.
    """
    figure, axes = _axes()
    axes.set_title(task, fontsize=9.5, loc="left")
    for label, runs in comparison.tasks[task].items():
        curves, style = [comparison.curve(run, x) for run in runs], look(comparison, label)
        if not aggregate.overlap(curves):
            for k, curve in enumerate(curves):
                axes.plot(*curve, linewidth=0.9, label=None if k else label, **style)
            continue
        grid = aggregate.common_grid(curves)
        _band(axes, grid, *aggregate.sample_efficiency([curves], grid), style, label)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel(f"{quantity(comparison.metric)}, IQM and 95 % band")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    _legend(figure, list(comparison.tasks[task]))
    return figure


def _overall_curves(comparison: Comparison, references: dict[str, Reference]) -> Any:
    """Normalised scores of all tasks against the share of each run's steps."""
    figure, axes = _axes()
    for label in comparison.everywhere:
        tasks = []
        for task in comparison.tasks:
            reference, curves = references[task], []
            for run in comparison.tasks[task][label]:
                x, y = (np.asarray(values) for values in comparison.curve(run, "env_steps"))
                curves.append((x / x[-1], aggregate.normalise(y, reference.low, reference.high)))
            tasks.append(curves)
        grid = aggregate.common_grid([curve for curves in tasks for curve in curves])
        _band(axes, grid, *aggregate.sample_efficiency(tasks, grid), look(comparison, label), label)
    axes.set_xlabel("share of the training steps")
    axes.set_ylabel("normalised score, IQM")
    _legend(figure, comparison.everywhere)
    return figure


def _final(comparison: Comparison, task: str, summary: dict[str, Any]) -> Any:
    """Every run as a dot, the interquartile mean as a mark, its interval as a bar."""
    groups = summary["tasks"][task]
    figure, axes = _axes(5.4, 0.95 + 0.38 * len(groups))
    axes.set_title(task, fontsize=9.5, loc="left")
    for row, (label, group) in enumerate(groups.items()):
        colour = look(comparison, label)["color"]
        spread = np.linspace(-0.16, 0.16, len(group["scores"])) if len(group["scores"]) > 1 else [0.0]
        axes.scatter(group["scores"], row + np.asarray(spread), s=11, color=colour, alpha=0.45, linewidth=0)
        if "ci95" in group["iqm"]:
            axes.plot(group["iqm"]["ci95"], [row, row], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.scatter([group["iqm"]["value"]], [row], marker="|", s=170, color=colour, linewidth=2.4, zorder=3)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(f"{quantity(comparison.metric)}, IQM and 95 % interval")
    return figure


def _profile(comparison: Comparison, references: dict[str, Reference]) -> Any:
    """Share of the runs above each score."""
    figure, axes = _axes()
    raw = not references
    labels, task = comparison.everywhere, next(iter(comparison.tasks))
    scores = {
        label: [comparison.scores(task, label)] if raw else normalised(comparison, references, label)
        for label in labels
    }
    every = np.concatenate([np.concatenate(tasks) for tasks in scores.values()])
    margin = 0.05 * float(np.ptp(every)) or 1.0
    taus = np.linspace(every.min() - margin, every.max() + margin, 201)
    for label, tasks in scores.items():
        line = aggregate.performance_profile(tasks, taus)
        low, high = aggregate.profile_band(tasks, taus)
        style = look(comparison, label)
        axes.step(taus, line, where="post", linewidth=1.9, label=label, **style)
        axes.fill_between(taus, low, high, step="post", color=style["color"], alpha=0.15, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(quantity(comparison.metric) if raw else "normalised score")
    axes.set_ylabel("share of the runs above")
    _legend(figure, labels)
    return figure


def _improvement(comparison: Comparison, summary: dict[str, Any]) -> Any:
    """P(row better than column) as a matrix, blue above one half, orange below."""
    from matplotlib.colors import LinearSegmentedColormap

    labels, cells = comparison.labels, summary["improvement"]
    size = max(3.2, 0.95 * len(labels) + 1.4)
    figure, axes = _axes(size, 0.8 * size)
    values = np.full((len(labels), len(labels)), np.nan)
    for i, one in enumerate(labels):
        for j, other in enumerate(labels):
            cell = cells.get(one, {}).get(other)
            if cell is None:
                continue
            values[i, j] = cell["value"]
            interval = f"\n[{cell['ci95'][0]:.2f}, {cell['ci95'][1]:.2f}]" if "ci95" in cell else ""
            strong = abs(cell["value"] - 0.5) > 0.3
            axes.text(
                j, i, f"{cell['value']:.2f}{interval}", ha="center", va="center", fontsize=7.5,
                color="#ffffff" if strong else "#1b1f25",
            )  # fmt: skip
    palette = LinearSegmentedColormap.from_list("improvement", [COLOURS[1], "#f4f4f4", COLOURS[0]])
    axes.imshow(values, vmin=0, vmax=1, cmap=palette, aspect="auto")
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_ylabel("this one is better ...")
    axes.set_xlabel("... than this one")
    return figure
