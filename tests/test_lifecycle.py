"""A run's life in the world: signals, locks, requeued jobs, damaged files, other machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numba.core.caching
import numpy as np
import pytest
import torch
from PIL import Image

import shoal
from shoal import checkpoint, cli, config, experiment, film, jit, locks, log, registry, tree
from shoal.types import ShoalError

RUN = ["iql", "matrix/climbing", "--warmup", "32", "--net.hidden", "8", "--eval-episodes", "4", "--no-tensorboard"]
"""Without a number of steps."""


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shoal", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, **{"stdout": pipe, "stderr": subprocess.STDOUT, **options})


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.1)


def test_a_config_file_brings_the_environments_arguments(tmp_path: Path) -> None:
    first = cli.parse_run("maddpg", "tutorial/drift", ["--env.n-agents", "3", "--actor-lr", "1e-4"])
    first.save(tmp_path)
    file = str(tmp_path / "config.json")
    again = cli.parse_run("maddpg", "tutorial/drift", ["--config", file])
    assert again.env_args == {"n_agents": 3}
    assert again.config == first.config
    assert (
        cli.parse_run("maddpg", "tutorial/drift", ["--config", file, "--env.n-agents", "4"]).env_args["n_agents"] == 4
    )
    back = cli.parse_run("maddpg", "tutorial/drift", ["--config", file, "--env.n-agents", "2"])
    assert back.env_args == {}  # the environment's own default
    assert cli.parse_run("maddpg", "mpe/simple_spread", ["--config", file]).env_args == {}


def test_whole_numbers_may_have_exponents() -> None:
    run = cli.parse_run("iql", "matrix/climbing", ["--total-steps", "1e4", "--buffer-size=2.5e3", "--lr", "1e-3"])
    assert (run.settings.total_steps, run.config.buffer_size, run.config.lr) == (10_000, 2500, 1e-3)


def test_what_cannot_change_on_resuming_is_said(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["train", "--resume", str(tmp_path), "--lr=1e-3"]) == 2
    assert "--lr too: only --total-steps and --device may change" in capsys.readouterr().err


def test_two_processes_do_not_share_a_run(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", *RUN, "--total-steps", "200", "--out", str(run)]) == 0
    with locks.locked(run):
        assert cli.main(["train", "--resume", str(run), "--total-steps", "400"]) == 2
        assert "another process still works" in capsys.readouterr().err
    assert checkpoint.step(run / "checkpoint") == 208
    assert cli.main(["train", "--resume", str(run), "--total-steps", "400"]) == 0


def test_a_run_that_died_before_it_saved_begins_again(tmp_path: Path, capsys: Any) -> None:
    through, died, resumed = tmp_path / "through", tmp_path / "died", tmp_path / "resumed"
    arguments = [*RUN, "--total-steps", "200"]
    assert cli.main(["train", *arguments, "--out", str(through)]) == 0
    for directory in (died, resumed):
        cli.parse_run(arguments[0], arguments[1], [*arguments[2:], "--out", str(directory)]).save(directory)
    assert cli.main(["train", *arguments, "--lr", "0.5", "--out", str(died)]) == 2
    assert "of other settings, that saved nothing" in capsys.readouterr().err
    assert cli.main(["train", *arguments, "--out", str(died)]) == 0
    assert cli.main(["train", "--resume", str(resumed)]) == 0
    first, *others = (tree.leaves(checkpoint.load(d / "checkpoint")["algorithm"]) for d in (through, died, resumed))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # also where tests run under nohup
    child = process("train", *RUN, "--total-steps", "100000000", "--eval-every", "1000", "--out", str(run), **heard)
    try:
        wait_for(run / "checkpoint/last")
        child.send_signal(signal.SIGHUP)
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "stopped and saved" in out


def test_training_goes_on_when_nobody_reads(tmp_path: Path) -> None:
    run, (reader, writer) = tmp_path / "run", os.pipe()
    child = process("train", *RUN, "--total-steps", "3000", "--out", str(run), stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    os.close(reader)
    child.wait(timeout=120)
    assert checkpoint.step(run / "checkpoint") >= 3000


def test_a_trial_that_was_killed_goes_on_another_time(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from shoal.commands import sweep as command

    options = command.Sweep(search=("lr=choice:0.001|0.01",), out=tmp_path, trials=2)
    search = command.Search("iql", "matrix/climbing", options, ["--total-steps", "100"])
    search.trials = {n: command.Trial(n, {"lr": "0.001"}) for n in range(2)}
    search._ended(search._job(0, {"lr": "0.001"}), -signal.SIGKILL)
    search._ended(search._job(1, {"lr": "0.001"}), 1)
    assert "trial 0 was killed (signal 9)" in capsys.readouterr().out
    assert [trial.state for trial in search.trials.values()] == ["started", "failed"]


def test_what_was_trained_elsewhere_plays_here(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", *RUN, "--total-steps", "200", "--out", str(run)]) == 0
    file = run / "config.json"
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda:99"'))
    assert not registry.has_device("cuda:99")
    assert cli.main(["eval", str(run), "--episodes", "4"]) == 0
    assert cli.main(["train", "--resume", str(run), "--total-steps", "300"]) == 2
    assert "cuda:99" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(run), "--total-steps", "300", "--device", "cpu"]) == 0


def test_opponents_are_found_from_anywhere(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "runs/both").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = cli.parse_run("maddpg", "mpe/simple_tag", ["--opponents", "agent=runs/both"])
    assert run.settings.opponents == (f"agent={tmp_path / 'runs/both'}",)
    assert cli.parse_run("maddpg", "mpe/simple_tag", ["--opponents", "agent=flee"]).settings.opponents == (
        "agent=flee",
    )


def test_damaged_logs_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", *RUN, "--total-steps", "200", "--eval-every", "100", "--out", str(run)]) == 0
    for name in ("evaluations.jsonl", "metrics.csv"):
        with (run / name).open("ab") as file:
            file.write(b'12\n{"env_steps": 6}\n\xff\xfe\x00\n')
    assert [e["env_steps"] for e in log.read_evaluations(run)] == [112, 208]
    assert cli.main(["train", "--resume", str(run), "--total-steps", "300"]) == 0
    assert [e["env_steps"] for e in log.read_evaluations(run)] == [112, 208, 304]
    (run / "checkpoint/last").write_text("garbage")  # which is no run that saved nothing
    assert cli.main(["train", "--resume", str(run), "--total-steps", "400"]) == 2
    assert cli.main(["train", *RUN, "--total-steps", "200", "--eval-every", "100", "--out", str(run)]) == 2
    assert len(log.read_evaluations(run)) == 3


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("settings", "total_steps", "many", "total_steps must be int, not 'many'"),
        ("settings", "num_envs", 2.5, "num_envs must be int"),
        ("settings", "seed", True, "seed must be int"),
        ("config", "double", "no", "double must be bool"),
        ("config", "lr", "0.001", "lr must be float"),
        ("config", "net", 5, "net must be Net"),
        ("config", "mixer", "product", "mixer must be"),
    ],
)
def test_wrong_types_in_a_config_file_are_named(where: str, key: str, value: Any, message: str, tmp_path: Path) -> None:
    run = cli.parse_run("iql", "matrix/climbing", [])
    run.save(tmp_path)
    assert experiment.open_run(tmp_path).config == run.config
    data = json.loads((tmp_path / config.FILE).read_text())
    data[where][key] = value
    (tmp_path / config.FILE).write_text(json.dumps(data))
    with pytest.raises(ShoalError, match=message):
        experiment.open_run(tmp_path)


def test_what_a_config_file_lacks_is_named(tmp_path: Path) -> None:
    cli.parse_run("iql", "matrix/climbing", []).save(tmp_path)
    data = json.loads((tmp_path / config.FILE).read_text())
    del data["algorithm"]
    (tmp_path / config.FILE).write_text(json.dumps(data))
    with pytest.raises(ShoalError, match="it has no algorithm"):
        experiment.open_run(tmp_path)
    with pytest.raises(ShoalError, match="it has no algorithm"):
        cli.parse_run("iql", "matrix/climbing", ["--config", str(tmp_path / config.FILE)])


def test_errors_of_the_machine_are_one_line(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert cli.main(["train", *RUN, "--total-steps", "100", "--out", str(file)]) == 1
    assert capsys.readouterr().err.startswith("shoal: [Errno")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    import safetensors

    checkpoint.save(tmp_path, {"x": torch.ones(2)}, 1)
    modes = {path.name: path.stat().st_mode for path in checkpoint.find(tmp_path).iterdir()}
    assert len(set(modes.values())) == 1  # who may read one file may read the other

    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ShoalError, match=r"No space left.*the checkpoint before it is intact"):
        checkpoint.save(tmp_path, {"x": torch.zeros(2)}, 2)
    assert checkpoint.load(tmp_path)["x"].sum() == 2
    (tmp_path / "last").write_text("garbage")
    assert checkpoint.step(tmp_path) == 0


def test_without_a_place_to_keep_what_is_compiled_it_is_compiled_again(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    jit._warn.cache_clear()

    @jit.jit()
    def double(x: Any) -> None:
        x[0] *= 2

    numbers = np.ones(1)
    double(numbers)
    assert numbers[0] == 2
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err


def test_an_evaluation_that_fails_leaves_training_as_it_was() -> None:
    env = shoal.make("tutorial/drift", 4)
    policy: Any = shoal.build("ippo", env.spec, batch_steps=64)
    next(shoal.train(policy, env, 1000))
    before = tree.map(torch.clone, (env.state_dict(), policy.state_dict()))  # type: ignore[attr-defined]
    with pytest.raises(ShoalError, match="has not ended"):
        shoal.evaluate(policy, env, 2, max_steps=20, sampled=True)
    after = env.state_dict(), policy.state_dict()  # type: ignore[attr-defined]
    assert before[1]["env_steps"] == after[1]["env_steps"]
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(before), tree.leaves(after), strict=True))


def test_a_film_keeps_rare_colours(tmp_path: Path) -> None:
    frames = [np.full((20, 20, 3), (40, 120, 40), np.uint8) for _ in range(40)]
    frames[11][5, 5] = (250, 140, 0)
    film.write(tmp_path / "film.gif", iter(frames))
    with Image.open(tmp_path / "film.gif") as picture:
        seen = set()
        for k in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(k)
            seen |= {colour for _, colour in picture.convert("RGB").getcolors() or []}
    assert seen == {(40, 120, 40), (250, 140, 0)}
