"""Rules of credit, by hand: what is compared with what, which reward, divided by what."""

import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from fakes import KEY, ORIGIN, candidate
from shared_trainer import experiment, honest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Episode, Group, Outcome, Reward
from atgrpo_jax.credit.groups import CreditConfig, GroupError, credit, remembered, with_signal
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import gin_folder, load
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.stages import Stages

PAGE = (Path(__file__).parents[1] / "docs" / "your-credit.md").read_text()


def spoke(role, *rewards, chosen=0, turn=0, seat=None, team=0.0, partner=False):
    """A group of a role: (what its candidates earned, the executed one)."""
    return dict(role=role, turn=turn, seat=seat), rewards, chosen, team, partner


def episode(*groups, instance=0, number=0, end="ended"):
    made = []
    for place, rewards, chosen, team, partner in groups:
        key = dataclasses.replace(KEY, instance=instance, episode=number, **place)
        origin = dataclasses.replace(ORIGIN, key=key, policy="" if partner else "shared")
        members = []
        for k, reward in enumerate(rewards):
            paid = None if reward is None else Reward.of(team, number=float(reward))
            outcome = Outcome.TOOL_CRASH if reward is None else Outcome.OK
            one = candidate(origin=origin, k=k, outcome=outcome)
            members.append(dataclasses.replace(one, reward=paid))
        made.append(Group(tuple(members), chosen))
    return Episode("train", instance, number, tuple(made), end == "solved", 1, end)


def given(episodes, rule, memory=None, alpha=1.0):
    """The advantages of all groups, None where nothing is trained; and metrics."""
    credited, metrics, _ = credit(episodes, alpha=alpha, rule=rule, memory=memory or {})
    assert all(item.advantages_K.dtype == np.float32 for item in credited)
    assert not any(item.advantages_K[~item.mask_K].any() for item in credited)
    rows = [zip(item.advantages_K.tolist(), item.mask_K, strict=True) for item in credited]
    return [[a if trained else None for a, trained in row] for row in rows], metrics


def counts(metrics):
    return tuple(metrics[f"groups/{name}"] for name in ("total", "signal", "zero_variance", "too_small"))


TWO = [  # two instances: roles a and b, K of 3 and 2
    episode(spoke("a", 0, 3, 6, chosen=2), spoke("b", 1, 5, chosen=1), end="solved"),
    episode(spoke("a", 4, 4, 1), spoke("b", 2, 2), instance=1),
]


def test_a_group_is_compared_with_its_siblings_and_those_are_without_the_candidate():
    """K = 3: -4.5 is 0 less the mean of 3 and 6; 3/2 of what it is to the mean of all."""
    mean, _ = given(TWO, CreditConfig("group", "mean"))
    assert mean == [[-3, 0, 3], [-2, 2], [1, 1, -2], [None, None]]
    others, metrics = given(TWO, CreditConfig("group", "mean", leave_one_out=True))
    assert others == [[-4.5, 0, 4.5], [-4, 4], [1.5, 1.5, -3], [None, None]]
    assert counts(metrics) == (4, 0.75, 0.25, 0)


def test_a_role_is_compared_with_all_that_it_earned_in_the_step():
    """a: 0, 3, 6, 4, 4, 1 of mean 3 and variance 4; b: 1, 5, 2, 2 of mean 2.5 and variance 2.25."""
    found, metrics = given(TWO, CreditConfig("role", "mean"))
    assert found == [[-3, 0, 3], [-1.5, 2.5], [1, 1, -2], [-0.5, -0.5]]
    assert counts(metrics) == (2, 1, 0, 0)
    std, _ = given(TWO, CreditConfig("role"))
    for row, divided, deviation in zip(found, std, (2, 1.5, 2, 1.5), strict=True):
        np.testing.assert_allclose(divided, np.array(row) / deviation, rtol=2e-6)
    others, _ = given(TWO, CreditConfig("role", "mean", leave_one_out=True))
    np.testing.assert_allclose(others[0], [-3.6, 0, 3.6])  # times 6 / 5
    np.testing.assert_allclose(others[1], [-2, 10 / 3], rtol=1e-6)  # times 4 / 3


