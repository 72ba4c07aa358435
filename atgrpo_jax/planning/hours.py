"""Estimates the time of a whole run: so many steps, evaluations and steps of the warm start."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from atgrpo_jax.common.progress import counted
from atgrpo_jax.planning import times
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.workload import MEASURED, Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner


class Part(NamedTuple):
    """Says how long a part of a run takes in all, and how much of it there is, in words."""

    seconds: float
    what: str


def parts(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> Mapping[str, Part]:
    """Returns the parts of a run that the devices' arithmetic, or their memory, limits."""
    steps = experiment.steps

    def stages(workload: Workload) -> Mapping[str, tuple[float, float, str]]:
        return times.seconds(experiment, policies, workload, device, utilisation)

    found = {
        stage: Part(steps * least, counted(steps, "step") + (", at most" if stage == times.AFTER else ""))
        for stage, (_, least, _) in stages(workload).items()
    }
    once = dataclasses.replace(workload, rounds=1, continued=0)
    settings = experiment.evaluation
    validations = sum(settings.validates(step, steps) for step in range(steps + 1))
    workflow = experiment.task.workflow
    groups = len(experiment.team.drawn(workflow.turn_roles)) * workflow.turns

    def evaluation(episodes: int) -> float:
        return stages(dataclasses.replace(once, groups=episodes * groups, candidates=1))["rollout"][1]

    found["evaluation"] = Part(
        validations * evaluation(settings.validation_instances) + 2 * evaluation(settings.instances),
        (f"{validations} x {settings.validation_instances} episodes of validation, " if validations else "")
        + f"2 x {settings.instances} of test, at most",
    )
    warm = experiment.warm_start
    if warm is not None:
        shown = dataclasses.replace(
            once,
            groups=round(warm.instances * workload.demonstrated),
            candidates=warm.candidates,
            new=max(round(workload.demonstration), 1),
        )
        found["warm start"] = Part(
            warm.steps * stages(shown)["update"][1],
            f"{counted(warm.steps, 'step')}, unless it is in the cache",
        )
    return found


def report(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> Sequence[str]:
    """Returns the lines about the whole run."""
    found = parts(experiment, policies, workload, device, utilisation)
    total = sum(part.seconds for part in found.values()) / 3600
    return [
        f"the whole run: {_hours(total)} hours, by the figures above",
        *(f"  {name:10} {_hours(part.seconds / 3600):>10} h  {part.what}" for name, part in found.items()),
        "  The numbers of steps, groups and episodes are the config's, and answers as long as it allows;",
        f"  prompts and demonstrations are those of {MEASURED} instances. The hours are estimates, from",
        f"  {utilisation:.0%} of {device.flops / 1e12:.0f} TFLOP/s and {device.bandwidth / 1e12:.2f} TB/s of "
        "each device, without compiling, programs, the host's work",
        "  and what devices exchange.",
    ]


def _hours(hours: float) -> str:
    """Returns three digits of a number of hours, never with an exponent: 1,060 or 0.0123."""
    rounded = float(f"{hours:.3g}")
    if rounded < 0.001:
        return "< 0.001"
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:#.3g}"
