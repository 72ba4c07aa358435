"""Writes down what a study asks before its first run, and refuses another question afterwards."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import is_file, make_folder, read_json_lines, write_atomically
from atgrpo_jax.common.literals import shortened
from atgrpo_jax.common.types import hash_bytes
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.rescoring import check_rescored, check_swap
from atgrpo_jax.studying.asked import Arm, Study
from atgrpo_jax.viewing.folders import outline

_FOR_PEOPLE = ("title", "about", "because")  # words that may be put better at any time
# Settings that came later, if they are not set: studies from before them have the same digest.
_LATER: dict[str, Any] = {"again": "", "swap": (), "step": None}


@dataclasses.dataclass(frozen=True)
class Run:
    """Names one run of an arm, or the ``test`` of a run in another way. ``seed`` is None if it was there."""

    arm: str
    seed: int | None
    folder: RunFolder
    test: Arm | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.seed}" if self.test else self.folder.path.name


class StudyFolder:
    """Holds the paths of a study: its record, its runs (ARM_SEED/), their logs, and its results."""

    def __init__(self, path: Path):
        self.path = path
        self.record = path / "study.json"
        self.logs = path / "logs"
        self.table = path / "table.csv"
        self.verdicts = path / "verdicts.csv"
        self.page = path / "table.md"
        self.figure = path / "figure.png"

    def runs(self, study: Study) -> list[Run]:
        """Returns all runs and tests. Those of one arm are together: they share no warm start."""
        found = []
        for name, arm in study.arms.items():
            if arm.runs:
                found += [Run(name, None, RunFolder(path)) for path in arm.runs]
                continue
            own, test = (arm.again, arm) if arm.again else (name, None)
            folders = {seed: RunFolder(self.path / f"{own}_{seed}") for seed in study.seeds}
            found += [Run(name, seed, folder, test) for seed, folder in folders.items()]
        return found

    def log(self, run: Run) -> Path:
        return self.logs / f"{run.name}.log"


def tested(run: Run) -> dict[str, Any] | None:
    """Returns what the last such test of a run has come to; None if there is none."""
    test = run.test
    assert test is not None
    step = outline(run.folder).done if test.step is None else test.step
    asked = {
        "step": step,
        "split": "test",
        "gin_param": [*test.gin_params],
        "swap": [*test.swap],
        "flags": {},
    }
    for record in reversed(read_json_lines(run.folder.evaluations)):
        told = record | {name: record.get(name) or [] for name in ("gin_param", "swap")}
        if all(told.get(name) == value for name, value in asked.items()):
            return record
    return None


def settle(folder: StudyFolder, study: Study) -> str:
    """Records the study, if no run of it has begun. Returns its digest.

    Raises ConfigError if the config of an arm cannot be loaded, and RunError if the study was recorded
    and is another one now.
    """
    facts = {"study": _asked(study), "configs": configs(study)}
    digest = hash_bytes(json.dumps(facts, sort_keys=True)).hex()
    begun = any(run.seed is not None and run.folder.exists() for run in folder.runs(study))
    if is_file(folder.record):
        recorded = json.loads(folder.record.read_text())
        if recorded["digest"] == digest:
            return digest
        begun = begun or is_file(folder.table) or _any_begun(folder)
        if begun:
            raise RunError(
                f"{folder.record} was written before the first run, and the study is another one now: "
                f"{_difference(recorded, facts)}. Put it back, or give another --study_dir for a new study; "
                "an arm of that may name runs that are there"
            )
    elif begun:
        raise RunError(
            f"{folder.path} has runs, but no {folder.record.name}; give another --study_dir, or name these "
            "runs as an arm: runs = [...]"
        )
    make_folder(folder.path)
    text = json.dumps({"digest": digest} | facts, indent=2)
    write_atomically(folder.record, f"{text}\n".encode())
    return digest


def configs(study: Study) -> dict[str, dict[str, Any]]:
    """Returns what the runs of each arm are, for those that are made. Raises ConfigError; see ``settle``."""
    found = {}
    for name, arm in study.arms.items():
        if arm.runs:
            continue
        try:
            experiment = _tested(study, arm) if arm.again else _trained(study, name)
        except ConfigError as error:
            raise ConfigError(f"arm {name}: {error}") from error
        if study.measure == "validation" and not experiment.evaluation.every:
            raise ConfigError(
                f'arm {name}: the measure "validation" needs evaluations on the way, and it has '
                "evaluation.EvaluationConfig.every = 0; set e.g. 10"
            )
        found[name] = {
            "identity": experiment.identity(),
            "steps": experiment.steps,
            "tokens": experiment.tokens,
        }
    return found


def _trained(study: Study, arm: str, *more: str) -> Experiment:
    return gin_config.load(study.files(arm), [*study.bindings(arm, study.seeds[0]), *more])


def _tested(study: Study, arm: Arm) -> Experiment:
    """Returns what a test plays. Raises ConfigError if a trained team cannot be scored so."""
    trained, given = _trained(study, arm.again), _trained(study, arm.again, *arm.gin_params)
    check_rescored(trained, given)
    if arm.swap:
        check_swap(given, arm.swap)
    return given


def _any_begun(folder: StudyFolder) -> bool:
    """Returns whether there is a run, also of an arm or seed that the study no longer has."""
    return any(is_file(RunFolder(path).config) for path in folder.path.iterdir() if path.is_dir())


def _asked(study: Study) -> dict[str, Any]:
    def without_words(value: Any) -> Any:
        if isinstance(value, dict):
            told = {key: item for key, item in value.items() if key not in _FOR_PEOPLE}
            return {
                k: without_words(item) for k, item in told.items() if k not in _LATER or item != _LATER[k]
            }
        return [without_words(item) for item in value] if isinstance(value, (list, tuple)) else value

    return without_words(dataclasses.asdict(study))


def _difference(recorded: dict[str, Any], facts: dict[str, Any]) -> str:
    """Returns a line on the first place in which they differ."""
    for name, before, now in _differences("", recorded["study"], facts["study"]):
        there, given = shortened(before, now)
        return f"{name} = {there} there, {given} given"
    arms = [arm for arm, config in facts["configs"].items() if recorded["configs"].get(arm) != config]
    return f"the gin files of {', '.join(arms)} say something else than then"


def _differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            inner = f"{name}.{key}" if name else key
            yield from _differences(inner, before.get(key, "nothing"), now.get(key, "nothing"))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True), start=1):
            yield from _differences(f"{name} {place}", one, other)
    elif before != now:
        yield name, before, now
