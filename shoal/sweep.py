"""Looking for good settings: what is searched, which values to try next, and when a trial is not worth finishing.

Trials are remembered in `trials.jsonl`: a line when one begins, another when it ends; the last line of a number counts.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from shoal.types import ShoalError, nearest

Kind = Literal["log", "uniform", "logint", "int", "choice"]
Method = Literal["random", "grid", "tpe"]
State = Literal["started", "finished", "pruned", "failed"]
TRIALS = "trials.jsonl"
HOW = "NAME=log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH or choice:A|B|C"
STARTUP = 5  # finished trials before one is pruned, as Optuna's MedianPruner
WARMUP = 0.25  # share of the training before one is pruned
Params = dict[str, str]


@dataclass(frozen=True)
class Dimension:
    """A setting and the values it may take, as written on the command line."""

    name: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()
    points: int = 0
    """Of a grid."""

    @staticmethod
    def parse(text: str) -> Dimension:
        """`lr=log:1e-4:1e-2` (for a grid with a number of points: `:5`), `net.hidden=choice:64,64|128,128`."""
        name, equals, rest = text.partition("=")
        kind, _, values = rest.partition(":")
        if not (name and equals and values):
            raise ShoalError(f"a search is written {HOW}; not {text!r}")
        if kind not in get_args(Kind):
            raise ShoalError(f"there is no kind of search {kind!r} (in {text!r}); {nearest(kind, get_args(Kind))}")
        if kind == "choice":
            return Dimension(name, "choice", choices=tuple(values.split("|")))
        try:
            numbers = [float(value) for value in values.split(":")]
            low, high = numbers[:2]
        except ValueError:
            raise ShoalError(f"a search is written {HOW}; not {text!r}") from None
        if not low < high or (kind.startswith("log") and low <= 0) or len(numbers) > 3:
            raise ShoalError(f"{text!r}: the lower end must be below the upper one, and above 0 for log")
        return Dimension(name, kind, low, high, points=int(numbers[2]) if len(numbers) == 3 else 0)  # type: ignore[arg-type]

    def at(self, share: float) -> str:
        """The value this far along the range, from 0 to 1."""
        if self.kind == "choice":
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.kind.startswith("log"):
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return str(round(value)) if self.kind.endswith("int") else f"{value:.6g}"

    def grid(self) -> list[str]:
        """Every value of a grid."""
        if self.kind == "choice":
            return list(self.choices)
        if self.points < 2:
            raise ShoalError(f"a grid needs a number of points for {self.name}: {self.kind}:LOW:HIGH:POINTS")
        return list(dict.fromkeys(self.at(i / (self.points - 1)) for i in range(self.points)))

    def options(self, value: str) -> list[str]:
        """Of `shoal train`; commas separate the numbers of a tuple."""
        return [f"--{self.name.replace('_', '-') if '.' not in self.name else self.name}", *value.split(",")]


@dataclass(frozen=True)
class Trial:
    """Some values, and what came of them."""

    number: int
    params: Params
    state: State = "started"
    value: float | None = None
    """The best evaluation."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Environment steps and the best evaluation until then."""

    def save(self, directory: Path) -> None:
        """Append it to the directory's trials."""
        path = directory / TRIALS
        cut_off = path.is_file() and not path.read_text().endswith("\n")  # a crash in the middle of a line
        with path.open("a") as file:
            file.write("\n" * cut_off + json.dumps(dataclasses.asdict(self)) + "\n")


def read_trials(directory: Path) -> dict[int, Trial]:
    """By number; a last line cut off by a crash is skipped."""
    path = directory / TRIALS
    found: dict[int, Trial] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[data["number"]] = Trial(**{**data, "curve": [(int(x), float(y)) for x, y in data["curve"]]})
    return found


def best(trials: dict[int, Trial]) -> Trial | None:
    """The finished trial with the highest value."""
    finished = [trial for trial in trials.values() if trial.state == "finished" and trial.value is not None]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)


