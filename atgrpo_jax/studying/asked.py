"""Reads what a study asks: arms, seeds, the measure, and predictions (docs/studies.md)."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.gin_names import nearest

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of an arm: it is part of a folder's name
SEED = "experiment.Experiment.seed"
STEPS = "experiment.Experiment.steps"
TOKENS = "experiment.Experiment.tokens"


@dataclasses.dataclass(frozen=True)
class Arm:
    """Names the runs of one kind: how they are made, or the folders in which they are.

    Or it is a test: the trained teams of another arm are scored again, in another way.
    """

    gin_files: tuple[str, ...] = ()  # after those of the study
    gin_params: tuple[str, ...] = ()  # after those of the study; in a test, after what was trained
    runs: tuple[str, ...] = ()  # folders of runs that are there; then nothing is made
    again: str = ""  # the arm whose teams are scored again
    swap: tuple[str, ...] = ()  # in a test: two roles that speak with each other's policies
    step: int | None = None  # in a test: of the teams; their last one if not given
    about: str = ""  # a line for people

    def __post_init__(self):
        check_types(self)
        made = bool(self.gin_files or self.gin_params or self.again)
        require(self, "runs", not (self.runs and made), "an arm has either gin files and params, or runs")
        test = bool(self.swap) or self.step is not None
        require(self, "again", bool(self.again) or not test, "swap and step are of an arm that has it")
        rule = "a run has the gin files that it was trained with; give gin_params"
        require(self, "gin_files", not (self.again and self.gin_files), rule)
        rule = "say what is other in this test: gin_params, swap or step"
        require(self, "again", not self.again or test or bool(self.gin_params), rule)
        require(self, "swap", len(self.swap) in (0, 2), "names two roles")
        require(self, "step", self.step is None or self.step >= 0, "must not be negative")

    @property
    def trained(self) -> bool:
        """Returns whether the study trains its runs."""
        return not (self.runs or self.again)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Says what will come out. There is either ``better``, or ``arm`` and ``at_least``."""

    better: tuple[str, ...] = ()  # two arms: the first one is better than the second one
    by: float = 0.0  # by more than this; 0.1 is ten points of success
    arm: str = ""
    at_least: float | None = None  # what every run of the arm reaches
    because: str = ""  # why, for people

    def __post_init__(self):
        check_types(self)
        require(self, "better", len(self.better) in (0, 2), "names two arms: better = [this, than this]")
        bar = bool(self.arm) and self.at_least is not None
        if bool(self.better) == bar or bool(self.arm) != (self.at_least is not None):
            raise ValueError("Prediction: there is either better = [A, B], or arm = A and at_least = 0.8")
        require(self, "better", len(set(self.better)) != 1, "compares an arm with itself")
        require(self, "by", -1 < self.by < 1, "is a share between -1 and 1: 0.1 is ten points")
        require(self, "by", not (bar and self.by), "belongs to better")
        reach = self.at_least is None or 0 < self.at_least <= 1
        require(self, "at_least", reach, "is a share above 0 and up to 1: 0.8 is 80 %")

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.better) or (self.arm,)

    def __str__(self) -> str:
        if self.better:
            first, second = self.better
            points = f"{abs(self.by) * 100:g} points"
            if self.by < 0:
                return f"{first} is less than {points} worse than {second}"
            return f"{first} is better than {second}" + (f" by more than {points}" if self.by else "")
        return f"every run of {self.arm} reaches {self.at_least:.1%}"


