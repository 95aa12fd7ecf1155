"""Runs in a directory: resume to the bit, safety, logs, the command line, films."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shoal
from shoal import checkpoint, cli, experiment, film, log, tree
from shoal.collect import LocalCollector
from shoal.evaluate import Evaluation
from shoal.train import Diverged, Progress, train
from shoal.types import Groups, ShoalError, View

FACTORY = f"{Path(__file__).parent / 'conftest.py'}:Relay"
SMALL = ["--num-envs", "1", "--update-every", "1", "--warmup", "100", "--batch-size", "16"]
SMALL += ["--net.hidden", "8", "8", "--eval-episodes", "4"]


def shoal_train(*arguments: str) -> int:
    return cli.main(["train", *arguments, "--no-tensorboard"])


def weights(directory: Path) -> list[torch.Tensor]:
    return list(tree.leaves(checkpoint.load(directory / "checkpoint")["algorithm"]))


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("maddpg", "tutorial/drift", ["--env.max-steps", "30"]),
        ("matd3", "mpe/simple_spread", ["--num-envs", "4", "--update-every", "8", "--buffer-size", "300"]),
        ("iddpg", FACTORY, ["--num-envs", "2", "--env.callers", "2"]),
    ],
)
def test_train_stop_resume_is_train_through(tmp_path: Path, algorithm: str, env: str, options: list[str]) -> None:
    """Bit for bit: weights, optimisers, generators; also where the stop falls inside an episode."""
    intervals = ["--eval-every", "200", "--log-every", "100"]
    through, parts = tmp_path / "through", tmp_path / "parts"
    assert shoal_train(algorithm, env, *SMALL, *options, *intervals, "--total-steps", "800", "--out", str(through)) == 0
    assert shoal_train(algorithm, env, *SMALL, *options, *intervals, "--total-steps", "404", "--out", str(parts)) == 0
    assert cli.main(["train", "--resume", str(parts), "--total-steps", "800"]) == 0
    one, two = weights(through), weights(parts)
    assert len(one) == len(two) > 20
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    rows = log.read_metrics(parts)
    assert [r["env_steps"] for r in rows] == sorted(r["env_steps"] for r in rows)
    assert json.loads((parts / "config.json").read_text())["settings"]["total_steps"] == 800
    evaluations = [e["env_steps"] for e in log.read_evaluations(parts)]
    stopped = 408 if algorithm == "matd3" else 404  # rollouts of eight steps
    assert evaluations == [200, 400, stopped, 600, 800]


def test_seeds_fix_a_run(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        shoal_train(
            "maddpg", "tutorial/drift", *SMALL, "--total-steps", "300", "--seed", seed, "--out", str(tmp_path / name)
        )
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


def test_resume_drops_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = ["maddpg", "tutorial/drift", *SMALL, "--eval-every", "200", "--log-every", "50"]
    shoal_train(*arguments, "--total-steps", "400", "--out", str(directory))
    with (directory / "metrics.csv").open("a") as file:
        file.write("450,1.0\n500,1.")  # a crashed process got further than its last checkpoint
    cli.main(["train", "--resume", str(directory), "--total-steps", "600"])
    steps = [row["env_steps"] for row in log.read_metrics(directory)]
    assert steps.count(450) == 1
    assert max(steps) == 600


def test_ctrl_c_saves_and_a_resume_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "shoal", "train", "maddpg", "tutorial/drift", *SMALL, "--total-steps", "1000000"]
    process = subprocess.Popen(
        [*command, "--out", str(directory), "--log-every", "50", "--no-tensorboard"],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    while time.time() < deadline and len(log.read_metrics(directory)) < 4:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"shoal train --resume {directory}" in output
    stopped = checkpoint.load(directory / "checkpoint")["env_steps"]
    assert stopped > 100
    assert cli.main(["train", "--resume", str(directory), "--total-steps", str(stopped + 50)]) == 0


def test_a_nan_stops_the_run_and_leaves_the_checkpoint(tmp_path: Path, capsys: Any) -> None:
    directory = tmp_path / "run"
    arguments = ["maddpg", f"{Path(__file__)}:exploding", *SMALL, "--eval-every", "150", "--log-every", "50"]
    assert shoal_train(*arguments, "--total-steps", "2000", "--out", str(directory), "--max-grad-norm", "0") == 2
    assert "critic_loss became" in capsys.readouterr().err
    saved = checkpoint.load(directory / "checkpoint")
    assert saved["env_steps"] <= 600
    assert all(torch.isfinite(x).all() for x in tree.leaves(saved["algorithm"]))


def exploding(num_envs: int = 1) -> Any:
    """Rewards become huge after 600 steps."""
    env = shoal.make("tutorial/drift", num_envs)
    original, count = env.step, [0]

    def step(actions: Any) -> shoal.Step:
        result = original(actions)
        count[0] += 1
        if count[0] > 600 and num_envs == 1:  # not in evaluations
            result.reward["agent"] *= 1e38
        return result

    env.step = step  # type: ignore[method-assign]
    return env


def test_the_generator_can_be_left_and_diverges_loudly() -> None:
    env = exploding()
    algorithm = shoal.build("maddpg", env.spec, warmup=64, max_grad_norm=0.0)
    seen: list[Progress] = []
    with pytest.raises(Diverged, match="became"):
        for progress in train(algorithm, env, 2000):
            seen.append(progress)
            if progress.every(100):
                progress.drain()
    assert seen[-1].env_steps > 600
    for progress in shoal.train(shoal.build("iddpg", env.spec), shoal.make("tutorial/drift"), 500):
        if progress.env_steps == 10:
            break
    assert progress.every(5)
    assert not progress.every(7)


# Checkpoints


def some_tree() -> dict[str, Any]:
    return {"a": torch.arange(3), "b": [{"c": torch.ones(2, 2), 5: "x"}, None, True, 0.5], "empty": torch.zeros(2, 0)}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, some_tree(), 10)
    loaded = checkpoint.load(tmp_path)
    assert torch.equal(loaded["a"], torch.arange(3))
    assert loaded["b"][0][5] == "x"
    assert loaded["b"][1:] == [None, True, 0.5]
    assert loaded["empty"].shape == (2, 0)
    checkpoint.save(tmp_path, some_tree(), 20)
    checkpoint.save(tmp_path, some_tree(), 20)
    assert len(list(tmp_path.glob("last_*"))) == 1
    assert not list(tmp_path.glob("*pickle*"))


def test_a_save_that_dies_leaves_the_last_one(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoint.save(tmp_path, {"step": 1}, 1)
    for fatal in ("rename", "replace"):

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, fatal, die)
            patch.setattr(Path, fatal, die)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(tmp_path, {"step": 2}, 2)
        assert checkpoint.load(tmp_path)["step"] == 1
    checkpoint.save(tmp_path, {"step": 3}, 3)
    assert checkpoint.load(tmp_path)["step"] == 3


def test_damaged_foreign_and_newer_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="no checkpoint"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, some_tree(), 1)
    state, tensors = (path / "state.json").read_text(), (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(tensors[:-3])
    with pytest.raises(ShoalError, match="damaged"):
        checkpoint.load(tmp_path)
    (path / "tensors.safetensors").write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    with pytest.raises(ShoalError, match="checksum"):
        checkpoint.load(tmp_path)
    (path / "tensors.safetensors").unlink()
    with pytest.raises(ShoalError, match="damaged"):
        checkpoint.load(tmp_path)
    (path / "tensors.safetensors").write_bytes(tensors)
    (path / "state.json").write_text(state[: len(state) // 2])
    with pytest.raises(ShoalError, match="damaged"):
        checkpoint.load(tmp_path)
    (path / "state.json").write_text('{"weights": []}')
    with pytest.raises(ShoalError, match="not a checkpoint of shoal"):
        checkpoint.load(tmp_path)
    (path / "state.json").write_text(json.dumps({**json.loads(state), "format": 99}))
    with pytest.raises(ShoalError, match="update shoal"):
        checkpoint.load(tmp_path)


# Logs


def test_new_columns_widen_the_table(tmp_path: Path) -> None:
    writer = log.Log(tmp_path)
    writer.write(10, 1.0, {"a": 1.5})
    writer.write(20, 2.0, {"b": 2.5, "a": 3.0})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["env_steps,seconds,a,b", "10,1,1.5,", "20,2,3,2.5"]
    assert log.read_metrics(tmp_path)[0] == {"env_steps": 10.0, "seconds": 1.0, "a": 1.5}


def test_tensorboard_and_wandb_offline(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = log.Log(tmp_path, tensorboard=True, wandb="shoal-test", config={"lr": 0.1})
    writer.write(10, 1.0, {"loss": 1.5})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("loss")[0].value == 1.5
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


# The command line


def run_directory(tmp_path: Path, env: str = "tutorial/drift", *options: str) -> Path:
    directory = tmp_path / "run"
    assert shoal_train("maddpg", env, *SMALL, *options, "--total-steps", "300", "--out", str(directory)) == 0
    return directory


def test_eval_prints_one_json_object(tmp_path: Path, capsys: Any) -> None:
    directory = run_directory(tmp_path, "tutorial/drift", "--env.n-agents", "3")
    capsys.readouterr()
    assert cli.main(["eval", str(directory), "--episodes", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episodes"] == 5
    assert result["length"]["mean"] == 200
    assert result["team_return"]["mean"] == pytest.approx(3 * result["group_return"]["agent"]["mean"])
    low, high = result["team_return"]["ci95"]
    assert low <= result["team_return"]["mean"] <= high
    assert cli.main(["eval", str(directory), "--episodes", "5", "--checkpoint", "last"]) == 0
    assert "sum over all agents" in capsys.readouterr().out


def test_a_run_directory_is_complete(tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "metrics.csv", "evaluations.jsonl", "checkpoint", "curves.png"} <= names
    assert (directory / "metrics.csv").read_text().startswith("env_steps,seconds,")
    with Image.open(directory / "curves.png") as picture:
        assert picture.size[0] > 800


def test_watch_writes_films(tmp_path: Path, capsys: Any) -> None:
    directory = run_directory(tmp_path, "mpe/simple_spread")
    for name in ("film.gif", "film.mp4"):
        assert cli.main(["watch", str(directory), "--out", str(tmp_path / name), "--episodes", "2"]) == 0
        assert (tmp_path / name).stat().st_size > 2000
    pictures, seconds = frames(tmp_path / "film.gif")
    assert seconds == pytest.approx(5.0)  # 50 frames; equal ones are stored once
    assert len({picture.tobytes() for picture in pictures}) > 20


def frames(path: Path) -> tuple[list[np.ndarray], float]:
    """Pictures of a GIF, and how long it lasts."""
    pictures, milliseconds = [], 0
    with Image.open(path) as film:
        for index in range(film.n_frames):
            film.seek(index)
            pictures.append(np.asarray(film.convert("RGB")))
            milliseconds += film.info["duration"]
    return pictures, milliseconds / 1000


@pytest.mark.parametrize("factory", ["Relay", "Blind"])
def test_a_film_of_an_environment_with_and_without_pictures(tmp_path: Path, factory: str) -> None:
    env = FACTORY if factory == "Relay" else f"{Path(__file__)}:Blind"
    directory = run_directory(tmp_path, env)
    assert cli.main(["watch", str(directory), "--out", str(tmp_path / "film.gif"), "--episodes", "1"]) == 0
    pictures, seconds = frames(tmp_path / "film.gif")
    assert seconds == pytest.approx(0.7)
    assert len({picture.tobytes() for picture in pictures}) == 7
    assert pictures[0].shape == ((40, 60, 3) if factory == "Relay" else (110, 480, 3))


def Blind() -> Any:
    """A relay that cannot draw."""
    from conftest import Relay

    return Relay(render_mode=None)


WRONG = [
    (["train", "madpg", "tutorial/drift"], "did you mean 'maddpg'"),
    (["train", "maddpg", "tutorial/drif"], "did you mean 'tutorial/drift'"),
    (["train", "maddpg", "mpe/spread"], "did you mean 'mpe/simple_spread'"),
    (["train", "maddpg", "nowhere/drift"], "did you mean 'tutorial/drift'"),
    (["train", "maddpg", "missing.py:make"], "no file 'missing.py'"),
    (["train", "maddpg", "no_such_module:make"], "cannot import 'no_such_module'"),
    (["train", "maddpg", f"{Path(__file__)}:explodin"], "did you mean 'exploding'"),
    (["train", "maddpg", "tutorial/drift", "--num-envs", "0"], "num_envs must be at least 1"),
    (["train", "maddpg", "tutorial/drift", "--env.reward-mode", "team"], "reward"),
    (["trian"], "did you mean 'train'"),
    (["eval", "/nowhere"], "not the directory of a run"),
    (["train", "--resume", "/nowhere"], "not the directory of a run"),
    (["watch", "/nowhere", "--out", "film.avi"], ".gif or .mp4"),
    (["list", "--all"], "takes no options"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(w[0])[:60] for w in WRONG])
def test_mistakes_are_named_with_what_would_be_right(arguments: list[str], message: str, capsys: Any) -> None:
    try:
        assert cli.main(arguments) == 2
    except SystemExit as error:  # tyro's own
        assert error.code == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("option", "near"), [("--gama", "--gamma"), ("--env.nagents", "--env.n-agents")])
def test_unknown_options_name_the_nearest(option: str, near: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "maddpg", "tutorial/drift", option, "3"])
    assert near in capsys.readouterr().err


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: Any) -> None:
    directory = run_directory(tmp_path)
    assert shoal_train("maddpg", "tutorial/drift", "--out", str(directory)) == 2
    assert f"--resume {directory}" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(directory)]) == 0  # for loops that resume until it is done
    assert "has reached its end, 300 steps" in capsys.readouterr().out
    for steps in ("300", "200"):
        assert cli.main(["train", "--resume", str(directory), "--total-steps", steps]) == 2
        assert "already trained 300 steps" in capsys.readouterr().err


def test_help_and_list(capsys: Any) -> None:
    assert cli.main([]) == 0
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "maddpg" in out
    assert "mpe/simple_spread" in out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "maddpg", "tutorial/drift", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--net.hidden" in shown
    assert "--env.reward-mode" in shown
    assert "Environment steps" in shown


def test_library_errors_name_the_nearest_setting() -> None:
    env = shoal.make("tutorial/drift")
    with pytest.raises(ShoalError, match="did you mean 'gamma'"):
        shoal.build("maddpg", env.spec, gama=0.9)
    with pytest.raises(ShoalError, match="did you mean 'n_agents'"):
        shoal.make("tutorial/drift", nagents=3)


def test_a_broken_environment_is_refused_before_training(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from conftest import Relay\nimport numpy as np\n"
        "class Bad(Relay):\n"
        "    def _observations(self):\n"
        "        return {a: np.full(o.shape, np.nan) for a, o in super()._observations().items()}\n"
    )
    out = tmp_path / "run"
    assert shoal_train("maddpg", f"{tmp_path}/mine.py:Bad", "--out", str(out)) == 2
    assert "holds NaN" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_opens_from_another_directory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    directory = tmp_path / "run"
    assert shoal_train("maddpg", "conftest.py:Relay", *SMALL, "--total-steps", "200", "--out", str(directory)) == 0
    monkeypatch.chdir(tmp_path)
    assert experiment.open_run(directory).env.endswith("conftest.py:Relay")
    assert cli.main(["eval", str(directory), "--episodes", "2"]) == 0


def test_evaluating_in_the_training_environment_does_not_disturb_training() -> None:
    """The loop a user writes first: `evaluate(algorithm, env)` with the one environment there is."""
    ends = []
    for evaluating in (False, True):
        for name, arguments in (("tutorial/drift", {}), ("mpe/simple_spread", {}), (FACTORY, {})):
            env = shoal.make(name, 2, **arguments)
            algorithm = shoal.build("maddpg", env.spec, warmup=20, batch_size=16)
            for progress in shoal.train(algorithm, env, 130):
                if evaluating and progress.every(26):
                    shoal.evaluate(algorithm, env, episodes=3)
            ends.append(list(tree.leaves(progress.state_dict()["experience"])))
    for one, two in zip(ends[:3], ends[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_metrics_do_not_pile_up_when_nobody_drains() -> None:
    env = shoal.make("tutorial/drift")
    algorithm = shoal.build("maddpg", env.spec, warmup=16, batch_size=16, net={"hidden": (4,)})
    for progress in shoal.train(algorithm, env, 1100):
        assert all(len(values) <= 500 for values in progress._metrics.values())
    assert progress.updates > 1000
    assert np.isfinite(progress.drain()["critic_loss"])


def test_a_replay_that_cannot_fit_is_refused(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    for _ in range(2):  # a run that never began is no run
        assert shoal_train("maddpg", "tutorial/drift", "--buffer-size", "1000000000000", "--out", str(run)) == 2
        assert "set buffer_size to" in capsys.readouterr().err
    assert not run.exists()


def test_a_run_that_learned_nothing_says_so(tmp_path: Path, capsys: Any) -> None:
    shoal_train("maddpg", "tutorial/drift", "--total-steps", "500", "--out", str(tmp_path / "run"))
    assert "nothing was learned" in capsys.readouterr().out


def test_more_mistakes(capsys: Any) -> None:
    for env, message in (
        (f"{Path(__file__)}:needs_level", "needs the argument 'level': --env.level"),
        ("pettingzoo/butterfly/pistonbal", "did you mean 'butterfly/pistonball"),
        ("pettingzoo/no_such.module_here", "cannot import 'no_such.module_here'"),
    ):
        assert cli.main(["train", "maddpg", env, "--out", "/nowhere/run"]) == 2
        assert message in capsys.readouterr().err


def needs_level(level: int) -> Any:
    raise AssertionError("not to be called without it")


def test_an_algorithm_of_ones_own_learns_and_goes_on_exactly(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    own = "examples/own_algorithm.py:reinforce"
    arguments = [own, "matrix/two_step", "--num-envs", "16", "--batch-steps", "160", "--eval-every", "4000"]
    for name, steps in (("through", "16000"), ("parts", "8000")):
        assert shoal_train(*arguments, "--total-steps", steps, "--out", str(tmp_path / name)) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "16000"]) == 0
    assert all(
        torch.equal(a, b) for a, b in zip(weights(tmp_path / "through"), weights(tmp_path / "parts"), strict=True)
    )
    assert cli.parse_run(own, "matrix/two_step", []).settings.out.endswith("own_algorithm.py_reinforce_s0")
    assert cli.parse_run(own, "matrix/two_step", []).settings.out.count("/") == 2
    monkeypatch.chdir(tmp_path)  # it is found from anywhere
    env = shoal.make("matrix/two_step", 10)
    policy = shoal.load(tmp_path / "parts", env.spec, "last")
    assert shoal.evaluate(policy, env, 10).agent_return.mean() >= 7


def test_what_an_algorithm_of_ones_own_lacks_is_named(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "own.py").write_text(
        "from shoal.algorithms import ddpg\n"
        "from shoal.types import Preset\n"
        "class Bonus(ddpg.DDPG):\n"
        "    def update(self, batch):\n"
        "        return {**super().update(batch), 'bonus': 0.5}\n"
        "class Half:\n"
        "    def __init__(self, spec, config, *, seed, device):\n"
        "        self.spec, self.config = spec, config\n"
        "    def act(self, view, memory, *, explore):\n"
        "        raise NotImplementedError\n"
        "PRESETS = {n: Preset(k, ddpg.Config(), n) for n, k in (('bonus', Bonus), ('half', Half))}\n"
    )
    run = [*SMALL, "--total-steps", "300", "--out", str(tmp_path / "run")]
    assert shoal_train(f"{tmp_path / 'own.py'}:half", "tutorial/drift", *run) == 2
    assert "a Half is not an Algorithm yet: it has no initial_memory, experience, update" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert shoal_train(f"{tmp_path / 'own.py'}:bonus", "tutorial/drift", *run) == 0
    assert [row["bonus"] for row in log.read_metrics(tmp_path / "run") if "bonus" in row][-1] == 0.5
    assert shoal_train(str(tmp_path / "own.py"), "tutorial/drift") == 2
    assert "own.py:NAME; its PRESETS are bonus, half" in capsys.readouterr().err
    assert shoal_train("iddpg", str(tmp_path / "own.py")) == 2
    assert "it has Bonus, Half" in capsys.readouterr().err  # and not what it imports


def test_an_environment_that_has_changed_is_told_of(tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "changing.py"
    lines = "import shoal\n\ndef make(num_envs):\n    return shoal.make('tutorial/drift', num_envs, n_agents={})\n"
    place.write_text(lines.format(2))
    run = str(tmp_path / "run")
    assert shoal_train("maddpg", f"{place}:make", "--total-steps", "1500", "--out", run) == 0
    place.write_text(lines.format(3))
    assert cli.main(["train", "--resume", run, "--total-steps", "2000"]) == 2
    assert "what was learned does not fit: the environment is another, or has changed" in capsys.readouterr().err
    assert cli.main(["eval", run]) == 2
    assert "does not fit: the environment is another, or has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("vdn --batch-size 0", "batch_size must be at least 1, not 0"),
        ("happo --lr -1", "lr must be at least 0, not -1"),
        ("iql --epsilon-end 3", "epsilon_end must be between 0 and 1, not 3"),
        ("maddpg --gamma nan", "gamma must be between 0 and 1, not nan"),
        ("maddpg --update-every 0", "update_every must be at least 1"),
        ("mappo --net.memory -8", "net.memory must be at least 0, not -8"),
        ("ippo --net.hidden 64 0", "net.hidden must be at least 1, not (64, 0)"),
    ],
)
def test_settings_out_of_their_range_are_named(settings: str, message: str, tmp_path: Path, capsys: Any) -> None:
    name, *options = settings.split()
    assert shoal_train(name, "matrix/two_step", *options, "--out", str(tmp_path / "run")) == 2
    assert message in capsys.readouterr().err


def test_help_says_what_an_environments_arguments_mean(capsys: Any) -> None:
    own = f"{Path(__file__).parents[1] / 'examples/own_environment.py'}:make"
    for env, words in (("mpe/simple_spread", "Agents, and landmarks."), (own, "Length of an episode.")):
        with pytest.raises(SystemExit):
            shoal_train("iddpg", env, "--help")
        assert words in capsys.readouterr().out


def test_what_is_missing_is_named(capsys: Any) -> None:
    assert shoal_train("maddpg") == 2
    assert "shoal train mappo mpe/simple_spread" in capsys.readouterr().err
    assert shoal_train("maddpg", "tutorial/drift", "--device", "nowhere", "--out", "/nowhere/run") == 2
    assert "the device 'nowhere' cannot be used here" in capsys.readouterr().err
    with pytest.raises(ShoalError, match="cannot be used here"):
        shoal.build("mappo", shoal.make("tutorial/drift").spec, device="nowhere")


def test_rates_count_from_the_first_update() -> None:
    display = log.Display("", 1000)
    display.begin(0)
    display.started -= 60  # compiling
    display.log(100, {"updates": 0.0})
    assert "2 steps/s" in display._line(100)
    display.log(100, {"updates": 1.0})
    display.started -= 1
    assert "100 steps/s" in display._line(200)
    display.log(300, {"updates": 2.0})
    assert "200 steps/s" in display._line(300)


def test_no_time_is_left_when_the_last_rollout_goes_beyond_the_total() -> None:
    display = log.Display("", 100)
    display.begin(0)
    display.started -= 60
    assert "00:00 left" in display._line(160)
    assert "01:00 left" in display._line(50)


class Counting:
    """Does nothing, and counts the steps of its episode."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def initial_memory(self, num_envs: int) -> Groups:
        return {"agent": torch.zeros(num_envs, 2, 1)}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        assert not explore
        self.seen.append(float(memory["agent"][0, 0, 0]))
        return {"agent": torch.zeros(len(view.state), 2, 2)}, {"agent": memory["agent"] + 1}