def test_a_role_is_compared_in_its_instance_over_turns_and_seats():
    played = [
        episode(spoke("a", 0, 4, seat=0), spoke("a", 8, 4, seat=1, turn=1), spoke("b", 1, 3)),
        episode(spoke("a", 1, 1), spoke("b", 1), instance=1),
    ]
    found, metrics = given(played, CreditConfig("instance_role", "mean"))
    assert found == [[-4, 0], [4, 0], [-1, 1], [None, None], [None]]
    assert counts(metrics) == (4, 0.5, 0.25, 0.25)


THREE = [  # episodes of one instance; returns 4, 1 and 7, then one of another instance
    episode(spoke("a", 1), spoke("b", 3), end="solved"),
    episode(spoke("a", 1), end="turn_limit", number=1),
    episode(spoke("a", 2), spoke("b", 5), spoke("a", None, chosen=None), number=2),
    episode(spoke("a", 9), spoke("b", 9), end="engine_error", number=3),
    episode(spoke("a", 2), spoke("b", 2), instance=1),
]
FAILED = [None], [None]


def test_returns_are_compared_episode_by_episode_or_role_by_role():
    episodes, _ = given(THREE, CreditConfig("instance", "mean"))
    assert episodes == [[0], [0], [-3], [3], [3], [None], *FAILED, [None], [None]]
    assert episodes == given(THREE, CreditConfig("instance", "mean", "return"))[0]
    roles, metrics = given(THREE, CreditConfig("instance_role", "mean", "return"))  # b: 4 and 7
    assert roles == [[0], [-1.5], [-3], [3], [1.5], [None], *FAILED, [None], [None]]
    assert counts(metrics) == (4, 0.5, 0, 0.5)
    step, _ = given(THREE, CreditConfig("role", "mean", "return"))  # a: 4, 1, 7, 4; b: 4, 7, 4
    assert step == [[0], [-1], [-3], [3], [2], [None], *FAILED, [0], [-1]]


def test_outcomes_are_of_the_executed_and_by_their_rate():
    """One of three is solved: 2/3 and -1/3, and divided by the rate 2 and -1."""
    found, _ = given(THREE, CreditConfig("instance", "mean", "outcome"))
    np.testing.assert_allclose([found[0], found[1], found[2], found[4]], [[2 / 3]] * 2 + [[-1 / 3]] * 2)
    rate, metrics = given(THREE, CreditConfig("instance", "rate", "outcome"))
    assert rate == [[2], [2], [-1], [-1], [-1], [None], *FAILED, [None], [None]]
    assert counts(metrics) == (2, 0.5, 0, 0.5)
    tree, _ = given(TWO, CreditConfig("role", "mean", "outcome"))  # siblings led nowhere
    assert tree == [[None, None, 0.5], [None, 0.5], [-0.5, None, None], [-0.5, None]]


def test_the_rate_needs_successes():
    rule = CreditConfig("group", "rate")
    ones = [episode(spoke("a", 1, 0, 0, 0), spoke("b", 1, 1), spoke("a", 0, 0, turn=1))]
    assert given(ones, rule)[0] == [[3, -1, -1, -1], [None, None], [None, None]]
    with pytest.raises(GroupError, match=r'0/0/1/0/a: a reward is 0.5, and .*"rate" is for rewards th'):
        given([episode(spoke("b", 1, 0), spoke("a", 0, 0.5, turn=1))], rule)


