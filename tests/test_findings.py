"""What is wrong with a run: each rule rings, and is silent just below its threshold."""

import pytest

from atgrpo_jax.run.findings import LEAST, findings

SOUND = {
    "rollout/success": 0.6, "groups/total": 40.0, "groups/signal": 0.6, "groups/zero_variance": 0.4,
    "groups/too_small": 0.0, "groups/identical": 0.1,
    "role/mover/groups": 20.0, "role/mover/signal": 0.5, "role/mover/advantage_mass": 9.0,
    "role/mover/gradient_share": 0.4, "role/mover/repeats/mover": 0.2, "role/mover/repeats/scout": 0.3,
    "role/scout/groups": 20.0, "role/scout/signal": 0.7, "role/scout/advantage_mass": 9.0,
    "role/scout/gradient_share": 0.6, "role/scout/repeats/scout": 0.2,
}  # fmt: skip


def run(steps=30, **changes):
    """The records of a run: a first one without a step, and then steps that are all alike."""
    record = SOUND | {name.replace("__", "/"): value for name, value in changes.items()}
    kept = {name: value for name, value in record.items() if value is not None}
    return [{"step": 0, "test/success": 0.5}, *({"step": s} | kept for s in range(1, steps + 1))]


def test_a_sound_run_has_no_findings():
    assert findings(run()) == {} and findings([]) == {} and findings(run(steps=0)) == {}


@pytest.mark.parametrize(
    ("changes", "silent", "name", "text"),
    [
        (
            {"groups__signal": 0.3, "groups__identical": 0.0}, {"groups__signal": 0.34}, "no_signal",
            "70% of the groups of the last 20 steps gave no signal, though in most of these the "
            "candidates are different texts: raise RolloutConfig.candidates or temperature, or draw harder "
            "instances",
        ),
        (
            {"groups__signal": 0.2, "groups__identical": 0.4, "rollout__success": 0.4},
            {"groups__signal": 0.34, "groups__identical": 0.4}, "no_signal",
            "80% of the groups of the last 20 steps gave no signal, and in 40% of all groups the candidates "
            "were one text: raise RolloutConfig.temperature, or draw easier instances",
        ),
        (
            {"groups__signal": 0.2, "groups__identical": None}, {"groups__identical": None}, "no_signal",
            "80% of the groups of the last 20 steps gave no signal: raise RolloutConfig.candidates or "
            "temperature, or draw harder instances",
        ),
        (
            {"groups__signal": 0.1, "groups__too_small": 0.5}, {"groups__too_small": 0.5}, "no_signal",
            "90% of the groups of the last 20 steps gave no signal: too few of their candidates have a "
            "reward; look at outcome/ and end/",
        ),
        (
            {"role__mover__signal": 0.04}, {"role__mover__signal": 0.06}, "no_signal/mover",
            "4% of the groups of mover gave a signal, so it hardly learns: see on the page what its "
            "candidates say and earn",
        ),
        (
            {"role__scout__gradient_share": 0.96}, {"role__scout__gradient_share": 0.94}, "capture/scout",
            "96% of the gradient of the policy that scout shares is about its words: the other roles need a "
            "policy of their own (Team.sharing) or more candidates (Team.roles)",
        ),
        (
            {"role__mover__repeats__scout": 0.67}, {"role__mover__repeats__scout": 0.66}, "copy/mover",
            "mover repeats to the letter what scout has just said in 67% of its answers: compare with a team "
            "without scout, or pay mover for what it changes",
        ),
        (
            {"role__mover__task__repeats": 0.67}, {"role__mover__task__repeats": 0.66}, "copy/mover",
            "mover does just what it was shown in 67% of its answers, as its task counts: compare with a "
            "team of mover alone, or pay it for what it changes",
        ),
        (
            {"role__mover__repeats__mover": 0.96}, {"role__mover__repeats__mover": 0.94}, "repeat/mover",
            "mover says in 96% of its later answers what it said the last time: play fewer turns "
            "(Workflow.turns), or let its prompt show what became of that",
        ),
    ],
)  # fmt: skip
def test_a_rule_rings_at_its_threshold_and_not_below(changes, silent, name, text):
    assert findings(run(**changes)) == {name: text}
    assert findings(run(**silent)) == {}


def test_a_role_that_nobody_updates_may_give_no_signal():
    assert findings(run(role__mover__signal=0.0, role__mover__advantage_mass=None)) == {}


def test_the_last_steps_count_and_few_of_them_say_nothing():
    bad = {"groups__signal": 0.1}
    early = run(steps=30, **bad)[:11] + run(steps=30)[11:]
    late = run(steps=30)[:11] + run(steps=30, **bad)[11:]
    assert findings(early) == {} and list(findings(late)) == ["no_signal"]
    assert findings(run(steps=LEAST - 1, **bad)) == {}
    assert "of the last 10 steps" in findings(run(steps=LEAST, **bad))["no_signal"]
    # A role that hardly ever spoke after another one: no habit.
    copied = run(role__mover__repeats__scout=1.0)
    for record in copied[1 : -LEAST + 1]:
        del record["role/mover/repeats/scout"]
    assert findings(copied) == {}


def test_large_steps_count_more():
    """80 groups of 10 % and 20 of 90 %: 74 % are without a signal, though the mean of shares is 50 %."""
    records = run(steps=20)
    for record in records[1:]:
        large = record["step"] % 2
        record |= {"groups/total": 80.0 if large else 20.0, "groups/signal": 0.1 if large else 0.9}
    assert findings(records)["no_signal"].startswith("74%")


def test_the_most_important_come_first_and_three_are_said():
    wrong = {
        "groups__signal": 0.1, "role__mover__signal": 0.0, "role__scout__gradient_share": 1.0,
        "role__mover__repeats__scout": 1.0, "role__scout__repeats__scout": 1.0,
    }  # fmt: skip
    assert list(findings(run(**wrong))) == ["no_signal", "no_signal/mover", "capture/scout"]
    del wrong["role__mover__signal"], wrong["groups__signal"]
    assert list(findings(run(**wrong))) == ["capture/scout", "copy/mover", "repeat/scout"]


def test_names_are_said_as_they_are():
    records = run(steps=20)
    for record in records:
        record["role/a%2Fb/repeats/50%25"] = 1.0
    assert findings(records)["copy/a/b"].startswith("a/b repeats to the letter what 50% has just said")
