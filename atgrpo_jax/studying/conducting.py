"""Conducts a study: records it, makes what is missing, and writes what was found."""

import itertools
from collections.abc import Callable

from atgrpo_jax.common.errors import RunError, Stopped
from atgrpo_jax.common.progress import counted
from atgrpo_jax.studying.asked import Study
from atgrpo_jax.studying.making import LOOK_S, Process, is_made, last_words, make
from atgrpo_jax.studying.measured import Measured, measure
from atgrpo_jax.studying.recorded import Run, StudyFolder, settle
from atgrpo_jax.studying.results import write
from atgrpo_jax.studying.verdicts import judge


def conduct(
    folder: StudyFolder,
    study: Study,
    start: Callable[[Run, int], Process],
    at_once: int = 1,
    look_s: float = LOOK_S,
) -> str:
    """Makes the runs of a study that are missing, then its tests, and writes what came of it.

    Returns the page for people. Raises RunError if runs or tests failed, after all others are made and the
    results of these are written.
    """
    digest = settle(folder, study)
    runs = folder.runs(study)
    there = {run: measure(run, study) for run in runs if run.seed is None}  # before hours are spent
    try:
        failed = make([run for run in runs if run.test is None], start, at_once, look_s)
        untrained = {run.folder.path for run in failed}
        tests = [run for run in runs if run.test is not None and run.folder.path not in untrained]
        failed += make(tests, start, at_once, look_s) if tests else []
    except Stopped as stopped:
        stopped.note = "stopped; each run has saved its last step, and the same command goes on"
        raise
    found = there | {run: measure(run, study) for run in runs if run.seed is not None and is_made(run)}
    arms: dict[str, list[Measured]] = {name: [] for name in study.arms}
    for run, measured in found.items():
        arms[run.arm].append(measured)
    for name, measured_runs in arms.items():
        measured_runs.sort(key=lambda one: one.seed)
        _refuse_copies(name, measured_runs)
    missing = {run.arm for run in runs if run in failed or run.folder.path in untrained}
    verdicts = [judge(prediction, arms, missing) for prediction in study.predictions]
    page = write(folder, study, digest, arms, verdicts)
    if failed:
        told = "; ".join(f"{run.name}: {last_words(folder.log(run))} ({folder.log(run)})" for run in failed)
        raise RunError(
            f"{counted(len(failed), 'run')} failed: {told}. All others are made, and {folder.page} has what "
            "they say. Mend what is wrong there, and the same command goes on with these alone"
        )
    return f"{page}\n{folder.page}"


def _refuse_copies(name: str, runs: list[Measured]) -> None:
    for one, other in itertools.pairwise(runs):
        if one.seed == other.seed:
            both = f"{one.run.folder.path} and {other.run.folder.path}"
            raise RunError(f"arm {name}: {both} have the same seed {one.seed}; name one of them")
