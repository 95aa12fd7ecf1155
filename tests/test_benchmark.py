"""shoal benchmark and shoal sweep: killed at any moment, they go on to the same result."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shoal import cli, config, jobs, locks, sweep
from shoal.commands import benchmark
from shoal.commands.sweep import Search
from shoal.stats.published import Figure, figures, lookup
from shoal.stats.suites import SUITES, Suite, Task
from shoal.stats.summary import summarise
from shoal.types import ShoalError

TINY = Suite(
    "for tests",
    ("iql",),
    (Task("matrix/two_step", (), 3000, options=("--warmup", "100", "--eval-every", "500", "--log-every", "3000")),),
    seeds=2,
    episodes=4,
    absolute_episodes=8,
)
START = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_benchmark import TINY
from shoal.commands import benchmark
benchmark.PROBE_SECONDS = 0.05
sys.exit(benchmark.run("tiny", TINY, benchmark.Benchmark(out=Path(sys.argv[1]), jobs=2)))
"""


def train_all(out: Path) -> None:
    """Every run of the tiny suite, in this process."""
    for job in benchmark.plan(TINY, out):
        assert cli.main(["train", job.algorithm, job.env, *job.options, "--out", str(job.directory)]) == 0


def conclude(out: Path, monkeypatch: Any) -> str:
    monkeypatch.setattr(benchmark, "PROBE_SECONDS", 0.05)
    assert benchmark.run("tiny", TINY, benchmark.Benchmark(out=out, jobs=2)) == 0
    return (out / benchmark.TABLE).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="children outlive a killed parent elsewhere")
