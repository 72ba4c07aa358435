"""Measures what each role of a run's team contributes, and says which one may be idle.

    python -m atgrpo_jax.influence --run_dir=runs/plan [--step=N] [--split=test] [--instances=100]

Instances are played as by ``evaluate``. Then they are played again, in which one role says something
else; whatever does not follow from that stays as it was:

    sibling     once in an episode, another of the answers that it draws there
    silent      always, an empty text
    shuffled    always, what it said in another instance's episode
    echo        always, what somebody else said just before it

A role may be idle if the team keeps 90 % of its success with one of the last three. docs/influence.md has
the rule and its reason. What was found is appended to RUN_DIR/influence.jsonl.
"""

import contextlib

from absl import flags

from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import compiled_flag, mesh_flag, refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import append_json_line
from atgrpo_jax.engines import gate
from atgrpo_jax.partners.opening import opened
from atgrpo_jax.rollout.contributions import alarms, figures, table
from atgrpo_jax.rollout.evaluation import drawn_by
from atgrpo_jax.rollout.influence import check_enough
from atgrpo_jax.run.compiled import keep_compiled
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.run.scoring import compared, held_out, scored
from atgrpo_jax.tasks.splits import SPLITS

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The folder of a run. E.g. --run_dir=runs/plan")
_MESH = mesh_flag()
_COMPILED = compiled_flag()
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Which checkpoint: a number, or best, by validation; the newest if it is not given. E.g. --step=70",
)
_SPLIT = flags.DEFINE_enum(
    "split", "test", SPLITS, "The split that instances are taken from. E.g. --split=validation"
)
_INSTANCES = flags.DEFINE_integer(
    "instances",
    None,
    "How many instances; the config's number for the split if it is not given. E.g. --instances=50",
    2,
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "Temperature of sampling, 0 for greedy; the config's if it is not given. E.g. --temperature=0",
    0.0,
)


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _RUN_DIR.value is None:
        raise ConfigError("--run_dir is missing, e.g. --run_dir=runs/plan")
    keep_compiled(_COMPILED.value)
    measure(SavedRun(_RUN_DIR.value, _MESH.value and parse_mesh(_MESH.value)))


def measure(saved: SavedRun) -> None:
    """Measures a run's team at a step. Prints a table, a sentence for each comparison, and the alarms."""
    experiment = saved.experiment
    step = saved.step_of(_STEP.value)
    instances = held_out(experiment, _SPLIT.value, _INSTANCES.value)
    check_enough(instances)
    sampling = experiment.evaluated(_TEMPERATURE.value)
    title = f"{_SPLIT.value} after step {step}"
    with (
        opened(experiment.team.partners, saved.folder.partners, "evaluated", experiment.seed) as partners,
        contextlib.closing(saved.learner.engine()) as engine,
        experiment.running() as runner,
    ):
        gate.push(engine, saved.weights(step), step)
        score = scored(
            experiment,
            engine,
            runner,
            partners,
            title,
            sampling=sampling,
            step=step,
            split=_SPLIT.value,
            instances=instances,
        )
        print(f"{title}: {score}; {drawn_by(sampling)}\n", flush=True)
        found = compared(
            experiment,
            engine,
            runner,
            partners,
            score.episodes,
            f"influence after step {step}",
            temperature=_TEMPERATURE.value,
        )
    metrics = figures(found)
    verdicts = alarms(metrics, experiment.task.workflow.roles).values() or ["no alarm rings"]
    print("\n".join((*table(found), "", *map(str, found), "", *verdicts)))
    settings: dict[str, object] = {"step": step, "split": _SPLIT.value, "instances": instances}
    settings["temperature"] = _TEMPERATURE.value
    append_json_line(saved.folder.influence, settings | score.record() | metrics)


if __name__ == "__main__":
    run_main(main)
