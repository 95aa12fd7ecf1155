"""A comparison written down: figures, tables, JSON, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shoal import experiment, film, log
from shoal.config import slug
from shoal.stats import plots
from shoal.stats.references import Reference
from shoal.stats.runs import SCORES, Comparison, differing
from shoal.stats.summary import caption, markdown, marl_eval, summarise, tables

REPORT, SUMMARY, TABLE, MARL_EVAL = "report.html", "summary.json", "table.md", "marl_eval.json"
FILM_WIDTH, FILM_FRAMES = 240, 120


def write(
    comparison: Comparison,
    directory: Path,
    references: dict[str, Reference],
    *,
    films: bool = False,
    title: str = "",
    extra: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    """Write everything into `directory`; returns the summary.

    Args:
        comparison: what is compared.
        references: of the normalised scores, if any.
        films: also film the best run's policy of every label, an episode each.
        title: of the report; empty: the tasks.
        extra: further sections of the report: heading, HTML.
    """
    summary = summarise(comparison, references)
    directory.mkdir(parents=True, exist_ok=True)
    figures = plots.draw_all(comparison, references, summary)
    plots.save(figures, directory / "plots")
    log.replace(directory / SUMMARY, json.dumps(summary, indent=2) + "\n")
    log.replace(directory / TABLE, markdown(summary))
    log.replace(directory / MARL_EVAL, json.dumps(marl_eval(comparison)) + "\n")
    shown = _films(comparison, directory / "films") if films else []
    drawings = {name: plots.svg(figure, name) for name, figure in figures.items()}
    log.replace(directory / REPORT, page(comparison, summary, drawings, shown, title, extra))
    return summary


def _films(comparison: Comparison, directory: Path) -> list[tuple[str, str, Path]]:
    """Task, label and GIF of the best run's policy, small."""
    found = []
    for task, groups in comparison.tasks.items():
        for label, runs in groups.items():
            best = runs[int(comparison.scores(task, label).argmax())]
            run = experiment.open_run(best.directory)
            env = experiment.environment_of(run).make(1, render=True)
            policy = experiment.team(best.directory, env.spec, "best")
            pictures = film.frames(policy, env, episodes=1, seed=1_000_000, max_frames=FILM_FRAMES)
            path = directory / f"{slug(task)}_{slug(label)}.gif"
            film.write(path, _small(pictures), fps=12)
            env.close()
            found.append((task, f"{label}, seed {best.seed}", path))
    return found


def _small(pictures: Iterator[film.Frame]) -> Iterator[film.Frame]:
    for picture in pictures:
        height, width = picture.shape[:2]
        scale = min(FILM_WIDTH / width, 1.0)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        yield np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


# The page


def page(
    comparison: Comparison,
    summary: dict[str, Any],
    drawings: dict[str, str],
    films: list[tuple[str, str, Path]],
    title: str = "",
    extra: tuple[tuple[str, str], ...] = (),
) -> str:
    """The report as HTML: no script, no network."""
    heading = title or ", ".join(comparison.tasks)
    parts = [_lead(comparison, summary, heading), *(_section(name, body) for name, body in extra)]
    parts += [_task_section(task, summary, drawings) for task in comparison.tasks]
    parts.append(_overall_section(summary, drawings))
    if summary["improvement"]:
        parts.append(_section("Probability of improvement", _matrix(comparison.labels, summary["improvement"])))
    if films:
        parts.append(_section("Films of the best policies", _film_grid(films)))
    parts.append(_section("Settings", _settings(comparison)))
    parts.append(_section("Versions and machines", _versions(comparison)))
    parts.append(_section("How these figures are computed", METHODS))
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_(heading)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _(text: str) -> str:
    return html.escape(str(text))


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{_(heading)}</h2>\n{body}\n</section>"