def test_a_running_mean_is_from_before_the_step_and_moves_after_it():
    """a earned 3 on average, then 2; half of it stays: 2.5. b was silent first."""
    rule = CreditConfig("running", "mean", decay=0.5)
    first = [episode(spoke("a", 1, 5))]
    found, metrics = given(first, rule)  # nothing from before: its own mean
    assert found == [[-2, 2]] and metrics["credit/a"] == 3
    memory = credit(first, alpha=1.0, rule=rule)[2]
    assert memory == {"a": 3.0} == remembered(first, alpha=1.0, rule=rule, memory={})
    second = [episode(spoke("b", 7), spoke("a", 3, 1)), episode(spoke("a", None, 2, chosen=1), instance=1)]
    found, metrics = given(second, rule, memory)
    assert found == [[None], [0, -2], [None, -1]]
    assert counts(metrics) == (2, 0.5, 0, 0.5)
    assert credit(second, alpha=1.0, rule=rule, memory=memory)[2] == {"a": 2.5, "b": 7.0}
    silent = [episode(spoke("a", None, chosen=None))]
    assert credit(silent, alpha=1.0, rule=rule, memory=memory)[2] == memory
    alone, metrics = given([episode(spoke("a", 4))], rule, memory)
    assert alone == [[1]] and counts(metrics) == (1, 1, 0, 0)  # it needs no sibling
    assert credit(first, alpha=1.0, rule=CreditConfig(), memory=memory)[2] == {}


