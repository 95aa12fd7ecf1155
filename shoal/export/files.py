"""ONNX files, one a group, and policy.json, which says what must be known to run them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from shoal import actions, checkpoint, experiment, registry
from shoal.config import Run, versions
from shoal.envs.common.spaces import AgentAdapter
from shoal.export.agent import Agent
from shoal.export.player import Player, players
from shoal.export.same import ENVS, check
from shoal.types import Algorithm, Box, EnvSpec, GroupSpec, ShoalError, Tree

FORMAT = 1
FILE = "policy.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(directory: Path, out: Path, which: str = "best") -> Tree:
    """Write a run's policy into the new directory `out`, and compare what was written with it; what policy.json holds.

    Args:
        directory: of the run.
        which: checkpoint, `best` or `last`.

    Raises:
        ShoalError: packages are missing, `out` holds something, or the policy cannot be exported; or the files do not
            do what the policy does, and then nothing is left behind.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ShoalError(f"{package} cannot be imported ({error}): pip install 'shoal[export]'") from error
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShoalError(f"{out} is there already: choose a new directory for --out")
    run = experiment.open_run(directory)
    task: registry.Environment = experiment.environment_of(run)
    full = experiment.evaluation_env(task, ENVS)
    try:
        policy = experiment.load_policy(directory, which, full.spec)
        steps = checkpoint.step(directory / experiment.CHECKPOINTS, which)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            about = _about(run, which, steps)
            about["groups"] = write(policy, getattr(full, "adapters", {}), partial)
            about["check"] = check(policy, experiment.against(full, run), partial, about["groups"])
            (partial / FILE).write_text(json.dumps(about, indent=2) + "\n")
            if out.exists():
                out.rmdir()
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        full.close()
    return about


def _about(run: Run, which: str, steps: int) -> Tree:
    import onnx

    return {
        "format": FORMAT,
        "algorithm": run.algorithm,
        "env": run.env,
        "env_args": run.env_args,
        "checkpoint": which,
        "env_steps": steps,
        "versions": {**versions(), "onnx": onnx.__version__},
        "units": {
            "obs": "as the environment gives them, float32; pictures in bytes, 0 to 255, [height, width, channel]",
            "action": "greedy: Discrete the number of the action, from 0; Box numbers in [-1, 1]",
            "logits": "Q-learning: values in units of their running standard deviation; "
            "PPO: logarithms of probabilities, up to a constant; DDPG: scores of the deterministic policy. "
            f"{actions.ILLEGAL:g} where an action is not legal",
            "std": "standard deviation of the policy's normal draws around action, before they are clipped to [-1, 1]",
            "memory": "zeros where an episode starts",
        },
    }


def write(policy: Algorithm, adapters: dict[str, AgentAdapter], folder: Path) -> Tree:
    """One ONNX file a group into `folder`; what policy.json says of each.

    Args:
        adapters: of the environment's agents, where it has such.
    """
    described = {}
    for player in players(policy):
        numbers = {group: _numbers(player, group, policy.spec) for group in player.spec.groups}
        speakers = [agent for group in player.spec.groups.values() for agent in group.agents]
        for name, agent in player.agents().items():
            path = folder / f"{name.replace('/', '_').replace(' ', '_')}.onnx"
            if path.exists():
                raise ShoalError(f"two groups would be written as {path.name}: rename {name!r}")
            to_onnx(agent, path)
            described[name] = {
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "agents": numbers[name],
                "obs": {"shape": list(agent.group.obs_shape), "dtype": "uint8" if agent.group.image else "float32"},
                "action": _space(agent.group),
                "masked": agent.group.masked,
                "memory": agent.memory,
                "rounds": agent.rounds,
                "message": agent.message if agent.rounds else 0,
                "speakers": speakers if agent.rounds else [],
                "inputs": _signature(agent.inputs),
                "outputs": _signature(agent.outputs),
                "environment": {a: _environment(adapters[a]) for a in numbers[name] if a in adapters},
            }
    return described


def _numbers(player: Player, group: str, spec: EnvSpec) -> dict[str, int]:
    """The input `agent` of everybody whom a group's network plays."""
    found: dict[str, int] = {}
    for seat in player.seats:
        theirs, places = seat[group]
        found |= {spec.groups[theirs].agents[place]: k for k, place in enumerate(places.tolist())}
    return found


def _space(group: GroupSpec) -> Tree:
    if isinstance(group.action, Box):
        return {"kind": "Box", "size": group.action.size, "low": -1.0, "high": 1.0}
    return {"kind": "Discrete", "size": group.action.size}


def _signature(rows: dict[str, tuple[tuple[int, ...], type]]) -> Tree:
    """Without the batch, which is every first axis."""
    return {name: {"shape": list(shape), "dtype": np.dtype(kind).name} for name, (shape, kind) in rows.items()}


def _environment(adapter: AgentAdapter) -> Tree:
    """One agent's own spaces: from what the environment shows to `obs`, and from `action` to what it takes."""
    space = adapter.action_space
    action: Tree = {"space": str(space), "kind": type(space).__name__, "shape": list(space.shape or ())}
    if isinstance(adapter.action, Box):
        # its action: low + (action + 1) / 2 * (high - low)
        action |= {"low": adapter.low.tolist(), "high": adapter.high.tolist(), "dtype": np.dtype(space.dtype).name}
    elif len(adapter.sizes) == 1 and hasattr(space, "start"):
        action |= {"start": int(np.ravel(space.start)[0]), "dtype": np.dtype(space.dtype).name}  # added to our number
    else:
        action |= {"choices": adapter.sizes}  # numbered as numpy.unravel_index(action, choices) numbers them
    return {"action": action, "obs": {"space": str(adapter.space), "flattened": adapter.flatten}}


def to_onnx(agent: Agent, path: Path) -> None:
    """Write what `agent` computes, with a batch of any length."""
    import onnx

    batch = torch.export.Dim("batch")
    given = tuple(torch.from_numpy(np.zeros((3, *shape), kind)) for shape, kind in agent.inputs.values())
    with quiet():
        program = torch.onnx.export(
            agent,
            given,
            input_names=list(agent.inputs),
            output_names=list(agent.outputs),
            dynamic_shapes=(tuple({0: batch} for _ in given),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # where in whose source it was traced
    onnx.save(model, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress and the warnings of torch's exporter, which are about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
