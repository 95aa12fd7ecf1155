"""The command line: shoal train, eval, watch, compare, ...: see `USAGE`."""

from __future__ import annotations

import ast
import dataclasses
import errno
import functools
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from shoal import config, experiment, presets, registry
from shoal.config import Run, Settings, replace, slug
from shoal.envs.check import SPACES, Problem, Promise
from shoal.envs.common.spaces import Misfit
from shoal.log import say
from shoal.types import Discrete, ShoalError, nearest

MANY = 16
"""Agents that are no longer listed one by one."""

OUTSIDE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip
"""Errors of the machine that speak for themselves: a full or read-only disk, a file where a directory belongs."""

USAGE = """shoal: many agents learning together

  shoal train ALGORITHM ENV [options]     train; `shoal train ALGORITHM ENV --help` lists the options of both
  shoal train --resume DIR                continue exactly where a run stopped
  shoal eval DIR                          whole episodes of a trained run
  shoal watch DIR --out FILE.gif|.mp4     a film of a trained run
  shoal export DIR --out DIR              ONNX files that run the agents without shoal and torch
  shoal crossplay DIR...                  every run's one side against every run's other side
  shoal league DIR                        standings of a self-play run: Elo, and everybody against everybody
  shoal nashconv DIR                      how far a trained run is from a Nash equilibrium of its game
  shoal compare DIR... --out DIR          statistics, tables, plots and a report over many runs
  shoal benchmark NAME [--out DIR]        a named suite of runs, with the published figures beside ours
  shoal sweep ALGORITHM ENV --search ...  look for good settings
  shoal check ENV                         does an environment keep its promises?
  shoal list                              algorithms and environments

ENV is suite/name, file.py:factory or package.module:factory. Example:

  shoal train maddpg mpe/simple_spread
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit status. Errors a user can mend are one line on stderr, status 2."""
    arguments = sys.argv[1:] if argv is None else argv
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "watch": _watch,
        "crossplay": _crossplay,
        "league": functools.partial(_elsewhere, "league"),
        "nashconv": functools.partial(_elsewhere, "nashconv"),
        "compare": functools.partial(_elsewhere, "compare"),
        "benchmark": functools.partial(_elsewhere, "benchmark"),
        "sweep": functools.partial(_elsewhere, "sweep"),
        "export": functools.partial(_elsewhere, "export"),
        "check": _check,
        "list": _list,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(config.versions()["shoal"])
        return 0
    try:
        if arguments[0] not in commands:
            raise ShoalError(f"there is no command {arguments[0]!r}; {nearest(arguments[0], commands)}")
        return commands[arguments[0]](arguments[1:])
    except ShoalError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `shoal list | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left to flush goes nowhere
        return 1
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        print(f"shoal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shoal: interrupted", file=sys.stderr)
        return 130


def _elsewhere(name: str, arguments: list[str]) -> int:
    """A command that has a module of its own, imported where it is called for."""
    return importlib.import_module(f"shoal.commands.{name}").main(arguments)  # type: ignore[no-any-return]


# train


def _train(arguments: list[str]) -> int:
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        return _resume(arguments)
    if "--help" in arguments[:2] or "-h" in arguments[:2]:
        print(USAGE, end="")
        return 0
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        raise ShoalError(
            "what to train comes first, an algorithm and an environment: shoal train mappo mpe/simple_spread "
            "(shoal list names them)"
        )
    run = parse_run(arguments[0], arguments[1], arguments[2:])
    directory = Path(run.settings.out)
    task = presets.task(run.algorithm, run.env)
    used = {key: value for key, value in task.items() if _setting(run, key) == value}
    if used:
        say("settings for this task: " + ", ".join(f"{key} {_written(value)}" for key, value in used.items()))
    return _report(experiment.start(run, directory), directory)


def _written(value: Any) -> str:
    """As an option's value is written."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _setting(run: Run, name: str) -> Any:
    """Of the run, or of its algorithm (`net.X` of its network)."""
    owner = run.settings if hasattr(run.settings, name) else run.config
    return functools.reduce(getattr, name.split("."), owner)


def parse_run(algorithm: str, env: str, options: list[str]) -> Run:
    """A run from `ALGORITHM ENV [options]`; unknown names and options are refused with the nearest known."""
    known = registry.full_name(algorithm)
    defaults = registry.algorithm(known).config
    environment = registry.Environment(env, complete=False)
    settings = Settings()
    task = presets.task(algorithm, env)
    mine = {f.name for f in dataclasses.fields(Settings)}
    settings = dataclasses.replace(settings, **{k: v for k, v in task.items() if k in mine})
    defaults = replace(defaults, {k: v for k, v in task.items() if k not in mine})
    options, given = _config_file([_whole_number(option) for option in options])
    if given and given["algorithm"] != known:
        raise ShoalError(f"--config holds settings of {given['algorithm']}, not of {algorithm}")
    same = given.get("env") == environment.full_name
    settings = config.merge(settings, {k: v for k, v in given.get("settings", {}).items() if k not in ("seed", "out")})
    defaults = config.merge(defaults, given.get("config", {}))
    env_arguments = _env_arguments(environment, options)
    flat = tyro.conf.arg(name="")
    fields: list[Any] = [
        ("run", Annotated[Settings, flat], field(default=settings)),
        ("algorithm", Annotated[type(defaults), flat], field(default=defaults)),
    ]
    if env_arguments is not None:
        fields.append(("env", env_arguments, field(default_factory=env_arguments)))
    options_type = make_dataclass("Options", fields, frozen=True)
    parsed: Any = tyro.cli(
        options_type,
        args=options,
        prog=f"shoal train {algorithm} {env}",
        description=f"Train {algorithm} on {env}.",
    )
    settings = parsed.run
    if not settings.out:
        out = f"runs/{slug(env)}/{slug(algorithm)}_s{settings.seed}"
        settings = dataclasses.replace(settings, out=out)
    settings = dataclasses.replace(settings, opponents=tuple(map(_whole_path, settings.opponents)))
    chosen = {} if env_arguments is None else _changed(parsed.env)
    if same:  # the environment's arguments come from the file too, but for those that are given
        named = {o.split("=")[0][len("--env.") :].replace("-", "_") for o in options if o.startswith("--env.")}
        kept = {k: v for k, v in given["env_args"].items() if not named & {k, f"no_{k}"}}
        chosen = kept | chosen
    return Run(known, environment.full_name, chosen, settings, parsed.algorithm)


def _whole_path(opponent: str) -> str:
    """`WHO=DIR` with the directory's full path, by which it is found from anywhere; others as they are."""
    who, _, policy = opponent.partition("=")
    return f"{who}={Path(policy).resolve()}" if policy and Path(policy).is_dir() else opponent


def _whole_number(option: str) -> str:
    """`1e6` as 1000000, in digits: of what is an int, and what is a float, that is the same number."""
    name, equals, value = option.rpartition("=")
    return f"{name}{equals}{float(value):.0f}" if re.fullmatch(r"\d+(\.\d+)?e\+?1?\d", value) else option


def _config_file(options: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Options without `--config FILE`, and what the file holds: a run's config.json, or a sweep's best.json."""
    for i, option in enumerate(options):
        if option.split("=")[0] == "--config":
            inline = "=" in option
            if not inline and i + 1 == len(options):
                raise ShoalError("--config needs a file: a run's config.json, or a sweep's best.json")
            path = Path(option.split("=", 1)[1] if inline else options[i + 1])
            return options[:i] + options[i + 2 - inline :], config.read(path.parent, path.name)
    return options, {}


def _env_arguments(environment: registry.Environment, options: list[str]) -> type | None:
    """A dataclass of the environment's arguments (`--env.KEY`), typed by its signature or else by the values given."""
    parameters = environment.parameters()
    if parameters is None:
        given = {o.split("=")[0][len("--env.") :].replace("-", "_"): o for o in options if o.startswith("--env.")}
        return _dataclass({key: (_given_type(option, options), None) for key, option in given.items()})
    hints, meanings = environment.hints(), environment.meanings()
    typed = {}
    for key, parameter in parameters.items():
        default = None if parameter.default is parameter.empty else parameter.default
        kind = hints.get(key) or (type(default) if default is not None else str)
        typed[key] = (Annotated[kind, tyro.conf.arg(help=meanings.get(key))], default)
    return _dataclass(typed)


def _dataclass(typed: dict[str, tuple[Any, Any]]) -> type | None:
    fields: list[Any] = [(k, t if d is not None else t | None, field(default=d)) for k, (t, d) in typed.items()]
    return make_dataclass("EnvironmentArguments", fields, frozen=True) if fields else None


def _given_type(option: str, options: list[str]) -> type:
    value = option.split("=", 1)[1] if "=" in option else (options[options.index(option) + 1 :] or ["True"])[0]
    try:
        kind = type(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return str
    return kind if kind in (int, float, bool) else str


def _changed(arguments: Any) -> dict[str, Any]:
    """Arguments that differ from their defaults: the environment's own defaults stay its own."""
    found = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)}
    return {f.name: found[f.name] for f in dataclasses.fields(arguments) if found[f.name] != f.default}


@dataclass(frozen=True)
class Resume:
    """Continue a run exactly where it stopped."""

    resume: Path
    """Directory of the run."""
    total_steps: int | None = None
    """Train up to this many environment steps instead of the run's own total."""
    device: str = ""
    """Where the networks live from now on, if not where they did."""


def _resume(arguments: list[str]) -> int:
    known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Resume)]
    for option in (argument.replace("_", "-").split("=")[0] for argument in arguments if argument.startswith("--")):
        if option not in (*known, "--help"):
            raise ShoalError(
                f"a run that is resumed keeps its settings, {option} too: only {' and '.join(known[1:])} may change. "
                "Another run begins with shoal train ALGORITHM ENV --config DIR/config.json"
            )
    options = tyro.cli(Resume, args=[_whole_number(argument) for argument in arguments], prog="shoal train")
    run = experiment.open_run(options.resume)
    if options.device:
        run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, device=options.device))
    if options.total_steps is None and experiment.finished(run, options.resume):
        say(f"{options.resume} has reached its end, {run.settings.total_steps:,} steps; train on with --total-steps")
        return 0
    if options.total_steps is not None:
        # intervals that were derived from the total stay what they were: the run must go on as it began
        before = run.settings
        run = dataclasses.replace(
            run,
            settings=dataclasses.replace(
                before,
                total_steps=options.total_steps,
                eval_every=before.eval_every or max(before.total_steps // 20, 1),
                log_every=before.log_every or max(before.total_steps // 200, 1),
                snapshot_every=before.snapshot_every
                or (max(before.total_steps // 20, 1) if before.self_play != "none" else 0),
            ),
        )
    return _report(experiment.start(run, options.resume, resume=True), options.resume)


def _report(finished: bool, directory: Path) -> int:
    place = shlex.quote(str(directory))
    if finished:
        say(f"trained: {directory}   curves: {directory / 'curves.png'}")
        say(f"next:    shoal eval {place}   or   shoal watch {place} --out film.gif")
        return 0
    say(f"stopped and saved; continue with: shoal train --resume {place}")
    return 130


# eval, watch, crossplay, list


@dataclass(frozen=True)
class Eval:
    """Whole episodes of a trained run."""

    directory: tyro.conf.Positional[Path]
    """Directory of the run."""
    episodes: int = 100
    """Whole episodes to play."""
    actions: Literal["run", "greedy", "sampled"] = "run"
    """The best ones (greedy), drawn as in training (sampled), or as the run's own evaluations took them."""
    seed: int = 1_000_000
    """Seed of the episodes' starts."""
    checkpoint: Literal["best", "last"] = "best"
    """The best evaluation's policy, or the newest."""
    opponents: tuple[str, ...] = ()
    """WHO=POLICY: another run's directory or a script plays that group or agent instead."""
    json: bool = False
    """Print one JSON object instead of text."""


def _eval(arguments: list[str]) -> int:
    from shoal.evaluate import UNITS, WORDS, evaluate, how

    options = tyro.cli(Eval, args=arguments, prog="shoal eval")
    _at_least(episodes=(options.episodes, 1), seed=(options.seed, 0))
    run = experiment.open_run(options.directory)
    env = experiment.evaluation_env(experiment.environment_of(run), options.episodes)
    policy = experiment.team(options.directory, env.spec, options.checkpoint, options.opponents)
    sampled = options.actions == "sampled" or (options.actions == "run" and run.settings.eval_sampled)
    result = evaluate(policy, env, options.episodes, options.seed, sampled=sampled)
    summary = result.summary() | {"agent_returns": result.agent_returns()}
    env.close()
    if options.json:
        about = {
            "algorithm": run.algorithm,
            "env": run.env,
            "checkpoint": options.checkpoint,
            "sampled": sampled,
            "units": UNITS,
        }
        print(json.dumps({**summary, **about}))
        return 0
    episodes = f"{options.episodes} {how(sampled)} episodes"
    print(f"{run.algorithm} on {run.env}, {options.checkpoint} checkpoint, {episodes}")
    rows = {words: summary[name] for name, words in WORDS.items()}
    rows |= {f"return of group {group}": value for group, value in summary["group_return"].items()}
    rows["episode length"] = summary["length"]
    for name, value in rows.items():
        low, high = value["ci95"]
        print(f"  {name:<24}{value['mean']:10.2f}   95% [{low:.2f}, {high:.2f}]   std {value['std']:.2f}")
    if len(summary["agent_returns"]) <= MANY:
        for agent, value in summary["agent_returns"].items():
            signs = ", ".join(f"{value[sign]:.1%} {sign}" for sign in ("positive", "zero", "negative"))
            low, high = value["ci95"]
            print(f"  {agent:<24}{value['mean']:10.2f}   95% [{low:.2f}, {high:.2f}]   episodes: {signs}")
    for name, words in WORDS.items():
        print(f"  {words}: {UNITS[name]}")
    return 0


def _at_least(**options: tuple[int, int]) -> None:
    """Refuse options below their least."""
    for name, (value, least) in options.items():
        if value < least:
            raise ShoalError(f"--{name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class Watch:
    """A film of greedy episodes of a trained run."""

    directory: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: Path
    """FILE.gif or FILE.mp4."""
    episodes: int = 4
    """Episodes to show, one after the other."""
    envs: int = 1
    """Environments to show side by side."""
    opponents: tuple[str, ...] = ()
    """WHO=POLICY: another run's directory or a script plays that group or agent instead."""
    seed: int = 1_000_000
    """Seed of the episodes' starts."""
    fps: int = 10
    """Frames a second."""
    max_frames: int = 1000
    """The film ends after these, whatever the episodes."""
    checkpoint: Literal["best", "last"] = "best"
    """The best evaluation's policy, or the newest."""


def _watch(arguments: list[str]) -> int:
    from shoal import film

    options = tyro.cli(Watch, args=arguments, prog="shoal watch")
    film.check_name(options.out)
    _at_least(episodes=(options.episodes, 1), envs=(options.envs, 1), seed=(options.seed, 0), fps=(options.fps, 1))
    if options.fps > 100:
        raise ShoalError(f"--fps must be at most 100, not {options.fps}: a GIF counts in hundredths of a second")
    run = experiment.open_run(options.directory)
    env = experiment.environment_of(run).make(options.envs, render=True)
    policy = experiment.team(options.directory, env.spec, options.checkpoint, options.opponents)
    film.write(options.out, film.frames(policy, env, options.episodes, options.seed, options.max_frames), options.fps)
    env.close()
    print(f"wrote {options.out}")
    return 0


@dataclass(frozen=True)
class Crossplay:
    """Every run's one side against every run's other side: mean returns with intervals over the seeds."""

    directories: tyro.conf.Positional[tuple[Path, ...]]
    """Of runs in one environment; runs of one algorithm with the same settings count as its seeds."""
    rows: str = ""
    """Group, or agent, of the table's rows; empty: the first."""
    columns: str = ""
    """Group, or agent, of the table's columns; empty: the other."""
    episodes: int = 100
    """Greedy episodes a pair."""
    seed: int = 1_000_000
    """Seed of the episodes' starts."""
    checkpoint: Literal["best", "last"] = "last"
    """Which policy; `best` is the best against the side it learned with."""
    out: Path | None = None
    """Also write the table as JSON here."""


def _crossplay(arguments: list[str]) -> int:
    from shoal.stats.runs import labelled, load
    from shoal.teams.crossplay import cross_play

    options = tyro.cli(Crossplay, args=arguments, prog="shoal crossplay")
    if not options.directories:
        raise ShoalError("name the directories of the runs to compare")
    runs = [experiment.open_run(directory) for directory in options.directories]
    for run, directory in zip(runs, options.directories, strict=True):
        if (run.env, run.env_args) != (runs[0].env, runs[0].env_args):
            raise ShoalError(f"the runs play different environments: {runs[0].env} and {run.env}, or its arguments")
        if run.settings.opponents:
            raise ShoalError(
                f"{directory} learned one side only, against {' '.join(run.settings.opponents)}, and pairs need both: "
                "leave it out, or evaluate it with shoal eval --opponents"
            )
    env = experiment.evaluation_env(experiment.environment_of(runs[0]), options.episodes)
    groups = list(env.spec.groups)
    sides = groups if len(groups) > 1 else list(env.spec.groups[groups[0]].agents)
    rows = options.rows or sides[0]
    columns = options.columns or next((side for side in sides if side != rows), "")
    if {rows, columns} != set(sides):
        raise ShoalError(f"two sides are needed, and those of {runs[0].env} are {', '.join(sides)}")
    players: dict[str, list[Any]] = {}
    for label, members in labelled([load(directory) for directory in options.directories]).items():
        players[label] = [experiment.team(member.directory, env.spec, options.checkpoint) for member in members]
    result = cross_play(players, env, (rows, columns), options.episodes, options.seed)
    env.close()
    print(f"{runs[0].env}, {options.episodes} greedy episodes a pair\n")
    print(result.table(0) + "\n\n" + result.table(1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result.summary(), indent=2) + "\n")
    return 0


@dataclass(frozen=True)
class Check:
    """Random steps in an environment: what agents see and do, and what breaks shoal's contract."""

    steps: int = 300
    """Random steps to play."""
    seed: int = 0
    """Of the starts and the actions."""


def _check(arguments: list[str]) -> int:
    from shoal.envs.check import examine

    if not arguments or arguments[0].startswith("-"):
        print("shoal check ENV [--steps N] [--seed S] [--env.KEY VALUE]: see docs/environments/own.md")
        return 0 if "--help" in arguments or "-h" in arguments else 2
    environment = registry.Environment(arguments[0], complete=False)
    fields: list[Any] = [("check", Annotated[Check, tyro.conf.arg(name="")], field(default_factory=Check))]
    env_arguments = _env_arguments(environment, arguments[1:])
    if env_arguments is not None:
        fields.append(("env", env_arguments, field(default_factory=env_arguments)))
    options: Any = tyro.cli(
        make_dataclass("Options", fields, frozen=True), args=arguments[1:], prog=f"shoal check {arguments[0]}"
    )
    chosen = {} if env_arguments is None else _changed(options.env)
    print(f"{arguments[0]}\n")
    try:
        env = registry.Environment(arguments[0], **chosen).make(1)
    except Misfit as error:
        _print_table([Promise(SPACES, 1, [Problem(error.what, error.fix)])])
        return 1
    print(f"  {'group':<16}{'agents':>6}  {'observation':<14}{'actions':<14}masks")
    for name, group in env.spec.groups.items():
        size, kind = group.action.size, "choices" if isinstance(group.action, Discrete) else "numbers"
        seen = " x ".join(map(str, group.obs_shape)) + " picture" * group.image
        masks = "yes" if group.masked else "no"
        print(f"  {name:<16}{group.num_agents:>6}  {seen:<14}{f'{size} {kind}':<14}{masks}")
    print(f"  global state: {env.spec.state_size or 'none'}")
    print(f"  a step is {'one turn of one agent' if getattr(env, 'turn_based', False) else 'of all agents'}")
    promises = examine(getattr(env, "envs", [env])[0], options.check.steps, options.check.seed)
    env.close()
    _print_table(promises)
    found = [problem for promise in promises for problem in promise.problems]
    serious = sum(not problem.harmless for problem in found)
    print(f"{options.check.steps} random steps, problems: {serious}, warnings: {len(found) - serious}")
    return 1 if serious else 0


def _print_table(promises: list[Promise]) -> None:
    """What was looked at, how often, and what was found with its remedy."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading, wide in (("checked", 28), ("looked", 6), ("found", 12), ("what, and where first", 34), ("fix", 34)):
        table.add_column(heading, max_width=wide, overflow="fold")
    for promise in promises:
        looked = str(promise.looked) if promise.looked else "-"
        if not promise.problems:
            table.add_row(promise.what, looked, "ok" if promise.looked else "-", "", "")
        for problem in promise.problems:
            kind = "warning" if problem.harmless else "problem"
            table.add_row(promise.what, looked, f"{kind} {problem.times}x", problem.what, problem.fix)
    Console(width=124, highlight=False, markup=False).print(table)


def _list(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        print("shoal list: the names of algorithms and environments")
        return 0
    if arguments:
        raise ShoalError(f"shoal list takes no options, not {' '.join(arguments)}")
    print("algorithms")
    for name, preset in registry.algorithms().items():
        print(f"  {name:<10} {preset.summary}")
    print("environments")
    for suite in registry.suites():
        print(f"  {suite}")
        for name in registry.environments(suite):
            print(f"    {name:<44}{registry.note(name)}".rstrip())
    print("  your own\n    file.py:factory or package.module:factory")
    return 0