def hopeless(curve: list[tuple[int, float]], others: list[list[tuple[int, float]]], total_steps: int) -> bool:
    """The median rule (Golovin et al. 2017, Vizier; Optuna's `MedianPruner`).

    A trial is hopeless when its best evaluation so far is below the median of what the finished trials had at the same
    environment steps (at the last evaluation until then); not before there are `STARTUP` of them and a `WARMUP` of the
    training is over.
    """
    if not curve or curve[-1][0] < WARMUP * total_steps:
        return False
    earlier = [[value for steps, value in other if steps <= curve[-1][0]] for other in others]
    values = [known[-1] for known in earlier if known]
    return len(values) >= STARTUP and curve[-1][1] < float(np.median(values))


class Sampler(Protocol):
    """Which values to try next."""

    def ask(self, number: int) -> Params: ...

    def tell(self, trial: Trial) -> None:
        """A trial has ended."""
        ...


class Random:
    """Uniform draws, a generator a trial: the same values whatever came before."""

    def __init__(self, dimensions: list[Dimension], seed: int) -> None:
        self.dimensions, self.seed = dimensions, seed

    def ask(self, number: int) -> Params:
        draws = np.random.default_rng([self.seed, number]).random(len(self.dimensions))
        return {d.name: d.at(float(share)) for d, share in zip(self.dimensions, draws, strict=True)}

    def tell(self, trial: Trial) -> None:
        """Nothing is learned."""


class Grid:
    """Every combination."""

    def __init__(self, dimensions: list[Dimension]) -> None:
        names = [d.name for d in dimensions]
        values = itertools.product(*(d.grid() for d in dimensions))
        self.all = [dict(zip(names, combination, strict=True)) for combination in values]

    def ask(self, number: int) -> Params:
        return self.all[number]

    def tell(self, trial: Trial) -> None:
        """Nothing is learned."""


class Tpe:
    """Tree-structured Parzen estimators (Bergstra et al. 2011), Optuna's.

    Trials that are running count as bad ones (`constant_liar`), so that those side by side differ.
    """

    def __init__(self, dimensions: list[Dimension], seed: int) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise ShoalError("--method tpe needs the extra: pip install 'shoal[tune]'")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna: Any = optuna
        self.dimensions = {d.name: d for d in dimensions}
        with warnings.catch_warnings():  # some of these options are called experimental in some versions
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True)
        self.study: Any = optuna.create_study(direction="maximize", sampler=sampler)
        self.space = {d.name: self._distribution(d) for d in dimensions}
        self.asked: dict[int, Any] = {}

    def _distribution(self, d: Dimension) -> Any:
        kinds = self.optuna.distributions
        if d.kind == "choice":
            return kinds.CategoricalDistribution(d.choices)
        if d.kind.endswith("int"):
            return kinds.IntDistribution(round(d.low), round(d.high), log=d.kind == "logint")
        return kinds.FloatDistribution(d.low, d.high, log=d.kind == "log")

    def ask(self, number: int) -> Params:
        self.asked[number] = self.study.ask(self.space)
        return {name: self._text(name, value) for name, value in self.asked[number].params.items()}

    def _text(self, name: str, value: Any) -> str:
        return f"{value:.6g}" if self.dimensions[name].kind in ("log", "uniform") else str(value)

    def tell(self, trial: Trial) -> None:
        states = self.optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED}.get(trial.state, states.FAIL)
        asked = self.asked.pop(trial.number, None)
        if asked is not None:
            for step, value in trial.curve:
                asked.report(value, step)
            self.study.tell(asked, trial.value if state is states.COMPLETE else None, state=state)
            return
        params = {name: self._value(name, text) for name, text in trial.params.items()}
        self.study.add_trial(
            self.optuna.trial.create_trial(
                state=state,
                value=trial.value if state is states.COMPLETE else None,
                params=params,
                distributions=self.space,
                intermediate_values=dict(trial.curve),
            )
        )

    def _value(self, name: str, text: str) -> Any:
        d = self.dimensions[name]
        if d.kind == "choice":
            return text
        return int(text) if d.kind.endswith("int") else min(max(float(text), d.low), d.high)


def sampler(method: Method, dimensions: list[Dimension], seed: int) -> Sampler:
    """By name."""
    if method == "grid":
        return Grid(dimensions)
    return Tpe(dimensions, seed) if method == "tpe" else Random(dimensions, seed)