def _lead(comparison: Comparison, summary: dict[str, Any], heading: str) -> str:
    runs = sum(len(members) for groups in comparison.tasks.values() for members in groups.values())
    counts = f"{runs} runs, {len(comparison.labels)} kinds, {_many(len(comparison.tasks), 'task')}"
    notes = "".join(f"<li>{_(note)}</li>" for note in summary["notes"])
    findings = "".join(f"<li>{_finding(task, groups)}</li>" for task, groups in summary["tasks"].items())
    return (
        f'<header>\n<p class="kicker">shoal compare</p>\n<h1>{_(heading)}</h1>\n'
        f'<p class="sub">{_(counts)}. Unit: {_(caption(summary))}.</p>\n'
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + f'<ul class="findings">{findings}</ul>\n</header>'
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _finding(task: str, groups: dict[str, Any]) -> str:
    """Who is ahead, and of whom that cannot be said."""
    order = sorted(groups, key=lambda label: -groups[label]["iqm"]["value"])
    first, rest = order[0], order[1:]
    best = groups[first]["iqm"]
    text = f"<strong>{_(task)}</strong>: highest interquartile mean {best['value']:.2f}, {_(first)}"
    if not rest:
        return text + "."
    if any("ci95" not in groups[label]["iqm"] for label in order):
        return text + "; with single runs nothing can be said about chance."
    close = [label for label in rest if groups[label]["iqm"]["ci95"][1] >= best["ci95"][0]]
    if not close:
        return text + "; its interval overlaps no other's."
    return text + f"; its interval overlaps that of {_(' and of '.join(close))}."


def _figure(drawing: str, text: str) -> str:
    return f"<figure>{drawing}<figcaption>{_(text)}</figcaption></figure>"


def _task_section(task: str, summary: dict[str, Any], drawings: dict[str, str]) -> str:
    name = slug(task)
    header, body = next((header, body) for title, header, body in tables(summary) if title == task)
    groups = summary["tasks"][task]
    body = [[*row, f"{groups[row[0]]['seconds']:,.0f}"] for row in body]
    figures = _figure(drawings[f"{name}_env_steps"], "Against environment steps: IQM over the runs, 95 % band.")
    figures += _figure(drawings[f"{name}_seconds"], "Against seconds of training, evaluations excluded.")
    final = _figure(drawings[f"{name}_final"], f"Final performance ({SCORES[summary['score']]}): a dot a run.")
    return _section(task, f'<div class="pair">{figures}</div>\n{final}\n{table((*header, "seconds"), body)}')


def _overall_section(summary: dict[str, Any], drawings: dict[str, str]) -> str:
    if "profile" not in drawings:
        return ""  # no kind of runs has been in every task, or units differ
    figures = _figure(drawings["profile"], "Performance profile: the share of the runs that score above each value.")
    if "all_tasks_env_steps" in drawings:
        figures += _figure(drawings["all_tasks_env_steps"], "All tasks together: IQM of the normalised scores.")
    text = f'<div class="pair">{figures}</div>'
    if summary["normalised"]:
        title, header, body = tables(summary)[-1]
        words = "".join(f"<li>{_(task)}: {_(w)}</li>" for task, w in summary["references"].items())
        text += table(header, body) + f'<p class="small">Scores are normalised:</p><ul class="small">{words}</ul>'
        return _section(title[0].upper() + title[1:], text)
    if summary["references"]:
        text += "".join(f'<p class="small">{_(w)}</p>' for w in summary["references"].values())
    return _section("Performance profile", text)


def table(header: tuple[str, ...], body: list[list[str]]) -> str:
    """HTML; it scrolls sideways where the window is narrow."""
    head = "".join(f'<th scope="col">{_(name)}</th>' for name in header)
    lines = []
    for row in body:
        cells = "".join(f"<td>{_(cell)}</td>" for cell in row[1:])
        lines.append(f'<tr><th scope="row">{_(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
    )


def _matrix(labels: list[str], cells: dict[str, Any]) -> str:
    """Rows against columns, coloured: blue where the row is better, orange where the column is."""
    head = "".join(f'<th scope="col">{_(label)}</th>' for label in labels)
    lines = []
    for one in labels:
        row = []
        for other in labels:
            cell = cells.get(one, {}).get(other)
            if cell is None:
                row.append('<td class="none"></td>')
                continue
            share = round(abs(cell["value"] - 0.5) * 130)
            side = "high" if cell["value"] >= 0.5 else "low"
            interval = "<br><small>{:.2f} to {:.2f}</small>".format(*cell["ci95"]) if "ci95" in cell else ""
            row.append(f'<td class="{side}" style="--share:{share}%">{cell["value"]:.2f}{interval}</td>')
        lines.append(f'<tr><th scope="row">{_(one)}</th>{"".join(row)}</tr>')
    return (
        "<p>The probability that a run of the row scores above a run of the column on the same task, with its 95 % "
        "interval. One half means that neither is better.</p>"
        f'<div class="scroll" tabindex="0"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _film_grid(films: list[tuple[str, str, Path]]) -> str:
    figures = []
    for task, label, path in films:
        data = base64.b64encode(path.read_bytes()).decode()
        alt = f"An episode of {label} in {task}"
        figures.append(
            f'<figure><img alt="{_(alt)}" src="data:image/gif;base64,{data}">'
            f"<figcaption>{_(label)}<br>{_(task)}</figcaption></figure>"
        )
    return f'<div class="films">{"".join(figures)}</div>'


def _settings(comparison: Comparison) -> str:
    """What differs between the kinds of runs, task by task, and everything there is below it."""
    parts = []
    for task, groups in comparison.tasks.items():
        choices = {label: runs[0].choices() for label, runs in groups.items()}
        names = [name for name in differing(list(choices.values())) if sum(name in c for c in choices.values()) > 1]
        body = [[name, *(_value(c.get(name)) for c in choices.values())] for name in names]
        same = table(("", *choices), body) if body else "<p>Settings that they have in common do not differ.</p>"
        whole = "".join(
            f"<h4>{_(label)}</h4><p class='mono'>{_(', '.join(f'{k} {_value(v)}' for k, v in c.items()))}</p>"
            for label, c in choices.items()
        )
        parts.append(f"<h3>{_(task)}</h3>{same}<details><summary>All settings</summary>{whole}</details>")
    return "".join(parts)


def _value(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(comparison: Comparison) -> str:
    """Every combination of versions and machine, and the number of runs made with it."""
    found: dict[tuple[tuple[str, str], ...], int] = {}
    for groups in comparison.tasks.values():
        for run in (run for runs in groups.values() for run in runs):
            key = tuple(sorted(run.versions.items()))
            found[key] = found.get(key, 0) + 1
    names = list(dict.fromkeys(name for key in found for name, _value in key))
    body = [[str(count), *(dict(key).get(name, "") for name in names)] for key, count in found.items()]
    return table(("runs", *names), body)


METHODS = """<dl>
<dt>IQM</dt><dd>Interquartile mean: the mean of the runs without the lowest and the highest quarter.</dd>
<dt>95 %</dt><dd>Percentile bootstrap over the runs, stratified by task. It is about other seeds, not about other
episodes. With fewer than ten runs it is too narrow.</dd>
<dt>Optimality gap</dt><dd>By how much normalised scores fall short of 1, in the mean.</dd>
<dt>Probability of improvement</dt><dd>The Mann-Whitney U statistic over the number of pairs, ties counted half,
averaged over tasks.</dd>
<dt>Curves</dt><dd>Evaluations, greedy unless settings say sampled, on a common grid, straight lines between them.</dd>
</dl>
<p class="small">Agarwal et al. 2021 (arXiv 2108.13264), Gorsane et al. 2022 (arXiv 2209.10485). The same numbers are in
summary.json, the figures in plots/, episodes in marl_eval.json.</p>"""

CSS = """
:root { --ink: #1b1f24; --muted: #59636e; --line: #d5dae1; --paper: #ffffff; --panel: #f6f8fa; --blue: #0072b2;
  --orange: #d55e00; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --muted: #9aa4af; --line: #3a424c; --paper: #14181d;
  --panel: #1c2229; --blue: #4ba3d9; --orange: #f08a4b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
header { margin-bottom: 12px; }
.kicker { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 4px 0 12px; font-size: clamp(24px, 4vw, 34px); line-height: 1.2; font-weight: 650;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 16px; font-size: 21px; line-height: 1.3; font-weight: 650; overflow-wrap: anywhere; }
h3 { margin: 20px 0 8px; font-size: 16px; }
h4 { margin: 14px 0 0; font-size: 14px; }
p { margin: 0 0 12px; max-width: 72ch; }
section { border-top: 1px solid var(--line); margin-top: 36px; padding-top: 24px; }
.sub { color: var(--muted); }
.small, figcaption, small { color: var(--muted); font-size: 13px; }
.mono { font: 12.5px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; max-width: none;
  overflow-wrap: anywhere; }
.notes { margin: 16px 0; padding: 12px 16px 12px 34px; background: var(--panel); border-left: 3px solid var(--orange); }
.findings { margin: 16px 0 0; padding-left: 20px; }
.findings li { margin: 4px 0; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px; }
.pair figure:only-child { max-width: 640px; }
figure { margin: 0 0 20px; }
figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
section > figure { max-width: 560px; }
svg text { font-family: inherit !important; }
figcaption { margin-top: 8px; }
.scroll { overflow-x: auto; margin: 4px 0 16px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14.5px; min-width: 50%; }
th, td { padding: 7px 18px 7px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); font-weight: 600; }
thead th { color: var(--muted); font-weight: 500; font-size: 13px; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
.matrix { min-width: 0; }
.matrix td, .matrix thead th { padding: 8px 12px; text-align: center; min-width: 84px; }
.matrix th:first-child { padding-right: 14px; }
.matrix td { border: 2px solid var(--paper); line-height: 1.25; }
.matrix .high { background: color-mix(in srgb, var(--blue) var(--share), var(--panel)); }
.matrix .low { background: color-mix(in srgb, var(--orange) var(--share), var(--panel)); }
.matrix small { color: inherit; opacity: .85; font-size: 11.5px; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 20px; }
.films img { display: block; width: 100%; max-width: 240px; border: 1px solid var(--line); border-radius: 4px; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--blue); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 8px 20px; max-width: 84ch; margin: 0 0 16px; }
dt { font-weight: 600; }
dd { margin: 0; }
@media (max-width: 720px) {
  main { padding: 24px 16px 48px; }
  .pair { grid-template-columns: minmax(0, 1fr); gap: 8px; }
  dl { grid-template-columns: 1fr; gap: 2px; }
  dd { margin-bottom: 10px; }
  th, td { padding-right: 14px; }
  .films { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
}
"""
