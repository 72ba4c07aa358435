"""What a person gets at the end of a run: what to look at next."""

import asyncio

import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.cli import typed
from atgrpo_jax.run import episodes
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.report import failures, summary_text
from atgrpo_jax.viewing.text import node

SOLVED, TOO_LARGE, TOO_SMALL = ["10"], ["9"], ["1"]


def write(folder, step, texts):
    """A test after ``step``, in which all who speak say the text of their instance."""
    played = []
    for instance, said in enumerate(texts):
        made, _ = player({(turn, role): said * 3 for turn in range(2) for role in "ab"}, Sum())
        played.append(asyncio.run(made.play(step, "test", instance)))
    content = episodes.written(step, played, (), CharTokenizer(), {"a": 1.0, "b": 1.0})
    folder.write_episodes(step, content, "test")


def test_failures_are_one_that_was_solved_before_and_one_of_each_end(tmp_path):
    """The sum must be 10: 9 and 9 are more, and 1 four times is less."""
    folder = RunFolder(tmp_path)
    assert failures(folder, 3) == {}
    write(folder, 0, [TOO_SMALL, TOO_SMALL, TOO_SMALL, SOLVED, SOLVED, SOLVED])
    write(folder, 3, [SOLVED, TOO_LARGE, TOO_LARGE, TOO_SMALL, SOLVED, TOO_SMALL])
    assert list(failures(folder, 3).items()) == [
        ("3/test/3", "solved before training, fails now"), ("3/test/1", "failed: ended"),
    ]  # fmt: skip
    write(folder, 3, [TOO_SMALL, TOO_LARGE, TOO_LARGE, SOLVED, SOLVED, SOLVED])
    found = failures(folder, 3)
    assert found == {"3/test/0": "failed: turn_limit", "3/test/1": "failed: ended"}
    for name in found:  # as ``report --text`` takes it
        assert node(folder, name).startswith("test, step 3, instance")


@pytest.mark.parametrize("tensorboard", [True, False])
@pytest.mark.parametrize("found", [{}, {"no_signal": "90% gave no signal", "copy/mover": "mover repeats"}])
def test_the_summary_says_what_to_look_at(tensorboard, found):
    score = {"success": 0.5, "low": 0.4, "high": 0.6, "turns": 2.0}
    summary = {
        "run_dir": "runs/a", "steps": 3, "instances": 20, "before": score, "after": score,
        "train_seconds": 70.0, "findings": found,
        "failures": {"3/test/5": "solved before training, fails now"}, "tensorboard": tensorboard,
    }  # fmt: skip
    lines = summary_text(summary).splitlines()
    assert lines[2] == "  after   50.0% (95 % interval 40.0% to 60.0%), 3 steps, 1 min 10 s of training"
    head = "What does not look right (docs/ledger.md, docs/influence.md):"
    if found:
        at = lines.index(head)
        assert lines[at : at + 4] == [head, "  90% gave no signal", "  mover repeats", "Next:"]
    assert (head in lines) == bool(found)
    after = lines[lines.index("Next:") + 1 :]
    page = f"  {typed('atgrpo_jax.report')} --run_dir=runs/a --text="
    assert after[1] == f"{page}3/test/5    # solved before training, fails now"
    assert (f"  {typed('tensorboard.main')} --logdir=runs/a/tensorboard" in after) == tensorboard