def test_a_killed_benchmark_ends_with_the_same_table(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    through, killed = tmp_path / "through", tmp_path / "killed"
    train_all(through)
    process = subprocess.Popen([sys.executable, "-c", START, str(killed)], stdout=subprocess.DEVNULL)
    places = [job.directory for job in benchmark.plan(TINY, killed)]
    deadline = time.time() + 120
    while time.time() < deadline and not all((place / "checkpoint" / "last").exists() for place in places):
        time.sleep(0.02)
    process.kill()  # nobody can tell the children: the system does
    process.wait()
    with locks.locked(killed):  # until they have saved
        states = [job.state for job in benchmark.plan(TINY, killed)]
    assert set(states) <= {"started", "finished"}
    (places[1] / "checkpoint" / "last").unlink()  # and one that had not saved anything yet
    capsys.readouterr()
    table = conclude(killed, monkeypatch)
    assert "1 new" in capsys.readouterr().out
    assert "All figures" in (killed / "report" / "report.html").read_text()
    monkeypatch.setattr(
        benchmark.report, "write", lambda comparison, directory, known, **_: summarise(comparison, known)
    )
    assert table == conclude(through, monkeypatch)
    assert "0 to continue, 0 new" in capsys.readouterr().out
    assert "| matrix/two_step | iql | 2 |" in table


def test_an_interrupted_benchmark_saves(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    places = [job.directory for job in benchmark.plan(TINY, tmp_path)]
    deadline = time.time() + 120
    while time.time() < deadline and not (places[0] / "evaluations.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "every run has saved" in output
    with locks.locked(tmp_path, patience=0.0):  # nobody is left
        pass


def test_an_estimate_leaves_out_what_is_compiled(tmp_path: Path, monkeypatch: Any) -> None:
    clock, played = [0.0], SimpleNamespace(env_steps=0, updates=0)

    def train(*_: Any, **__: Any) -> Iterator[SimpleNamespace]:
        while True:  # an update every 100 steps, the first of which takes 50 seconds
            played.env_steps += 50
            clock[0] += 0.25
            if played.env_steps % 100 == 0:
                clock[0] += 0.5 if played.updates else 50.0
                played.updates += 1
            yield played

    def evaluate(*_: Any, **__: Any) -> None:
        clock[0] += 0.0 if clock[0] > 100 else 60.0  # the first time

    monkeypatch.setattr(benchmark, "train", train)
    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert benchmark.probe(benchmark.plan(TINY, tmp_path)[0].run) == pytest.approx(0.01)


def test_a_directory_with_another_run_is_refused(tmp_path: Path) -> None:
    job = benchmark.plan(TINY, tmp_path)[0]
    other = config.replace(job.run, {"settings": {"num_envs": 3}})
    other.save(job.directory)
    with pytest.raises(ShoalError, match="num_envs 3 instead of 8"):
        _ = job.state


def test_two_benchmarks_do_not_share_a_directory(tmp_path: Path) -> None:
    with locks.locked(tmp_path), pytest.raises(ShoalError, match="still works"), locks.locked(tmp_path, patience=0.0):
        pass


def test_runs_of_another_suite_count(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    other = dataclasses.replace(TINY, seeds=1)
    monkeypatch.setitem(SUITES, "other", other)
    job = benchmark.plan(other, tmp_path / "other")[0]
    assert cli.main(["train", job.algorithm, job.env, *job.options, "--out", str(job.directory)]) == 0
    assert [job.state for job in benchmark.plan(TINY, tmp_path / "tiny")] == ["finished", "new"]
    capsys.readouterr()
    table = conclude(tmp_path / "tiny", monkeypatch)
    assert "1 finished, 1 of them by other benchmarks, 0 to continue, 1 new" in capsys.readouterr().out
    assert "| matrix/two_step | iql | 2 |" in table
    longer = dataclasses.replace(TINY, tasks=(dataclasses.replace(TINY.tasks[0], off_policy_steps=6000),))
    assert [job.state for job in benchmark.plan(longer, tmp_path / "longer")] == ["new", "new"]


def test_a_run_that_fails_is_told(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(benchmark, "estimate", lambda *_: (0.0, "not measured"))
    monkeypatch.setattr(
        jobs.Job, "command", lambda self: [sys.executable, "-c", "print('it broke'); raise SystemExit(3)"]
    )
    assert benchmark.run("tiny", TINY, benchmark.Benchmark(out=tmp_path)) == 1
    shown = capsys.readouterr().out
    assert "failed: iql matrix/two_step seed 1\nit broke" in shown


def test_every_suite_is_made_of_settings_that_exist() -> None:
    for name, suite in SUITES.items():
        if name in ("lbf", "rware"):  # suites of environments of their own
            continue
        tasks = tuple({task.env: task for task in suite.tasks}.values())
        for job in benchmark.plan(dataclasses.replace(suite, seeds=1, tasks=tasks), Path("out")):
            settings = job.run.settings
            assert (settings.eval_episodes, settings.absolute_episodes) == (32, 320)
            assert getattr(job.run.config, "anneal_steps", 0) in (0, settings.total_steps)
    assert {
        (job.env, json.dumps(job.run.env_args))
        for job in benchmark.plan(dataclasses.replace(SUITES["matrix"], algorithms=("iql",)), Path("out"))
    } >= {
        ("matrix/penalty", '{"k": -25.0}'),
        ("matrix/penalty", "{}"),
    }


def test_published_figures_are_in_our_units() -> None:
    for figure in figures():
        assert figure.source
        assert figure.published_unit
        if figure.conversion == "none":
            assert (figure.value, figure.spread) == (figure.published_value, figure.published_spread)
    spread = lookup("mpe/simple_spread", {}, "agent_return", "qmix")[0]
    assert spread.value == pytest.approx((-126.62 + 75) / 6 - 1.2, abs=1e-3)
    assert spread.spread == pytest.approx(2.96 / 6, abs=1e-3)
    assert not spread.confirmed
    assert lookup("matrix/penalty", {"k": -25.0}, "agent_return", "maddpg")[0].value == 49.97
    assert not lookup("mpe/simple_spread", {"N": 6}, "agent_return")
    suites = {(task.env, suite.metric) for suite in SUITES.values() for task in suite.tasks}
    assert {(f.env, f.metric) for f in figures()} <= suites


@pytest.mark.parametrize(
    ("scores", "verdict"), [([9.0, 10.0], "within spread"), ([8.0, 8.5], "short"), ([12.0], "better")]
)
def test_verdicts(scores: list[float], verdict: str) -> None:
    about = dict.fromkeys(("source", "evidence", "published_unit", "conversion", "budget", "metric", "env"), "")
    figure = Figure(
        env_args={},
        algorithm="iql",
        value=10.0,
        spread=1.0,
        confirmed=False,
        published_value=10.0,
        published_spread=1.0,
        **about,
    )
    assert figure.verdict(np.array(scores)) == verdict


def test_the_command_names_mistakes(capsys: Any) -> None:
    assert cli.main(["benchmark", "smok"]) == 2
    assert "did you mean 'smoke'" in capsys.readouterr().err
    assert cli.main(["benchmark"]) == 2
    assert "Papoudakis" in capsys.readouterr().out
    assert cli.main(["benchmark", "matrix", "--algorithms", "mapo"]) == 2
    assert "did you mean 'mappo'" in capsys.readouterr().err


# Sweeps


def test_searches_are_read(capsys: Any) -> None:
    lr = sweep.Dimension.parse("lr=log:1e-4:1e-2:3")
    assert lr.grid() == ["0.0001", "0.001", "0.01"]
    assert lr.options("0.001") == ["--lr", "0.001"]
    hidden = sweep.Dimension.parse("net.hidden=choice:64,64|128,128")
    assert hidden.options("128,128") == ["--net.hidden", "128", "128"]
    assert sweep.Dimension.parse("batch_size=logint:32:512").at(0.5) == "128"
    assert sweep.Dimension.parse("batch_size=int:1:3").options("2") == ["--batch-size", "2"]
    for text, message in (
        ("lr", "a search is written"),
        ("lr=lag:1:2", "did you mean 'log'"),
        ("lr=log:0:1", "above 0"),
        ("lr=uniform:2:1", "below the upper"),
        ("lr=log:a:b", "a search is written"),
    ):
        with pytest.raises(ShoalError, match=message):
            sweep.Dimension.parse(text)
    with pytest.raises(ShoalError, match="number of points"):
        sweep.Dimension.parse("lr=log:1e-4:1e-2").grid()
    assert cli.main(["sweep", "iql", "matrix/climbing", "--search", "lr=lag:1:2"]) == 2
    with pytest.raises(SystemExit):  # before anything is run
        cli.main(["sweep", "iql", "matrix/climbing", "--search", "lrr=log:1e-4:1e-2"])
    assert "--lr" in capsys.readouterr().err


def test_random_draws_do_not_depend_on_what_came_before() -> None:
    dimensions = [sweep.Dimension.parse("lr=log:1e-4:1e-2"), sweep.Dimension.parse("n_step=int:1:5")]
    draws = [sweep.Random(dimensions, 0).ask(number) for number in range(50)]
    assert draws[7] == sweep.Random(dimensions, 0).ask(7)
    rates = [float(draw["lr"]) for draw in draws]
    assert 1e-4 <= min(rates) < 3e-4
    assert 4e-3 < max(rates) <= 1e-2
    assert {draw["n_step"] for draw in draws} == set("12345")


def test_the_median_rule_is_optunas() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    random = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=5))
    others: list[list[tuple[int, float]]] = []
    decisions = []
    for _ in range(30):
        trial, curve, stopped = study.ask(), [], False
        for step, value in enumerate(np.maximum.accumulate(random.normal(size=4)), start=1):
            curve.append((step, float(value)))
            trial.report(float(value), step)
            mine = sweep.hopeless(curve, others, total_steps=4)
            assert mine == trial.should_prune()
            decisions.append(mine)
            if mine:
                stopped = True
                break
        study.tell(trial, None if stopped else curve[-1][1], state=optuna.trial.TrialState(2 if stopped else 1))
        others += [] if stopped else [curve]
    assert any(decisions)
    assert not all(decisions)


def test_trials_are_judged_at_the_same_step() -> None:
    """Of trials that are evaluated at different steps: one that learns twice as fast is not hopeless."""
    others = [[(4000 * k, float(k)) for k in range(1, 6)]] * 5
    fast, slow = ([(1000 * k, k * gain) for k in range(1, 9)] for gain in (0.5, 0.1))
    assert not any(sweep.hopeless(fast[:k], others, 20_000) for k in range(1, 9))
    assert sweep.hopeless(slow, others, 20_000)


def test_tpe_finds_the_better_half_and_remembers() -> None:
    pytest.importorskip("optuna")
    dimensions = [sweep.Dimension.parse("lr=log:1e-4:1"), sweep.Dimension.parse("double=choice:True|False")]

    def value(params: sweep.Params) -> float:
        return -abs(np.log10(float(params["lr"])) + 3) - (params["double"] == "False")

    first = sweep.Tpe(dimensions, 0)
    trials = []
    for number in range(40):
        params = first.ask(number)
        trials.append(sweep.Trial(number, params, "finished", value(params), [(1, value(params))]))
        first.tell(trials[-1])
    again = sweep.Tpe(dimensions, 1)
    for trial in trials:
        again.tell(trial)
    assert (
        np.mean([value(again.ask(number)) for number in range(40, 50)]) > np.mean([t.value for t in trials[:10]]) + 0.5
    )


def test_a_sweep_continues_and_its_best_settings_train(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "sweep"
    arguments = ["sweep", "iql", "matrix/two_step", "--total-steps", "600", "--warmup", "100", "--eval-episodes", "4"]
    arguments += ["--method", "grid", "--search", "lr=choice:0.001|0.003", "--search", "net.hidden=choice:8,8|16"]
    arguments += ["--out", str(out), "--jobs", "2"]
    assert cli.main([*arguments, "--trials", "1"]) == 0
    trials = sweep.read_trials(out)
    assert trials[0].params == {"lr": "0.001", "net.hidden": "8,8"}
    sweep.Trial(1, {"lr": "0.001", "net.hidden": "16"}).save(out)  # as one leaves it that was killed
    with (out / sweep.TRIALS).open("a") as file:
        file.write('{"number": 2, "par')
    assert cli.main([*arguments, "--trials", "2"]) == 0
    trials = sweep.read_trials(out)
    assert [trial.state for trial in trials.values()] == ["finished", "finished"]
    assert cli.main([*arguments, "--search", "gamma=choice:0.9", "--trials", "2"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    found = json.loads((out / "best.json").read_text())
    winner = trials[found["sweep"]["trial"]]
    assert found["config"]["net"]["hidden"] == [int(x) for x in winner.params["net.hidden"].split(",")]
    run = cli.parse_run("iql", "matrix/two_step", ["--config", str(out / "best.json"), "--seed", "5", "--gamma", "0.5"])
    assert list(run.config.net.hidden) == found["config"]["net"]["hidden"]
    assert (run.settings.total_steps, run.settings.seed, run.config.gamma) == (600, 5, 0.5)
    with pytest.raises(ShoalError, match="settings of iql"):
        cli.parse_run("vdn", "matrix/two_step", [f"--config={out / 'best.json'}"])


def test_a_hopeless_trial_is_pruned(tmp_path: Path, monkeypatch: Any) -> None:
    from shoal.commands.sweep import Sweep

    options = Sweep(search=("lr=choice:0.001",), out=tmp_path, metric="agent_return")
    search = Search("iql", "matrix/two_step", options, ["--total-steps", "100"])
    search.trials = {n: sweep.Trial(n, {"lr": "0.001"}, "finished", 5.0, [(50, 4.0), (100, 5.0)]) for n in range(5)}
    search.trials[5] = sweep.Trial(5, {"lr": "0.001"})
    job = search._job(5, {"lr": "0.001"})
    monkeypatch.setattr(search, "_curve", lambda job: [(50, 3.0)])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(os.devnull, "wb") as output:
        process = jobs.Process(job, child, output)
        search._watch([process])
    assert process.stopping
    assert child.wait(timeout=20) == -signal.SIGTERM
    search._ended(job, jobs.INTERRUPTED)
    assert search.trials[5].state == "pruned"
    assert sweep.best(search.trials).number == 0  # type: ignore[union-attr]
