"""Estimates the time of a whole run: so many steps, evaluations and steps of the warm start."""

import dataclasses
import math
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
    steps = last_step(experiment, workload)
    words = counted(steps, "step")
    if steps < experiment.steps:
        words += ", which draw Experiment.tokens"

    def stages(workload: Workload) -> Mapping[str, tuple[float, float, str]]:
        return times.seconds(experiment, policies, workload, device, utilisation)

    found = {
        stage: Part(steps * least, words + (", at most" if stage == times.AFTER else ""))
        for stage, (_, least, _) in stages(workload).items()
    }
    once = dataclasses.replace(workload, rounds=1, continued=0)
    settings = experiment.evaluation
    validations = sum(settings.validates(step, steps) for step in range(steps + 1))
    workflow = experiment.task.workflow
    groups = len(experiment.team.drawn(workflow.turn_roles)) * workflow.turns

    def evaluation(episodes: int) -> float:
        return stages(dataclasses.replace(once, groups=episodes * groups, candidates=1))["rollout"][1]

    if "rollout" in found:
        each = settings.validation_instances
        before = f"{validations} x {each} episodes of validation, " if validations else ""
        found["evaluation"] = Part(
            validations * evaluation(each) + 2 * evaluation(settings.instances),
            before + f"2 x {settings.instances} of test, at most",
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
            warm.steps * times.cloning(experiment, policies, shown, device, utilisation),
            f"{counted(warm.steps, 'step')}, unless it is in the cache",
        )
    return found


def report(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> Sequence[str]:
    """Returns the lines about the whole run."""
    found = parts(experiment, policies, workload, device, utilisation)
    total = sum(part.seconds for part in found.values())
    aside = []
    if experiment.max_lag and "rollout" in found:
        aside.append("a step is played while the one before is learned (max_lag = 1)")
        if experiment.engine.apart(experiment.mesh):
            drawn = sum(found[name].seconds for name in ("rollout", times.AFTER) if name in found)
            total -= min(drawn, found["update"].seconds)
            aside[-1] += ": of rollout and update the longer one counts in the sum"
        else:
            aside[-1] += ", on the same devices: both count in the sum"
    if "rollout" not in found:
        aside.append(f"rollout and evaluations are {times.elsewhere(experiment)}")
    if measured := _influences(experiment, last_step(experiment, workload)):
        often = counted(measured, "time")
        aside.append(f"what roles' words change is measured {often}, which is not in the sum")
    return [
        f"the whole run: {_hours(total / 3600)} hours, by the figures above",
        *(f"  {name:10} {_hours(part.seconds / 3600):>10} h  {part.what}" for name, part in found.items()),
        *(f"  {line}" for line in aside),
        "  The numbers of steps, groups and episodes are the config's, and answers as long as it allows;",
        f"  prompts and demonstrations are those of {MEASURED} instances. The hours are estimates, from",
        f"  {utilisation:.0%} of {device.flops / 1e12:.0f} TFLOP/s and {device.bandwidth / 1e12:.2f} TB/s of "
        "each device, without compiling, programs, the host's work",
        "  and what devices exchange.",
    ]


def last_step(experiment: Experiment, workload: Workload) -> int:
    """Returns how many steps a run has: fewer than ``Experiment.steps`` if its tokens are drawn before.

    Answers are as long as the limit allows, as all of the page supposes.
    """
    if not experiment.tokens:
        return experiment.steps
    answers = workload.groups * workload.candidates + workload.continued
    drawn = workload.rounds * answers * workload.new
    return min(experiment.steps, math.ceil(experiment.tokens / drawn))


def _influences(experiment: Experiment, steps: int) -> int:
    """Returns how often a run measures what roles' words change."""
    every = experiment.evaluation.influence_every
    return sum(step % every == 0 or step == steps for step in range(1, steps + 1)) if every else 0


def _hours(hours: float) -> str:
    """Returns three digits of a number of hours, never with an exponent: 1,060 or 0.0123."""
    rounded = float(f"{hours:.3g}")
    if rounded < 0.001:
        return "< 0.001"
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:#.3g}"
