"""The last step of a run: by its number, or by the tokens that were drawn, by hand."""

import json
import shutil

import pytest
from shared_trainer import experiment, honest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.ending import Ending
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step, train
from atgrpo_jax.run.saved import claim
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.viewing.folders import outline, state

A_STEP = 32  # tokens: two instances, two roles, three candidates of 3, 3 and 2 tokens


def records(*tokens):
    return [{}, *({"rollout/tokens": float(number)} for number in tokens)]


@pytest.mark.parametrize(("tokens", "last"), [(0, 9), (1, 1), (10, 1), (11, 2), (30, 2), (31, 9)])
def test_the_last_step_is_the_first_by_which_the_tokens_were_drawn(tokens, last):
    assert Ending(9, tokens, records(10, 20)).last == last


def test_steps_are_the_most_and_what_comes_after_the_last_step_does_not_count():
    assert Ending(1, 30, records(10)).last == 1
    assert Ending(9, 10, records(10, 20)).last == 1
    assert Ending(9, 0).shown() == {} and Ending(9, 0).known == 9
    assert (Ending(9, 11, records(10)).known, Ending(9, 10, records(10)).known) == (None, 1)
    assert Ending(9, 30, [{}, {"rollout/tokens": 10.0, "counterfactual/tokens": 20.0}]).last == 1
    assert Ending(9, 40_000, records(3_000)).shown() == {"of all tokens": "3,000/40,000"}


def without_seconds(folder):
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]


def test_a_run_ends_by_its_tokens_also_if_it_was_killed_before_it_saved_that(tmp_path):
    """The test, the last checkpoint and the summary are those of the last step."""
    x = experiment(honest(), steps=9, tokens=2 * A_STEP + 1, checkpoint_every=1, keep_checkpoints=3)
    folder = RunFolder(tmp_path)
    summary = train(x, folder)
    records = folder.read_metrics()
    assert [record["rollout/tokens"] for record in records[1:]] == [A_STEP] * 3
    assert ["test/success" in record for record in records] == [True, False, False, True]
    assert summary["steps"] == 3 and summary["after"]["success"] == records[3]["test/success"]
    whole = without_seconds(folder)
    shutil.rmtree(folder.checkpoints / "3")
    with Stages(x, folder) as stages:
        team = stages.begin()
        assert (stages.done, stages.ending.known) == (2, None)
        one_step(stages, team, 3)
        assert stages.done == stages.ending.last == 3
    assert without_seconds(folder) == whole and (folder.checkpoints / "3").is_dir()


def test_more_tokens_go_on_and_fewer_than_were_drawn_are_refused(tmp_path):
    given = ["experiment.Experiment.steps = 9", "experiment.Experiment.tokens = {}"]

    def asked(tokens):
        return gin_config.load("smoke.gin", [text.format(tokens) for text in given])

    assert asked(10).identity() == asked(0).identity()
    folder = RunFolder(tmp_path)
    with claim(folder, asked(25)):
        pass
    made = records(10, 20)
    made[2] = made[2] | {"test/success": 0.5}
    folder.metrics.write_text("".join(json.dumps({"step": i} | r) + "\n" for i, r in enumerate(made)))
    assert outline(folder).ended and state(outline(folder)) == "ended"
    (folder.checkpoints / "2").mkdir(parents=True)
    with claim(folder, asked(31)):
        assert state(outline(folder)) == "running" and not outline(folder).ended
    with claim(folder, asked(11)):
        pass
    with (
        pytest.raises(RunError, match="2 steps already, and 1 of them drew Experiment.tokens = 10; ask"),
        claim(folder, asked(10)),
    ):
        pass


def test_runs_from_before_the_setting_are_of_the_same_kind(tmp_path):
    folders = RunFolder(tmp_path / "old"), RunFolder(tmp_path / "new"), RunFolder(tmp_path / "by_tokens")
    for folder, tokens in zip(folders, (0, 0, 9), strict=True):
        with claim(folder, gin_config.load("smoke.gin", [f"experiment.Experiment.tokens = {tokens}"])):
            pass
    folders[0].config.write_text(
        folders[0].config.read_text().replace("experiment.Experiment.tokens = 0\n", "")
    )
    old, new, by_tokens = (outline(folder).kind for folder in folders)
    assert old == new != by_tokens