@dataclasses.dataclass(frozen=True)
class Study:
    """Holds all that a study says. ``arms`` and ``predictions`` keep the order of the file."""

    arms: Mapping[str, Arm]
    predictions: tuple[Prediction, ...] = ()
    title: str = ""
    gin_files: tuple[str, ...] = ()  # of all arms that are made
    gin_params: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    tokens: int = 0  # each run ends with the step by which it has drawn so many; 0: by its own config
    steps: int = 0  # each run ends after so many; 0: by its own config
    # Success on the test split after the last step; or the mean success on the validation split on the
    # way there, over tokens (over steps if the study sets these).
    measure: Literal["test", "validation"] = "test"

    def __post_init__(self):
        check_types(self)
        require(self, "arms", bool(self.arms), "there is none; a study has a table [arms.NAME] for each")
        for name in self.arms:
            if not _NAME.fullmatch(name):
                raise ValueError(f"arms.{name}: a name has letters, digits, points, _ and - only")
        for name in ("tokens", "steps"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        require(self, "steps", not (self.tokens and self.steps), "one of tokens and steps ends the runs")
        require(self, "seeds", all(seed >= 0 for seed in self.seeds), "must not be negative")
        require(self, "seeds", len(set(self.seeds)) == len(self.seeds), "names one twice")
        made = any(arm.trained for arm in self.arms.values())
        require(self, "seeds", bool(self.seeds) or not made, "there is none, e.g. seeds = [0, 1, 2]")
        for name, arm in self.arms.items():
            if arm.again:
                self._check_test(name, arm)
        for params in (self.gin_params, *(arm.gin_params for arm in self.arms.values())):
            for param in params:
                self._check_param(param)
        for place, prediction in enumerate(self.predictions):
            for name in prediction.arms:
                if name not in self.arms:
                    where = f"prediction {place + 1} ({prediction})"
                    raise ValueError(f"{where}: there is no arm {name!r}{nearest(name, self.arms)}")
            made = any(not self.arms[name].runs for name in prediction.arms)
            few = made and len(self.seeds) < 2 and prediction.better
            rule = f"the difference of prediction {place + 1} needs two or more: one says nothing of others"
            require(self, "seeds", not few, rule)

    def _check_param(self, param: str) -> None:
        name = param.partition("=")[0].strip()
        if name == SEED:
            raise ValueError(f"gin_params: {name} is set by the study; name the seeds in seeds = [...]")
        ends = {STEPS: "steps", TOKENS: "tokens"}
        if name in ends and (self.tokens or self.steps):
            raise ValueError(f"gin_params: {name} is set by the study; say its own {ends[name]} = ...")

    def _check_test(self, name: str, arm: Arm) -> None:
        trained = [other for other, found in self.arms.items() if found.trained]
        if arm.again not in trained:
            known = ", ".join(trained)
            raise ValueError(f"arms.{name}: again = {arm.again!r} is no arm that is trained here: {known}")
        require(self, "measure", self.measure == "test", f"arm {name} is a test, so it must be test")

    def bindings(self, name: str, seed: int) -> list[str]:
        """Returns the gin parameters of a run of an arm."""
        own = [*self.gin_params, *self.arms[name].gin_params, f"{SEED} = {seed}"]
        if self.tokens:
            # No step draws less than a token, so the tokens end the run.
            own += [f"{TOKENS} = {self.tokens}", f"{STEPS} = {self.tokens}"]
        return [*own, f"{STEPS} = {self.steps}"] if self.steps else own

    def files(self, name: str) -> list[str]:
        """Returns the gin files of an arm."""
        return [*self.gin_files, *self.arms[name].gin_files]


def read(path: Path) -> Study:
    """Reads a study. Raises ConfigError that names the file and what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = nearest(path.name, (other.name for other in path.parent.glob("*.toml")))
        raise ConfigError(f"there is no study {path}{near}") from error
    try:
        return _study(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _study(found: Mapping[str, Any]) -> Study:
    arms = found.get("arms", {})
    predictions = found.get("predictions", [])
    tables = isinstance(arms, dict) and all(isinstance(arm, dict) for arm in arms.values())
    listed = isinstance(predictions, list) and all(isinstance(one, dict) for one in predictions)
    if not (tables and listed):
        raise ValueError("arms are tables [arms.NAME], and predictions are tables [[predictions]]")
    own = {
        "arms": {name: _made(Arm, arm, f"[arms.{name}]") for name, arm in arms.items()},
        "predictions": [
            _made(Prediction, one, f"prediction {place}") for place, one in enumerate(predictions, start=1)
        ],
    }
    return _made(Study, {**found, **own}, "the study")


def _made(cls: type, values: Mapping[str, Any], where: str) -> Any:
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            raise ValueError(f"{where} has no setting {name!r}{nearest(name, names)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if cls is not Study else str(error)) from error
