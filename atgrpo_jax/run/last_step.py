"""Ends a run at a step that it has made already, but not as its last one: it makes that step again.

No test was played after such a step. It is made again from the checkpoint before it, to the same weights, and
the test after it. What was saved of it is put aside, so that nothing is lost if that goes wrong.
"""

from atgrpo_jax.arrays import trees
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import read_json_lines
from atgrpo_jax.common.progress import say
from atgrpo_jax.run.checkpoint import Checkpoints, steps_in
from atgrpo_jax.run.ending import Ending
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder


def is_missed(experiment: Experiment, folder: RunFolder, done: int) -> bool:
    """Returns whether ``done`` is the last step now, and was made as one that others follow."""
    records = folder.read_metrics()[: done + 1]
    last = Ending(experiment.steps, experiment.tokens, records).last
    return 0 < done == last and len(records) > done and "test/success" not in records[done]


def step_before(experiment: Experiment, folder: RunFolder, done: int) -> int | None:
    """Returns the checkpoint from which step ``done`` can be made again; None if there is none.

    It is whole, at most ``Experiment.checkpoint_every`` steps are made again, and neither settings nor hosts
    have changed in between.
    """
    step = max((step for step in steps_in(folder.checkpoints) if step < done), default=None)
    if step is None or step < done - experiment.checkpoint_every:
        return None
    changes = [*read_json_lines(folder.changes), *read_json_lines(folder.shapes)]
    if any(line["after_step"] > step for line in changes):
        return None
    try:
        trees.about_tree(folder.checkpoints / str(step))
    except RunError:
        return None
    return step


def newest(experiment: Experiment, folder: RunFolder, checkpoints: Checkpoints) -> int | None:
    """Returns the step that a run goes on from, as ``Checkpoints.newest`` does; or one before its end."""
    done = checkpoints.newest()
    if done is None or not is_missed(experiment, folder, done):
        return done
    step = step_before(experiment, folder, done)
    if step is None:
        return done
    aside = checkpoints.put_aside(done, "not_last")
    say(
        f"step {done} is to be the last one now, so it is made again, from step {step} on, and then tested; "
        f"what was saved of it is {aside.name} now"
    )
    return checkpoints.newest()
