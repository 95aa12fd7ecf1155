"""Learning results, slow: `make test-slow`. Each is a number a user would be promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def trained(tmp_path: Path, capsys: Any, *arguments: str, episodes: int = 1000) -> dict[str, Any]:
    """`shoal train ...`, then `shoal eval --json` of its best checkpoint on fresh episodes.

    A hundred episodes of a particle world leave the mean uncertain by 0.8; a thousand by 0.25.
    """
    directory = tmp_path / "run"
    assert cli.main(["train", *arguments, "--out", str(directory), "--no-tensorboard"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(directory), "--json", "--episodes", str(episodes)]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("seed", ["0", "1", "2", "3", "4"])
def test_maddpg_solves_the_tutorials_environment(tmp_path: Path, capsys: Any, seed: str) -> None:
    """Of 400; doing nothing earns 270, the tutorial printed 111."""
    arguments = ["maddpg", "tutorial/drift", "--total-steps", "60000", "--seed", seed]
    result = trained(tmp_path, capsys, *arguments, episodes=100)
    assert result["team_return"]["mean"] >= 395


@pytest.mark.parametrize("algorithm", ["iddpg", "matd3"])
def test_the_family_solves_it_too(tmp_path: Path, capsys: Any, algorithm: str) -> None:
    result = trained(tmp_path, capsys, algorithm, "tutorial/drift", "--total-steps", "60000")
    assert result["team_return"]["mean"] >= 390


@pytest.mark.parametrize("options", [[], ["--env.continuous-actions"]], ids=["discrete", "continuous"])
def test_maddpg_covers_the_landmarks(tmp_path: Path, capsys: Any, options: list[str]) -> None:
    """Per agent; random play -26, the published MADDPG about -12.3 by estimate."""
    result = trained(tmp_path, capsys, "maddpg", "mpe/simple_spread", "--total-steps", "1500000", *options)
    assert result["agent_return"]["mean"] >= -12.5


def test_predators_learn_to_catch_a_fleeing_prey(tmp_path: Path, capsys: Any) -> None:
    """Per adversary against the script `flee`: random adversaries get 0.6, the script `pursue` 9.1; measured: 7.8."""
    arguments = ["maddpg", "mpe/simple_tag", "--opponents", "agent=flee", "--total-steps", "400000"]
    result = trained(tmp_path, capsys, *arguments)
    assert result["group_return"]["adversary"]["mean"] >= 6


def test_qmix_covers_the_landmarks(tmp_path: Path, capsys: Any) -> None:
    """Per agent; measured -10.6, -10.5, -10.1."""
    result = trained(tmp_path, capsys, "qmix", "mpe/simple_spread")
    assert result["agent_return"]["mean"] >= -11.5


def test_pqn_covers_the_landmarks(tmp_path: Path, capsys: Any) -> None:
    """Per agent; measured -9.0, -9.1, -9.2."""
    result = trained(tmp_path, capsys, "pqn_vdn", "mpe/simple_spread")
    assert result["agent_return"]["mean"] >= -9.8


def test_pqn_forages_together(tmp_path: Path, capsys: Any) -> None:
    """Sum over agents, of 1; measured 1.00, 1.00, 0.98."""
    result = trained(tmp_path, capsys, "pqn_vdn", "lbf/Foraging-8x8-2p-2f-coop")
    assert result["team_return"]["mean"] >= 0.95


def test_mappo_covers_the_landmarks(tmp_path: Path, capsys: Any) -> None:
    """Per agent; training's own evaluations at 2.5 million steps: -9.6, -9.2, -8.4; the script `greedy` -8.4."""
    result = trained(tmp_path, capsys, "mappo", "mpe/simple_spread", "--total-steps", "2500000")
    assert result["agent_return"]["mean"] >= -10


def test_mappo_makes_a_speaker_understood(tmp_path: Path, capsys: Any) -> None:
    """Per agent; a listener that knows nothing gets about -15."""
    result = trained(tmp_path, capsys, "mappo", "mpe/simple_speaker_listener", "--total-steps", "2000000")
    assert result["agent_return"]["mean"] >= -8