def test_memory_starts_anew_with_every_episode_of_a_film() -> None:
    policy = Counting()
    list(film.frames(policy, shoal.make("tutorial/drift", 1, max_steps=3), episodes=2))
    assert policy.seen == [0, 1, 2, 0, 1, 2]


def test_a_drawn_row_is_its_own_agents() -> None:
    env: Any = shoal.make("tutorial/drift", 2)
    env.reset(0)
    actions = {"agent": torch.zeros(2, 2, 2)}
    step = env.step(actions)
    before = film.schematic(env, step, actions, 1)
    for change in (step.reward, actions, step.successor.obs):
        change["agent"][1, 1] += 3.0
        after = film.schematic(env, step, actions, 1)
        rows = np.flatnonzero((after != before).any((1, 2)))
        assert rows.size
        assert rows.min() >= 6 + 34
        before = after


def test_returns_of_training_are_means_over_episodes_in_their_units() -> None:
    env = shoal.make("tutorial/drift", 2, n_agents=3)
    progress = next(shoal.train(shoal.build("ippo", env.spec, batch_steps=8), env, 8))
    short, long = ({"agent": torch.full((n, 3), value)} for n, value in ((3, 1.0), (1, 5.0)))
    progress.collector.finished = [(short, torch.full((3,), 10)), (long, torch.full((1,), 50))]
    found = progress.drain()
    assert found["train_agent_return"] == pytest.approx(2.0)
    assert found["train_team_return"] == pytest.approx(6.0)
    assert found["train_length"] == pytest.approx(20.0)


