"""shoal compare: what may stand beside what, and what is written about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shoal import cli, experiment, log
from shoal.stats import references, report, runs
from shoal.stats.references import Reference
from shoal.stats.summary import marl_eval, summarise
from shoal.types import ShoalError

SETTINGS = {
    "total_steps": 100, "num_envs": 1, "seed": 0, "out": "", "opponents": [], "eval_every": 50, "eval_episodes": 2,
    "absolute_episodes": 0, "log_every": 0, "threads": 1, "device": "cpu", "tensorboard": False, "wandb": "",
}  # fmt: skip


def record(steps: int, value: float, agents: int = 2) -> dict[str, Any]:
    def about(mean: float) -> dict[str, Any]:
        return {"mean": mean, "std": 1.0, "ci95": [mean - 1, mean + 1]}

    units = {"agent_return": value, "team_return": agents * value}
    samples = {unit: [mean - 1, mean + 1] for unit, mean in units.items()}
    return {
        "env_steps": steps, "seconds": steps / 10, "episodes": 2, **{unit: about(mean) for unit, mean in units.items()},
        "group_return": {"player": about(value)},
        "samples": {**samples, "group_return": {"player": samples["agent_return"]}},
    }  # fmt: skip


def a_run(
    place: Path, algorithm: str, seed: int, values: list[float], *, env: str = "matrix/climbing", lr: float = 1e-3,
    absolute: float | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """A run's directory, as `shoal train` leaves it: evaluations every 50 steps with these mean returns."""
    directory = place / f"{env.replace('/', '_')}_{algorithm}_{lr}_s{seed}"
    directory.mkdir(parents=True)
    total = settings.pop("total_steps", 50 * len(values))
    config = {
        "format": 1, "algorithm": algorithm, "env": env, "env_args": settings.pop("env_args", {}),
        "settings": {**SETTINGS, "seed": seed, "total_steps": total, **settings},
        "config": {"lr": lr, "net": {"hidden": [8, 8]}}, "versions": {"shoal": "0.1.0", "machine": "x, 2 cores"},
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    lines = [json.dumps(record(50 * (k + 1), value)) for k, value in enumerate(values)]
    (directory / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    if absolute is not None:
        (directory / "absolute.json").write_text(json.dumps({**record(50, absolute), "total_steps": total}))
    return directory


def test_runs_are_grouped_by_what_they_are(tmp_path: Path) -> None:
    for seed in (1, 0):
        a_run(tmp_path, "iql", seed, [1.0, 2.0])
        a_run(tmp_path, "iql", seed, [1.0, 3.0], lr=0.1)
        a_run(tmp_path, "qmix", seed, [1.0, 4.0])
        a_run(tmp_path, "qmix", seed, [1.0, 5.0], env="matrix/penalty", env_args={"k": -25.0})
    found = runs.compare(runs.find([tmp_path]))
    assert set(found.tasks) == {"matrix/climbing", "matrix/penalty (k=-25.0)"}
    climbing = found.tasks["matrix/climbing"]
    assert set(climbing) == {"iql (lr 0.001)", "iql (lr 0.1)", "qmix"}
    assert [run.seed for run in climbing["qmix"]] == [0, 1]
    assert found.scores("matrix/climbing", "iql (lr 0.1)").tolist() == [3.0, 3.0]
    assert found.everywhere == ["qmix"]


def test_a_setting_that_an_older_shoal_did_not_know_is_its_default(tmp_path: Path) -> None:
    for seed, (old, new) in enumerate(
        [({}, {}), ({"processes": 0}, {"hidden": [8, 8], "memory": 0}), ({}, {"memory": 5})]
    ):
        directory = a_run(tmp_path, "iql", seed, [1.0, 2.0], **old)
        file = directory / "config.json"
        data = json.loads(file.read_text())
        data["config"]["net"] |= new
        file.write_text(json.dumps(data))
    groups = runs.compare(runs.find([tmp_path])).tasks["matrix/climbing"]
    assert {label: [run.seed for run in members] for label, members in groups.items()} == {
        "iql (net.memory 0)": [0, 1],
        "iql (net.memory 5)": [2],
    }


def test_what_counts_as_a_runs_result(tmp_path: Path) -> None:
    a_run(tmp_path, "iql", 0, [9.0, 4.0, 5.0], absolute=3.0)
    a_run(tmp_path, "iql", 1, [1.0, 8.0, 7.0], absolute=2.0)
    found = {score: runs.compare(runs.find([tmp_path]), score=score) for score in runs.SCORES}  # type: ignore[arg-type]
    scores = {score: c.scores("matrix/climbing", "iql").tolist() for score, c in found.items()}
    # means over the runs are 5, 6, 6: the peak is the second evaluation
    assert scores == {"absolute": [3.0, 2.0], "peak": [4.0, 8.0], "last": [5.0, 7.0]}
    assert runs.compare(runs.find([tmp_path])).score == "absolute"
    assert runs.compare(runs.find([tmp_path]), "team_return").scores("matrix/climbing", "iql").tolist() == [6.0, 4.0]


def test_peaks_and_cut_budgets_are_at_steps_that_all_runs_share(tmp_path: Path) -> None:
    a_run(tmp_path, "iql", 0, [0.0, 1.0, 2.0, 3.0])  # at 50, 100, 150, 200
    sparse = a_run(tmp_path, "iql", 1, [10.0, 0.0], eval_every=100, total_steps=200)
    (sparse / "evaluations.jsonl").write_text(
        "".join(json.dumps(record(k, v)) + "\n" for k, v in ((101, 10), (200, 0)))
    )
    found = runs.compare(runs.find([tmp_path]), score="peak", budgets="cut")
    assert found.scores("matrix/climbing", "iql").tolist() == [1.0, 10.0]
    late = a_run(tmp_path, "iql", 2, [2.0, 10.0], eval_every=150, total_steps=300)
    (late / "evaluations.jsonl").write_text("".join(json.dumps(record(k, v)) + "\n" for k, v in ((150, 2), (300, 10))))
    with pytest.raises(ShoalError, match="no step up to 200"):
        runs.compare(runs.find([tmp_path]), budgets="cut")
    pair = runs.compare([run for run in runs.find([tmp_path]) if run.seed != 1], score="last", budgets="cut")
    assert pair.cut == {"matrix/climbing": 150}
    (groups,) = pair.tasks.values()
    assert [pair.scores("matrix/climbing", label).tolist() for label in groups] == [[2.0], [2.0]]


def test_a_run_without_an_evaluation_is_named(tmp_path: Path) -> None:
    a_run(tmp_path, "iql", 0, [1.0])
    dead = a_run(tmp_path, "iql", 1, [1.0])
    (dead / "evaluations.jsonl").write_text("")
    found = runs.compare(runs.find([tmp_path]))
    assert [run.seed for run in found.tasks["matrix/climbing"]["iql"]] == [0]
    assert [note for note in found.notes if str(dead) in note]
    with pytest.raises(ShoalError, match="none of these runs has an evaluation"):
        runs.compare(runs.find([dead]))


def test_different_budgets_are_refused_and_cut_when_allowed(tmp_path: Path) -> None:
    a_run(tmp_path, "iql", 0, [1.0, 2.0, 3.0, 4.0], absolute=9.0)
    a_run(tmp_path, "qmix", 0, [5.0, 6.0], eval_episodes=7, absolute=9.0)
    everything = runs.find([tmp_path])
    with pytest.raises(
        ShoalError, match=r"(?s)total_steps is 100 \(qmix\) and 200 \(iql\).*eval_episodes.*--allow-budgets"
    ):
        runs.compare(everything)
    found = runs.compare(everything, budgets="cut")
    assert found.cut == {"matrix/climbing": 100}
    assert found.score == "last"  # the absolute metric is of the whole run
    assert found.scores("matrix/climbing", "iql").tolist() == [2.0]
    assert any("compared up to 100" in note for note in found.notes)
    with pytest.raises(ShoalError, match="whole of a run"):
        runs.compare(everything, score="absolute", budgets="cut")


def test_mistakes_are_named(tmp_path: Path) -> None:
    one = a_run(tmp_path, "iql", 0, [1.0, 2.0], total_steps=400)
    with pytest.raises(ShoalError, match="has 100 of its 400 steps"):
        runs.compare(runs.find([one]))
    twin = a_run(tmp_path / "again", "iql", 0, [1.0, 2.0], total_steps=400)
    with pytest.raises(ShoalError, match="same run twice"):
        runs.compare(runs.find([one, twin]))
    whole = a_run(tmp_path, "vdn", 0, [1.0, 2.0])
    with pytest.raises(ShoalError, match="did you mean 'player'"):
        runs.compare(runs.find([whole]), "group_return.plyer")
    with pytest.raises(ShoalError, match="a metric is"):
        runs.compare(runs.find([whole]), "reward")
    with pytest.raises(ShoalError, match="--absolute-episodes"):
        runs.compare(runs.find([whole]), score="absolute")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShoalError, match="holds no run"):
        runs.find([tmp_path / "empty"])
    assert len(runs.find([whole, tmp_path / "again", whole])) == 2  # a place that is named twice counts once


def test_opponents_make_another_task(tmp_path: Path) -> None:
    """Returns per agent against somebody are over other agents than in self-play."""
    a_run(tmp_path / "self", "iql", 0, [1.0])
    a_run(tmp_path / "other", "iql", 0, [1.0], opponents=["player=random"])
    assert len(runs.compare(runs.find([tmp_path])).tasks) == 2


def test_references_by_name(tmp_path: Path) -> None:
    for env in ("matrix/climbing", "matrix/two_step"):
        a_run(tmp_path, "qmix", 0, [1.0, 7.5], env=env)
    found = runs.compare(runs.find([tmp_path]))
    known = references.references(found)
    assert known["matrix/two_step"].high == 7.5
    assert known["matrix/climbing"].low == pytest.approx(25 * (11 - 30 - 30 + 7 + 6 + 5) / 9, abs=6)  # random play
    known = references.references(found, "0", "published")
    assert (known["matrix/two_step"].high, known["matrix/climbing"].high) == (8.0, 195.0)
    with pytest.raises(ShoalError, match="did you mean 'random'"):
        references.references(found, "randon")
    with pytest.raises(ShoalError, match="is not above"):
        references.references(found, "100", "best")


def test_where_no_script_can_play_scores_are_not_normalised(tmp_path: Path) -> None:
    a_run(tmp_path / "alone", "qmix", 0, [1.0, 7.5])
    a_run(tmp_path / "met", "qmix", 0, [1.0, 7.5], opponents=["player=random"])
    found = runs.compare(runs.find([tmp_path]))
    assert references.references(found) == {}
    assert "scores are not normalised" in found.notes[-1]
    with pytest.raises(ShoalError, match="against opponents"):
        references.references(found, "random", "best")


def test_a_report_is_one_file_and_complete(tmp_path: Path, capsys: Any) -> None:
    for seed in range(3):
        for algorithm, gain in (("iql", 0.0), ("qmix", 5.0)):
            for env in ("matrix/climbing", "matrix/penalty"):
                values = [float(v) for v in np.random.default_rng(seed).normal(gain, size=3).round(3)]
                a_run(tmp_path / "runs", algorithm, seed, values, env=env)
    out = tmp_path / "out"
    assert cli.main(["compare", str(tmp_path / "runs"), "--out", str(out), "--low", "-10", "--high", "10"]) == 0
    shown = capsys.readouterr().out
    assert "agent_return: mean over all agents" in shown
    assert "all tasks, normalised" in shown
    page = (out / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', page)  # nothing is fetched
    assert "<script" not in page
    assert "@import" not in page
    assert len(re.findall(r"viewBox", page)) == 8  # three a task, the profile, all tasks together
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in ("matrix_climbing_env_steps", "matrix_penalty_seconds", "profile", "improvement"):
        assert all((out / "plots" / f"{name}.{ending}").stat().st_size > 1000 for ending in ("png", "svg", "pdf"))
    with Image.open(out / "plots" / "profile.png") as picture:
        assert picture.size[0] > 700
    summary = json.loads((out / "summary.json").read_text())
    cell = summary["tasks"]["matrix/climbing"]["qmix"]
    low, high = cell["iqm"]["ci95"]
    assert low <= cell["iqm"]["value"] <= high
    assert summary["improvement"]["qmix"]["iql"]["value"] == 1.0
    assert "| qmix | 3 |" in (out / "table.md").read_text()


def test_marl_evals_format(tmp_path: Path) -> None:
    """As its README has it: environment, task, algorithm, run, step; all runs with equal steps; no comma in a name."""
    for seed in (0, 3):
        a_run(tmp_path, "iql", seed, [1.0, 2.0], absolute=1.5)
        a_run(tmp_path, "iql", seed, [1.0, 2.0], lr=0.1, absolute=1.5)
    found = marl_eval(runs.compare(runs.find([tmp_path])))
    algorithms = found["matrix"]["climbing"]
    assert set(algorithms) == {"iql (lr 0.001)", "iql (lr 0.1)"}
    assert set(algorithms["iql (lr 0.1)"]) == {"seed_0", "seed_3"}
    run = algorithms["iql (lr 0.1)"]["seed_3"]
    assert run["step_1"] == {
        "step_count": 100, "elapsed_time": 10.0, "agent_return": [1.0, 3.0], "team_return": [3.0, 5.0],
    }  # fmt: skip
    assert run["absolute_metrics"] == {"agent_return": [0.5, 2.5], "team_return": [2.0, 4.0]}


def test_a_single_run_has_no_interval(tmp_path: Path) -> None:
    a_run(tmp_path, "iql", 0, [1.0, 2.0])
    comparison = runs.compare(runs.find([tmp_path]))
    summary = summarise(comparison, {})
    assert "ci95" not in summary["tasks"]["matrix/climbing"]["iql"]["iqm"]
    a_run(tmp_path, "qmix", 0, [1.0, 3.0])
    both = runs.compare(runs.find([tmp_path]))
    found = report._finding("climbing", summarise(both, {})["tasks"]["matrix/climbing"])
    assert found.endswith("highest interquartile mean 3.00, qmix; with single runs nothing can be said about chance.")


def test_a_run_may_be_over_before_another_is_evaluated(tmp_path: Path) -> None:
    a_run(tmp_path / "runs", "iql", 0, [1.0, 2.0])
    slow = a_run(tmp_path / "runs", "iql", 1, [1.0, 2.0]) / "evaluations.jsonl"
    records = [json.loads(line) for line in slow.read_text().splitlines()]
    slow.write_text("".join(json.dumps({**line, "seconds": line["seconds"] + 100}) + "\n" for line in records))
    assert cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/plots/matrix_climbing_seconds.png").stat().st_size > 1000


def test_the_absolute_metric_of_a_real_run(tmp_path: Path, capsys: Any) -> None:
    directory = tmp_path / "run"
    options = [
        "--total-steps",
        "400",
        "--warmup",
        "100",
        "--eval-episodes",
        "4",
        "--eval-every",
        "200",
        "--no-tensorboard",
    ]
    assert (
        cli.main(["train", "iql", "mpe/simple_spread", *options, "--absolute-episodes", "24", "--out", str(directory)])
        == 0
    )
    absolute, evaluations = log.read_absolute(directory), log.read_evaluations(directory)
    assert absolute["episodes"] == len(absolute["samples"]["agent_return"]) == 24
    best = max(evaluations, key=lambda e: e["agent_return"]["mean"])
    assert absolute["env_steps"] == best["env_steps"]
    assert absolute["samples"]["agent_return"][:4] != best["samples"]["agent_return"]  # other starts
    assert np.mean(best["samples"]["team_return"]) == pytest.approx(best["team_return"]["mean"], rel=1e-5)
    before = (directory / "absolute.json").read_text()
    (directory / "absolute.json").unlink()  # stopped just before its end
    run = experiment.open_run(directory)
    assert not experiment.finished(run, directory)
    assert cli.main(["train", "--resume", str(directory)]) == 0
    assert (directory / "absolute.json").read_text() == before
    assert experiment.finished(run, directory)
    films = report._films(runs.compare(runs.find([directory])), tmp_path / "films")
    with Image.open(films[0][2]) as film:
        assert film.size[0] <= report.FILM_WIDTH
        assert film.n_frames > 10  # type: ignore[attr-defined]


def test_an_improvement_is_over_all_tasks_that_both_have(tmp_path: Path) -> None:
    for seed in range(2):
        for env, better in (("matrix/climbing", 9.0), ("matrix/penalty", 0.0)):
            a_run(tmp_path, "iql", seed, [1.0, 5.0], env=env)
            a_run(tmp_path, "qmix", seed, [1.0, better + seed], env=env)
        a_run(tmp_path, "iql", seed, [1.0, 5.0], env="matrix/two_step")
    found = summarise(runs.compare(runs.find([tmp_path])), {})
    assert found["improvement"]["qmix"]["iql"]["value"] == 0.5  # always in one of two, never in the other
    assert found["improvement"]["qmix"]["iql"]["tasks"] == 2
    climbing = found["tasks"]["matrix/climbing"]["qmix"]
    assert climbing["std"] == pytest.approx(np.sqrt(0.5))  # of the sample 9, 10


def test_curves_end_at_the_common_budget(tmp_path: Path) -> None:
    a_run(tmp_path, "iql", 0, [1.0, 2.0, 3.0, 4.0])
    a_run(tmp_path, "qmix", 0, [5.0, 6.0])
    found = runs.compare(runs.find([tmp_path]), budgets="cut")
    (run,) = found.tasks["matrix/climbing"]["iql"]
    assert found.curve(run, "env_steps") == ([50.0, 100.0], [1.0, 2.0])


def test_scores_of_all_tasks_are_in_units_of_their_references(tmp_path: Path) -> None:
    """0 is what the lower reference earns, 1 what the upper one does."""
    for seed in range(2):
        for env, values in (("matrix/climbing", (1.0, 9.0)), ("matrix/penalty", (-30.0, 0.0))):
            for algorithm, value in zip(("iql", "qmix"), values, strict=True):
                a_run(tmp_path, algorithm, seed, [0.0, value], env=env)
    known = {"matrix/climbing": Reference(1.0, 11.0, ""), "matrix/penalty": Reference(-50.0, 50.0, "")}
    found = summarise(runs.compare(runs.find([tmp_path])), known)["normalised"]
    assert found["iql"]["mean"]["value"] == pytest.approx((0.0 + 0.2) / 2)
    assert found["qmix"]["mean"]["value"] == pytest.approx((0.8 + 0.5) / 2)
    assert found["qmix"]["optimality_gap"]["value"] == pytest.approx((0.2 + 0.5) / 2)
