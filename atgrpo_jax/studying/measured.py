"""Reads what the runs of a study have come to.

Axis letters: X evaluations on the way, S seeds, I instances.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run.ending import Ending, drawn_tokens
from atgrpo_jax.studying.asked import Study
from atgrpo_jax.studying.recorded import Run, tested
from atgrpo_jax.viewing.contents import kept
from atgrpo_jax.viewing.folders import Outline, outline

Instance = tuple[int, str]  # its number, and its problem


@dataclasses.dataclass(frozen=True)
class Measured:
    """Holds what one run has come to."""

    run: Outline
    steps: int  # after which the team is measured
    values: Mapping[Instance, float]  # by the study's measure, from 0 to 1
    drawn: float  # tokens, in training
    useful: float  # groups with a signal, in training
    test_tokens: float  # that an episode of the last test takes

    @property
    def seed(self) -> int:
        return int(self.run.seed)

    @property
    def score(self) -> float:
        return float(np.mean(list(self.values.values())))


def measure(run: Run, study: Study) -> Measured:
    """Reads a run that has ended. Raises RunError if it has not, or not where the study ends its runs."""
    if not run.folder.exists():
        raise RunError(f"arm {run.arm}: {run.folder.path} holds no run")
    found = outline(run.folder)
    if not found.ended:
        raise RunError(f"arm {run.arm}: {run.folder.path} is at step {found.done}, and has not ended")
    drawn = float(sum(map(drawn_tokens, found.records)))
    by_tokens = Ending(found.done, study.tokens, found.records).last == found.done and drawn >= study.tokens
    fits = by_tokens if study.tokens else study.steps in (0, found.done)
    if not fits:
        ends = f"{study.tokens:,} tokens" if study.tokens else f"{study.steps} steps"
        raise RunError(
            f"arm {run.arm}: {run.folder.path} ended after {found.done} steps and {drawn:,.0f} tokens, and "
            f"the study is of {ends}; name runs that end there, or leave that out of the study"
        )
    if run.test is not None:
        return _measured_again(run, found)
    episodes = list(found.folder.read_episodes(found.done, "test"))
    values = _solved(episodes) if study.measure == "test" else _on_the_way(found, study)
    return Measured(found, found.done, values, drawn, _useful(found.records), _test_tokens(episodes))


def _measured_again(run: Run, found: Outline) -> Measured:
    record = tested(run)
    assert record is not None
    episodes = list(run.folder.read_evaluation(record["episodes"].rpartition("/")[2]))
    records = found.records[: record["step"] + 1]
    drawn = float(sum(map(drawn_tokens, records)))
    return Measured(found, record["step"], _solved(episodes), drawn, _useful(records), _test_tokens(episodes))


def _useful(records: Sequence[Mapping[str, Any]]) -> float:
    return sum(r["groups/total"] * r["groups/signal"] for r in records if "groups/total" in r)


def _test_tokens(episodes: Sequence[Mapping[str, Any]]) -> float:
    told = [[len(c["tokens"]) for group in e["groups"] for c in group["candidates"]] for e in episodes]
    return float(np.mean([sum(counts) for counts in told]))


def _solved(episodes: Iterable[Mapping[str, Any]]) -> dict[Instance, float]:
    return {(e["instance"], e["problem"]): float(e["solved"]) for e in episodes}


def _on_the_way(run: Outline, study: Study) -> dict[Instance, float]:
    """Returns the mean success on each instance of the validation split, over tokens or steps.

    Between two evaluations it is taken to be on the line between them.
    """
    steps = [file.step for file in kept(run.folder) if file.split == "validation"]
    if len(steps) < 2:
        raise RunError(
            f"{run.folder.path} has no evaluations on the validation split on its way; the measure "
            '"validation" needs evaluation.EvaluationConfig.every = 10 or the like'
        )
    amounts = [1.0 if study.steps else drawn_tokens(record) for record in run.records]
    places_X = np.cumsum(amounts)[steps]
    solved = [_solved(run.folder.read_episodes(step, "validation")) for step in steps]
    common = sorted(set.intersection(*map(set, solved)))
    values_XI = np.array([[one[key] for key in common] for one in solved])
    means_I = np.trapezoid(values_XI, places_X, axis=0) / (places_X[-1] - places_X[0])
    return dict(zip(common, means_I.tolist(), strict=True))


def table_SI(runs: Sequence[Measured], instances: Sequence[Instance]) -> np.ndarray:
    """Returns a row for each run, with its values on the instances."""
    return np.array([[run.values[key] for key in instances] for run in runs])


def common(*arms: Sequence[Measured]) -> list[Instance]:
    """Returns the instances that all runs of all arms have, in order."""
    return sorted(set.intersection(*(set(run.values) for runs in arms for run in runs)))