RULES = [
    CreditConfig(),
    CreditConfig("group", "mean", leave_one_out=True),
    CreditConfig("role"),
    CreditConfig("instance_role", "mean"),
    CreditConfig("running", "mean"),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_shift_of_all_rewards_changes_nothing_and_rounding_is_no_signal(rule):
    shifted = []
    for one in TWO:
        groups = [spoke(g.origin.key.role, *(c.reward.local + 16 for c in g.candidates)) for g in one.groups]
        shifted.append(episode(*groups, instance=one.instance, end=one.end))
    assert given(shifted, rule)[0] == given(TWO, rule)[0]
    rounded = [episode(spoke("a", 0.1 + 0.2, 0.3, 0.3), spoke("b", 1e6 * (0.1 + 0.2), 3e5))]
    found, metrics = given(rounded, rule, {"a": 0.3, "b": 3e5})
    assert found == [[None] * 3, [None] * 2] and counts(metrics) == (2, 0, 1, 0)


@pytest.mark.parametrize("rule", [*RULES, CreditConfig("role", "mean", "return")], ids=repr)
def test_partners_are_in_no_set_and_no_metric(rule):
    def mine(*more):
        return [episode(spoke("a", 1, 3), *more), episode(spoke("a", 2, 8), instance=1)]

    alone, metrics = given(mine(), rule)
    beside, counted = given(mine(spoke("p", 7, partner=True)), rule)
    assert [alone[0], [None], alone[1]] == beside and metrics == counted


def test_each_role_has_its_own_alpha():
    played = [episode(spoke("a", 1, team=2.0), spoke("b", 1, team=3.0)), episode(spoke("a", 1), instance=1)]
    alpha = {"a": 2.0, "b": 0.5}
    assert given(played, CreditConfig("role", "mean"), alpha=alpha)[0][::2] == [[2], [-2]]
    found, _ = given(played, CreditConfig("role", "mean", "return"), alpha=alpha)  # 7.5 and 1
    assert found == [[3.25], [None], [-3.25]]


def test_what_does_not_go_together_is_refused():
    for arguments, says in (
        (("group", "std", "outcome"), "CreditConfig.reward = 'outcome': is of executed candidates, and sib"),
        (("running",), "CreditConfig.normalise = 'std': a running mean is one number from before"),
        (("running", "mean", "mixed", True), "CreditConfig.leave_one_out = True: a running mean holds no"),
        (("group", "std", "mixed", False, 1.0), r"CreditConfig.decay = 1.0: must be in \[0, 1\)"),
        (("agent",), "CreditConfig.baseline = 'agent': expected one of 'group', 'instance', 'instance_role'"),
    ):
        with pytest.raises(ValueError, match=says):
            CreditConfig(*arguments)


@pytest.mark.parametrize(
    ("rule", "tree", "trajectories"),
    [
        (CreditConfig(), True, False),
        (CreditConfig("instance"), False, True),
        (CreditConfig("instance_role"), True, True),
        (CreditConfig("instance_role", reward="outcome"), False, True),
        (CreditConfig("role", reward="return"), False, True),
        (CreditConfig("role"), True, True),
        (CreditConfig("running", "mean"), True, True),
    ],
    ids=repr,
)
def test_a_rule_fits_a_mode_or_is_refused(rule, tree, trajectories):
    assert (rule.fits(True, False), rule.fits(False, False)) == (tree, trajectories)
    of_step = rule.baseline in ("role", "running")
    assert (rule.fits(True, True), rule.fits(False, True)) == (
        tree and not of_step,
        trajectories and not of_step,
    )
    rollout = RolloutConfig(instances=2, candidates=3, max_tokens=4, mode="trajectories" if tree else "tree")
    if not (tree and trajectories):
        with pytest.raises(
            ValueError, match="is not for RolloutConfig.mode = '(tree|trajectories)', least_sig"
        ):
            experiment(credit=rule, rollout=rollout)


def test_rounds_count_the_sets_whose_rewards_differ():
    def found(*arguments):
        return with_signal(THREE, alpha=1.0, rule=CreditConfig(*arguments), updates=lambda group: True)

    rule = CreditConfig("group", leave_one_out=True)
    assert with_signal(TWO, alpha=1.0, rule=rule, updates=lambda group: True) == 3
    assert (found("instance"), found("instance_role", "mean", "return")) == (1, 2)
    by_b = with_signal(TWO, alpha=1.0, rule=rule, updates=lambda group: group.origin.key.role == "b")
    assert by_b == 1


def test_runs_from_before_are_known_by_the_same_text():
    """The identity of a run hashes it."""
    assert repr(CreditConfig("instance", "mean")) == "CreditConfig(baseline='instance', normalise='mean')"
    told = repr(CreditConfig("role", "mean", "outcome", True, 0.5))
    assert told.endswith("normalise='mean', reward='outcome', leave_one_out=True, decay=0.5)")


# Runs with a running mean


def running(steps=4):
    """Three texts of each step's own, so that means move. Alpha 0.7 makes no binary fractions."""
    return experiment(
        honest(texts=lambda step: (f"{step}1", f"{step + 2}{step}", "57")),
        credit=CreditConfig("running", "mean", decay=0.7),
        steps=steps, checkpoint_every=2, keep_checkpoints=9,
        team=Team("full", roles={"b": {"alpha": 0.7}}),
    )  # fmt: skip


def trained(path, steps):
    """Goes on to step ``steps`` from what is there, of 4. Returns the memory after each step."""
    with Stages(running(), RunFolder(path)) as stages:
        team = stages.begin()
        memories = {stages.done: team.memory}
        for step in range(stages.done + 1, steps + 1):
            team, _ = one_step(stages, team, step)
            memories[step] = team.memory
    return memories


def left(path):
    """What a run has written, without what depends on the machine."""
    folder = RunFolder(path)
    records = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    about = [json.loads((folder.checkpoints / f"{step}" / "saved.json").read_text()) for step in (0, 2, 4)]
    episodes = [folder.episodes_of(step).read_bytes() for step in range(1, 5)]
    return records, episodes, [one["about"] for one in about], [one["leaves"] for one in about]


def test_a_run_with_a_running_mean_goes_on_to_the_same_bytes(tmp_path):
    """It ends after step 3, which is not saved, so step 3 is made again from the mean of step 2."""
    whole = trained(tmp_path / "whole", 4)
    assert whole[0] == {} and all(whole[step].keys() == {"a", "b"} for step in (1, 2, 3, 4))
    # Step 1: rewards 2, 4, 12 of a. Step 2: 3, 6, 12.
    assert whole[1]["a"] == 6 and whole[2]["a"] == 0.7 * 6 + (1 - 0.7) * 7
    assert len({tuple(memory.values()) for memory in whole.values()}) == 5
    trained(tmp_path / "ended", 3)
    again = trained(tmp_path / "ended", 4)
    assert again == {step: whole[step] for step in (2, 3, 4)}
    assert left(tmp_path / "ended") == left(tmp_path / "whole")
    about = left(tmp_path / "whole")[2]
    assert "memory" not in about[0] and about[2]["memory"] == whole[4]
    assert left(tmp_path / "whole")[0][3]["credit/b"] == whole[3]["b"]


def test_advantages_of_a_run_are_to_the_mean_of_the_steps_before(tmp_path):
    whole = trained(tmp_path, 4)
    for step in (2, 3, 4):
        for one in RunFolder(tmp_path).read_episodes(step):
            for group in one["groups"]:
                mean = whole[step - 1][group["role"]]
                found = [c["advantage"] for c in group["candidates"]]
                np.testing.assert_array_equal(
                    np.float32(found), np.float32([c["mixed"] - mean for c in group["candidates"]])
                )


def test_a_replay_remembers_what_the_run_did(tmp_path):
    whole = trained(tmp_path, 4)
    with Stages(running(), RunFolder(tmp_path)) as stages:
        experiment, learner = stages.experiment, stages.learner
    checkpoints = Checkpoints(RunFolder(tmp_path).checkpoints, experiment.identity(), read_only=True)
    saved = types.SimpleNamespace(
        experiment=experiment, learner=learner, folder=RunFolder(tmp_path), at=lambda step: saved,
        steps=lambda: [0, 2], team=lambda step: learner.restore(checkpoints, step),
    )  # fmt: skip
    teams = Teams(saved)
    assert teams.after(1).memory == whole[1] and teams.after(3).memory == whole[3]


# The page


def documented(name):
    """The class that docs/your-credit.md shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (source,) = (block for block in blocks if f"class {name}" in block)
    module = types.ModuleType(name.lower())
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(source, module.__dict__)
    del sys.modules[module.__name__]
    return getattr(module, name), source


def test_the_pages_table_is_what_its_gin_files_say():
    _, *rows = re.findall(r"^\| [^|]+ \| (\w+) \| (\w+) \| (\w+) \| (\w+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 9
    for *fields, file in rows:
        files = ["smoke.gin"] if file == "the default" else ["smoke.gin", file]
        x = load(files[1:] if file.startswith("compare") else files)
        rule = x.credit
        assert [rule.baseline, rule.normalise, rule.reward, str(rule.leave_one_out)] == fields


FILES = sorted(path.name for path in (gin_folder() / "credit").iterdir())


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_a_rule_trains_adapters(file, tmp_path):
    """Candidate or episode 2 of an instance solves it at once. By every rule that is the best there is."""
    x = load(["smoke.gin", f"credit/{file}"])
    rollout = dataclasses.replace(x.rollout, instances=2, candidates=3, max_tokens=4)
    ours = experiment(
        honest(texts=lambda step: ("30", "12", "9")),
        credit=x.credit, rollout=rollout, team=Team("lora"), max_logprob_gap=10.0,
    )  # fmt: skip
    with Stages(ours, RunFolder(tmp_path)) as stages:
        team, record = one_step(stages, stages.begin(), 1)
        groups = [g for e in stages.folder.read_episodes(1) for g in e["groups"] if g["role"] == "a"]
    assert record["policy/a/updates"] == 1 and record["groups/signal"] > 0 and team.version == 1
    best = max(c["advantage"] for g in groups for c in g["candidates"])
    solved = [c for g in groups for c in g["candidates"] if c["text"] == "9"]
    assert best > 0 and [(c["advantage"], c["trained"]) for c in solved] == [(best, True)] * 2


def test_the_pages_formula_counts_who_is_beaten():
    """7 beats 3 and 3, which beat each other by rounding alone; -1 is beaten by all three."""
    ranks = documented("Ranks")[0](most=3.0)
    played = [episode(spoke("a", 0.1 + 0.2, 7, 0.3, -1), spoke("b", 2, None, 2), spoke("a", 5, turn=1))]
    found, metrics = given(played, ranks)
    assert found == [[0, 3, 0, -3], [None] * 3, [None]]
    assert counts(metrics) == (3, 1 / 3, 1 / 3, 1 / 3)


def test_the_pages_rewards_are_those_from_a_turn_on():
    """Returns from the first turn 6 and 2, from the second 5 and 1; a partner earns nothing of it."""
    rule = documented("FromHere")[0](normalise="mean")
    partner = spoke("p", 50, partner=True)
    played = [
        episode(spoke("a", 1), partner, spoke("a", 9, 5, chosen=1, turn=1)),
        episode(spoke("a", 1), spoke("a", 1, turn=1), number=1),
        episode(spoke("a", 1), end="engine_error", number=2),
    ]
    assert given(played, rule)[0] == [[2], [None], [None, 2], [-2], [-2], [None]]
    assert not rule.fits(True, False) and rule.fits(False, False)


def test_a_rule_of_ones_own_is_taken_from_a_file_and_trains(tmp_path, monkeypatch):
    _, source = documented("Ranks")
    (tmp_path / "ranks.py").write_text(source)
    (gin,) = re.findall(r"^```\n(import ranks.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "ranks.gin").write_text(gin)
    monkeypatch.syspath_prepend(str(tmp_path))
    rule = load(str(tmp_path / "ranks.gin")).credit
    assert (type(rule).__name__, rule.baseline, rule.most) == ("Ranks", "role", 2.0)
    assert isinstance(rule, CreditConfig)
    with Stages(experiment(honest(), credit=rule), RunFolder(tmp_path / "run")) as stages:
        _, record = one_step(stages, stages.begin(), 1)
        (group, *_) = (g for e in stages.folder.read_episodes(1) for g in e["groups"])
    # Each role earns 3, 3 and 6 in both instances: 6 beats four of the five others.
    assert [c["advantage"] for c in group["candidates"]] == pytest.approx([-0.8, -0.8, 1.6])
    assert record["groups/total"] == 2 and record["policy/shared/updates"] == 1


@dataclasses.dataclass(frozen=True)
class Broken(CreditConfig):
    what: str = ""

    def rewards(self, episode, alpha):
        rewards = super().rewards(episode, alpha)
        changed = {"short": rewards[:-1], "nan": [[float("nan")] * len(row) for row in rewards]}
        return changed.get(self.what, rewards)

    def advantages(self, compared):
        found = super().advantages(compared)
        return {"flat": found[0], "inf": found / 0.0}.get(self.what, found)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("short", r"Broken.rewards returned lists of \[3\] rewards for groups of \[3, 2\] candidates; it"),
        ("nan", "1/train/0/0/0/0/a: candidate 0 has the reward nan; must be finite"),
        ("flat", r"Broken.advantages returned the shape \(3,\) for rewards of the shape \(4, 3\); these"),
        ("inf", r"0/0/0/0/a: the advantages \[-inf, nan, inf\] of the rewards \[0.0, 3.0, 6.0\] are not all"),
    ],
)  # fmt: skip
def test_a_rule_of_ones_own_that_is_wrong_is_one_line(what, says):
    with pytest.raises(RunError, match=says):
        given(TWO, Broken("group", "mean", what=what))


def test_all_of_an_episode_is_one_number_where_episodes_are_compared():
    @dataclasses.dataclass(frozen=True)
    class Own(CreditConfig):
        def rewards(self, episode, alpha):
            return [[float(g.candidates[0].reward.local)] for g in episode.groups]

    with pytest.raises(GroupError, match="0/b: candidate 0 earned 3.0, and another one of its episode 1.0"):
        given(THREE[:1], Own("instance"))