def test_an_episode_that_a_checkpoint_interrupts_counts_whole() -> None:
    collectors = []
    for seed in (0, 1):
        env = shoal.make("tutorial/drift", 2, max_steps=8)
        collectors.append(LocalCollector(shoal.build("ippo", env.spec), env, 5, seed))
    one, two = collectors
    one.collect()
    two.load_state_dict(tree.map(torch.clone, one.state_dict()))
    two.policy.load_state_dict(one.policy.state_dict())  # type: ignore[attr-defined]
    for collector in collectors:
        collector.finished.clear()
        collector.collect()
    for a, b in zip(tree.leaves(one.finished), tree.leaves(two.finished), strict=True):
        assert torch.equal(a, b)
    assert one.finished[0][1].tolist() == [8, 8]


TINY = ["--net.hidden", "8", "--batch-steps", "20", "--epochs", "1", "--eval-every", "40", "--eval-episodes", "2"]


def test_the_absolute_metric_is_of_the_best_and_not_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns, judged = iter([1.0, 3.0, 2.0, 7.0]), []

    def fixed(policy: Any, env: Any, episodes: int, *_: Any, **__: Any) -> Evaluation:
        judged.append(policy.env_steps)
        return Evaluation({"player": np.full((episodes, 2), next(returns))}, np.ones(episodes))

    monkeypatch.setattr(experiment, "evaluate", fixed)
    options = ["--num-envs", "2", "--no-tensorboard", "--total-steps", "120", "--absolute-episodes", "3"]
    assert cli.main(["train", "ippo", "matrix/climbing", *TINY, *options, "--out", str(tmp_path / "run")]) == 0
    assert judged == [40, 80, 120, 80]
    assert checkpoint.step(tmp_path / "run" / "checkpoint", "best") == 80
    assert log.read_absolute(tmp_path / "run")["env_steps"] == 80


@pytest.mark.parametrize("sampled", [False, True])
def test_every_evaluation_of_a_run_is_over_the_same_starts_and_played_alike(
    sampled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = experiment.evaluate, []

    def watch(policy: Any, env: Any, episodes: int, seed: int, **options: Any) -> Evaluation:
        seen.append((episodes, seed, options.get("sampled", False)))
        return plain(policy, env, episodes, seed, **options)

    monkeypatch.setattr(experiment, "evaluate", watch)
    options = ["--num-envs", "2", "--no-tensorboard", "--total-steps", "120", "--absolute-episodes", "3"]
    options += [*(["--eval-sampled"] if sampled else [])]
    assert cli.main(["train", "ippo", "matrix/climbing", *TINY, *options, "--out", str(tmp_path / "run")]) == 0
    assert [(episodes, how) for episodes, _, how in seen] == [(2, sampled)] * 3 + [(3, sampled)]
    assert len({seed for _, seed, _ in seen[:3]}) == 1
    assert seen[3][1] != seen[0][1]


def test_the_best_is_the_best_of_all_agents_and_stays_it_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations in which one group earns more and more, and everybody together less and less, after the second."""
    mine, theirs = iter([0.0, 1.0, 2.0, 3.0, 4.0]), iter([0.0, 9.0, 4.0, 0.0, -4.0])

    def fixed(policy: Any, env: Any, episodes: int, *_: Any, **__: Any) -> Evaluation:
        one, three = np.full((2, 1), next(mine)), np.full((2, 3), next(theirs))
        return Evaluation({"agent": one, "adversary": three}, np.ones(2))

    monkeypatch.setattr(experiment, "evaluate", fixed)
    run = [
        "train",
        "ippo",
        "mpe/simple_tag",
        *TINY,
        "--num-envs",
        "2",
        "--no-tensorboard",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main([*run, "--total-steps", "120"]) == 0
    assert checkpoint.step(tmp_path / "run" / "checkpoint", "best") == 80
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "200"]) == 0
    assert checkpoint.step(tmp_path / "run" / "checkpoint", "best") == 80
