"""What a run did is done again: draws to the same bytes, with a change, and what a step taught."""

import asyncio
import dataclasses
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, Sum
from shared_hosts import LENGTHS, ended, process, until
from shared_learner import PARITY, learner, own_logprobs, packed
from shared_learner import items as made_items
from shared_rollout import player

from atgrpo_jax.arrays.trees import remove_tree
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import write_atomically
from atgrpo_jax.common.types import Candidate, Group, GroupKey, Origin, Outcome, Reward, Sample, Sampling
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.replaying.again import SAME, Again, Change, _newest_trained, _recorded, fitting
from atgrpo_jax.replaying.chosen import at_random
from atgrpo_jax.replaying.differing import _candidate, findings, first_that_differs
from atgrpo_jax.replaying.kept import recorded_replay, write_replay
from atgrpo_jax.replaying.taught import logprobs, taught
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.run import episodes
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.run.recorded import credited_of, episode_of
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.update.learner import UpdateInputs
from atgrpo_jax.viewing.page import tree, write_page

STEPS = 5
BINDINGS = (
    f"experiment.Experiment.steps = {STEPS}",
    "experiment.Experiment.checkpoint_every = 2",
    "rollout.RolloutConfig.instances = 4",
    "evaluation.EvaluationConfig.instances = 3",
    "evaluation.EvaluationConfig.validation_instances = 2",
    "evaluation.EvaluationConfig.every = 3",
    "warm_start.WarmStartConfig.steps = 2",
)


def arguments(folder, *bindings):
    own = (*BINDINGS, f"warm_start.WarmStartConfig.cache_dir = '{folder}/cache'", *bindings)
    files = ["--gin_file=smoke.gin", f"--gin_file={LENGTHS}"]
    return [*files, *(f"--gin_param={one}" for one in own), f"--run_dir={folder}/run"]


# All processes have as many CPU devices as the tests' own: products have other bits with another number.
DEVICES = {"JAX_NUM_CPU_DEVICES": "8"}


def steps_done(folder):
    metrics = folder / "run" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else -1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run that was killed after its third step, and resumed. It keeps 0, 4 and 5."""
    folder = tmp_path_factory.mktemp("replay")
    first = process(folder / "first.txt", *arguments(folder), env=DEVICES)
    until(lambda: steps_done(folder) >= 3 or first.poll() is not None, 400)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert steps_done(folder) >= 3, (folder / "first.txt").read_text()
    assert ended([process(folder / "second.txt", *arguments(folder), env=DEVICES)]) == [0]
    return folder / "run"


@pytest.fixture(scope="module")
def again(folder):
    with Again(SavedRun(str(folder))) as made:
        yield made


def group_at(folder, node):
    run = RunFolder(folder)
    (record,) = [r for r in run.read_episodes(node.step, node.split) if r["instance"] == node.instance]
    (group,) = filter(node.holds, record["groups"])
    return record, group


def compared(again, node, change=SAME):
    replayed = again.play(node, change)
    return replayed, findings(node, replayed.recorded, replayed.episode, again._saved.experiment.tokenizer)


def replay(*words):
    """Runs the command, which finds the task in lengths.py."""
    path = f"{LENGTHS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "atgrpo_jax.replay", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | DEVICES | {"PYTHONPATH": path}
    )


def spoken(folder, step, *policies):
    """Writes a step's episodes, of a group each, that these policies drew; "" is a partner."""
    group = {"turn": 0, "stage": 0, "role": "a", "seat": None}
    lines = [
        {"schema": 3, "instance": i, "episode": 0, "groups": [group | {"policy": policy}]}
        for i, policy in enumerate(policies)
    ]
    folder.write_episodes(step, gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def test_groups_that_are_taken_at_random_are_policies(tmp_path):
    folder = RunFolder(tmp_path)
    spoken(folder, 1, "", "")
    spoken(folder, 2, "", "own", "")
    files = [(1, "train"), (2, "train")]
    taken = at_random(folder, files, 20, 0)
    assert set(taken) == {Node(2, "train", 1, 0, 0, 0, "a")} and len(taken) == 20
    assert at_random(folder, [], 0, 0) == []
    with pytest.raises(RunError, match="in all episodes that it keeps partners alone speak"):
        at_random(folder, files[:1], 1, 0)
    with pytest.raises(RunError, match="keeps no episodes yet"):
        at_random(folder, [], 1, 0)


def test_a_node_to_take_instead_is_a_policys(tmp_path):
    folder = RunFolder(tmp_path)
    spoken(folder, 1, "", "own")
    assert _newest_trained(folder) == "take a node of a train step, e.g. --node=1/train/1/0/0/0/a"
    spoken(folder, 2, "")
    assert _newest_trained(folder) == "take a node of a train step; this run keeps none yet"


def words_of(found):
    return [finding.words for finding in found]


@pytest.mark.slow
def test_twenty_random_groups_of_a_run_that_was_killed_are_drawn_to_the_same_bytes(folder):
    assert SavedRun(str(folder)).steps() == [0, 4, 5]
    seed = random.randrange(1000)
    ran = replay(f"--run_dir={folder}", "--random=20", f"--seed={seed}")
    assert ran.returncode == 0, (seed, ran.stdout, ran.stderr)
    *lines, last = ran.stdout.splitlines()
    assert last == "all 20 nodes: same bytes"
    nodes = [Node.parse(line) for line in lines if not line.startswith(" ")]
    assert len(nodes) == 20 and len(set(nodes)) > 10
    assert sum(line.endswith("same bytes") for line in lines) >= 20


@pytest.mark.slow
def test_an_altered_checkpoint_is_told_by_the_first_token_that_differs(folder, again):
    saved = SavedRun(str(folder))
    team = saved.team(4)
    embedding = team.policies["shared"].params["embedding"]
    params = team.policies["shared"].params | {"embedding": embedding.at[0].add(0.5)}
    altered = {"shared": team.policies["shared"]._replace(params=params)}
    kept = RunFolder(folder).checkpoints
    aside = kept.rename(kept.with_name("checkpoints_aside"))
    try:
        kept.mkdir()
        (kept / "0").symlink_to(aside / "0")
        Checkpoints(kept, saved.experiment.identity()).save(4, altered, team.base, team.version)
        node = Node(5, "train", 16, 0, 0, 0, "scout")
        with Again(SavedRun(str(folder))) as other:
            replayed, found = compared(other, node)
    finally:
        remove_tree(kept / "4")
        (kept / "0").unlink()
        kept.rmdir()
        aside.rename(kept)
    words = first_that_differs(found)
    assert words is not None
    told = re.match(r"turn 0, stage 0, scout: (\d) of 4 candidates the same; candidate (\d): (.*)", words)
    assert told, words
    k = int(told[2])
    old = replayed.recorded.groups[0].candidates[k].sample
    new = replayed.episode.groups[0].candidates[k].sample
    place = re.match(
        r"(?:same tokens; the logprob of )?token (\d+) is|same tokens; .* token (\d+) is", told[3]
    )
    assert place, words
    i = int(place[1] or place[2])
    assert old.tokens[:i] == new.tokens[:i]
    if told[3].startswith("token"):
        assert old.tokens[i] != new.tokens[i]
    else:
        assert old.logprobs[:i] == new.logprobs[:i] and old.logprobs[i] != new.logprobs[i]
    assert first_that_differs(compared(again, node)[1]) is None  # with the run's own


@pytest.mark.slow
def test_another_sibling_is_executed_and_the_episode_goes_on_from_it(folder, again):
    node = Node(3, "train", 9, 0, 0, 0, "scout")
    _, group = group_at(folder, node)
    replayed, found = compared(again, node, Change(executes=group["executed"]))
    assert all(finding.same for finding in found)
    other = (group["executed"] + 1) % 4
    replayed, found = compared(again, node, Change(executes=other))
    assert words_of(found)[0] == (
        f"turn 0, stage 0, scout: 4 of 4 candidates the same; candidate {other} is executed, "
        f"{group['executed']} is recorded"
    )
    assert replayed.episode.groups[0].chosen == other
    # What a random policy says changes no prompt. A path does: the mover sees where it ends.
    replayed, found = compared(again, node, Change(says="[R, D]"))
    assert replayed.episode.groups[0].chosen == 4
    assert words_of(found)[1].endswith("another prompt than recorded, because of what came before")


@pytest.mark.slow
def test_a_text_of_ones_own_is_executed_with_the_logprobs_that_the_policy_gives_it(folder, again):
    node = Node(3, "train", 9, 0, 1, 1, "mover")
    _, group = group_at(folder, node)
    replayed, _ = compared(again, node, Change(says="[R]"))
    (last,) = [g for g in replayed.episode.groups if g.origin.key.turn == 1 and g.origin.key.role == "mover"]
    assert last.chosen == 4 and last.candidates[4].text == "[R]"
    assert [c.text for c in last.candidates[:4]] == [c["text"] for c in group["candidates"]]
    sample = last.candidates[4].sample
    assert len(sample.logprobs) == len(sample.tokens) == 4
    # At temperature 0 the engine draws the most likely token: a text of that alone has its logprob.
    greedy, _ = compared(again, node, Change(temperature=0.0))
    (drawn,) = [g for g in greedy.episode.groups if g.origin.key == last.origin.key]
    assert len({c.sample.tokens for c in drawn.candidates}) == 1
    assert drawn.origin.sampling.temperature == 0.0
    token = again._saved.experiment.tokenizer.decode(drawn.candidates[0].sample.tokens[:1])
    assert "\ufffd" not in token  # it can be said
    told, _ = compared(again, node, Change(says=token))
    (own,) = [g for g in told.episode.groups if g.origin.key == last.origin.key]
    expected = drawn.candidates[0].sample.logprobs[0]
    np.testing.assert_allclose(own.candidates[4].sample.logprobs[0], expected, **PARITY)


@pytest.mark.slow
def test_a_replay_is_a_record_of_an_episode_that_says_what_was_changed(folder, again):
    node = Node(3, "train", 9, 0, 0, 0, "scout")
    replayed, found = compared(again, node, Change(temperature=0.0))
    record = recorded_replay(node, Change(temperature=0.0), replayed, found, again._saved.experiment)
    assert record["replay"]["node"] == "3/train/9/0/0/0/scout" and record["replay"]["temperature"] == 0.0
    assert record["replay"]["findings"] == words_of(found)
    assert record["groups"][0]["temperature"] == 0.0 and record["groups"][1]["temperature"] == 1.0


@pytest.mark.slow
def test_a_run_in_a_bucket_is_drawn_again_and_keeps_its_replays_there(folder, bucket):
    pytest.importorskip("gcsfs")
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(folder).parts[0] not in ("replays", "taught"):
            write_atomically(bucket / "run" / str(file.relative_to(folder)), file.read_bytes())
    with Again(SavedRun(str(bucket / "run"))) as there:
        assert first_that_differs(compared(there, Node(3, "train", 9))[1]) is None
        node = Node(3, "train", 9, 0, 1, 1, "mover")
        change = Change(says="[R]")
        replayed, found = compared(there, node, change)
        run = there._saved.folder
        write_replay(run, recorded_replay(node, change, replayed, found, there._saved.experiment))
    assert [record["replay"]["says"] for record in run.read_replays()] == ["[R]"]


@pytest.mark.slow
def test_a_task_that_has_changed_is_told(again, monkeypatch):
    prompt = PlanPath.prompt

    def changed(self, state, role):
        first, *rest = prompt(self, state, role)
        return [first | {"content": first["content"] + " "}, *rest]

    monkeypatch.setattr(PlanPath, "prompt", changed)
    with pytest.raises(RunError, match=r"step 3, train instance 9, .*the task shows another prompt"):
        again.play(Node(3, "train", 9))


@pytest.mark.slow
def test_what_a_step_taught_is_what_the_learner_says_before_and_after(folder):
    saved = SavedRun(str(folder))
    found = taught(saved, Teams(saved), 4)
    sampling = {role: own.sampling for role, own in saved.experiment.by_role.items()}
    items = [i for r in saved.folder.read_episodes(4) for i in credited_of(r, sampling)]
    assert {key for key, _ in found} == {item.group.origin.key for item in items}
    before = logprobs(saved, Teams(saved).after(3), items)
    after = logprobs(saved, saved.team(4), items)
    moved = 0.0
    pushed = 0
    for item in items:
        for k, candidate in enumerate(item.group.candidates):
            place = item.group.origin.key, k
            np.testing.assert_allclose(before[place], candidate.sample.logprobs, **PARITY)
            np.testing.assert_array_equal(found[place].after, after[place])
            if item.mask_K[k]:
                pushed += 1
                assert (np.sign(found[place].weight) == np.sign(item.advantages_K[k])).all()
                moved += item.advantages_K[k] * (after[place] - before[place]).sum()
            else:
                assert not found[place].weight.any()
    assert pushed and moved > 0  # the step made what was better more likely


def test_effective_weights_are_weight_times_advantage_where_nothing_is_clipped():
    ours = learner()
    groups = made_items()
    batch = packed(groups)
    state = ours.init(jax.random.key(0))
    old = batch.trained._replace(old_logprobs=own_logprobs(state.params, batch))
    batch = batch._replace(trained=old)
    found = ours.effective_weights(state.params, UpdateInputs(batch))
    np.testing.assert_allclose(found, batch.trained.weights * batch.trained.advantages, **PARITY)
    clipped = batch._replace(trained=old._replace(old_logprobs=old.old_logprobs - 1.0))  # at ratio e
    found = ours.effective_weights(state.params, UpdateInputs(clipped))
    assert not found[old.advantages > 0].any() and found[(old.advantages < 0) & (old.weights > 0)].all()


def test_another_text_of_a_partner_is_told():
    """Its tokens are not known."""
    key = GroupKey(3, "train", 0, 0, 1, "checker")
    origin = Origin(key, (1, 2), "state", "", -1, Sampling())

    def said(text):
        sample = Sample((), (), "stop", -1)
        return Group((Candidate(origin, sample, text, Outcome.OK, Reward.of(0.0)),), 0)

    assert _candidate(said("12").candidates[0], said("12").candidates[0], CharTokenizer()) == ""
    found = _candidate(said("12").candidates[0], said("no idea").candidates[0], CharTokenizer())
    assert found == "the text is 'no idea', '12' is recorded"


def test_a_group_that_the_engine_failed_to_draw_is_as_recorded():
    key = GroupKey(3, "train", 0, 0, 1, "mover")
    lost = Candidate(Origin(key, (1,), "s", "shared", -1, Sampling()), Sample((), (), "error", -1), "",
                     Outcome.ENGINE_ERROR, None)  # fmt: skip
    assert _recorded(Group((lost, lost), None), key, (1,), 2) == [lost.sample] * 2
    drawn = dataclasses.replace(lost, origin=dataclasses.replace(lost.origin, version=1))
    with pytest.raises(RunError, match="drawn by version 1 of the weights"):
        _recorded(Group((drawn,), 0), key, (1,), 2)


def test_records_become_the_values_that_they_were_written_of(tmp_path):
    made, _ = player({(t, r): ["1", "2", "x"] for t in range(2) for r in "ab"}, Sum())
    episode = asyncio.run(made.play(1, "train", 0))
    alpha = {"a": 1.0, "b": 1.0}
    credited, _, _ = credit([episode], alpha=alpha, rule=CreditConfig("group", "std"))
    run = RunFolder(tmp_path / "run")
    run.write_episodes(1, episodes.written(1, [episode], credited, CharTokenizer(), alpha))
    (record,) = run.read_episodes(1)
    sampling = {role: episode.groups[0].origin.sampling for role in "ab"}
    assert _without_receipts(episode_of(record, sampling)) == _without_receipts(episode)
    for ours, theirs in zip(credited_of(record, sampling), credited, strict=True):
        np.testing.assert_array_equal(ours.advantages_K, theirs.advantages_K)
        np.testing.assert_array_equal(ours.mask_K, theirs.mask_K)
        assert ours.advantages_K.dtype == np.float32


def test_what_a_change_cannot_be_is_told_by_the_record_alone(tmp_path):
    """Nothing is there but the files of episodes: no config, no weights."""
    run = RunFolder(tmp_path / "run")
    alpha = {"a": 1.0, "b": 1.0}

    def write(step, split, script, instance):
        made, _ = player(script, Sum())
        episode = asyncio.run(made.play(step, split, instance))
        run.write_episodes(step, episodes.written(step, [episode], (), CharTokenizer(), alpha), split)

    write(1, "test", {(t, r): ["1"] for t in range(2) for r in "ab"}, 3)
    first = "0/0/0/a"
    evaluated = Node.parse(f"1/test/3/{first}")
    with pytest.raises(ConfigError, match=r"draw one candidate; take .* train step; this run keeps none yet"):
        fitting(run, evaluated, Change(executes=1))
    for step in (1, 2):
        write(step, "train", {(t, r): ["1", "2", "x"] for t in range(2) for r in "ab"}, 4 + step)
    assert run.kept_episodes() == [(1, "test"), (1, "train"), (2, "train")]
    with pytest.raises(ConfigError) as raised:
        fitting(run, evaluated, Change(executes=1))
    assert str(raised.value) == (
        "there is no candidate 1: evaluations draw one candidate; take a node of a train step, "
        f"e.g. --node=2/train/6/{first}"
    )
    trained = Node.parse(f"2/train/6/{first}")
    with pytest.raises(ConfigError, match="^there is no candidate 3: the group has 0 to 2$"):
        fitting(run, trained, Change(executes=3))
    record, under = fitting(run, trained, Change(executes=2))
    assert record["instance"] == 6 and [group["role"] for group in under] == ["a"]
    assert fitting(run, evaluated, Change(says="x"))[1][0]["role"] == "a"


def _without_receipts(episode):
    return re.sub(r"receipt='\w*'", "", repr(episode))


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("12/train/352", Node(12, "train", 352)),
        ("0/test/3/1/0/2/judge1/7", Node(0, "test", 3, 1, 0, 2, "judge1", 7)),
        ("3/train/9/0/1", Node(3, "train", 9, 0, 1)),
    ],
)
def test_the_name_of_a_node(name, node):
    assert Node.parse(name) == node and str(node) == name


@pytest.mark.parametrize(
    "name", ["", "12", "12/train", "x/train/1", "1/train/1/0/0/0/a/b", "1/train/1/0/0/0/a/1/2"]
)
def test_what_is_no_name_of_a_node(name):
    with pytest.raises(ConfigError, match=re.escape(f"{name!r} is no node; expected STEP/SPLIT/INSTANCE")):
        Node.parse(name)


def test_a_candidate_that_is_forced_is_executed_whatever_it_earned():
    script = {(t, r): ["1", "2", "3"] for t in range(2) for r in "ab"}
    made, _ = player(script, Sum())
    free = asyncio.run(made.play(1, "train", 0))
    key = free.groups[0].origin.key
    worst = min(range(3), key=lambda k: free.groups[0].candidates[k].reward.mixed(1.0))
    forced, _ = player(script, Sum(), forced={key: worst})
    assert free.groups[0].chosen != worst
    assert asyncio.run(forced.play(1, "train", 0)).groups[0].chosen == worst


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"--run_dir is missing"),
        (["--run_dir={run}"], r"say what to draw again: --node, --random, or --taught"),
        (["--run_dir={run}", "--node=3/train/9", "--execute=1"], r"3/train/9 holds 4 groups; name one"),
        (
            ["--run_dir={run}", "--node=3/train/9/0/0/0/scout", "--execute=9"],
            r"there is no candidate 9: .* 0 to 3",
        ),
        (
            ["--run_dir={run}", "--node=0/test/1/0/0/0/scout", "--execute=1"],
            r"there is no candidate 1: evaluations draw one .* e\.g\. --node=5/train/\d+/0/0/0/scout",
        ),
        (["--run_dir={run}", "--node=3/train/900"], r"\S+ keeps nothing at 3/train/900"),
        (["--run_dir={run}", "--node=7/train/9"], r"\S+step_000007.jsonl.gz is not there"),
        (["--run_dir={run}", "--taught=0"], r"--taught=0: expected numbers of training steps"),
        (["--run_dir={run}", "--say=x"], r"--temperature, --execute and --say need a --node"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, words, says):
    ran = replay(*(word.format(run=folder) for word in words))
    assert ran.returncode in (1, 2) and not ran.stdout
    assert re.match(f"error: {says}", ran.stderr.splitlines()[-1]), ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["--gin_file=parts/lora.gin", "--gin_param=objectives.LossConfig.kl = 0.1"],
        [
            "--gin_param=rollout.RolloutConfig.mode = 'trajectories'",
            "--gin_param=experiment.Experiment.credit = @groups.CreditConfig()",
            "--gin_param=groups.CreditConfig.baseline = 'instance'",
        ],
    ],
    ids=["lora with a reference", "trajectories"],
)
def test_other_teams_are_drawn_to_the_same_bytes(tmp_path, extra):
    started = process(tmp_path / "out.txt", *arguments(tmp_path), *extra, env=DEVICES)
    assert ended([started]) == [0], (tmp_path / "out.txt").read_text()[-2000:]
    with Again(SavedRun(str(tmp_path / "run"))) as again:
        for step in (3, STEPS):  # after steps that lie between checkpoints, and right after one
            instance = next(again._saved.folder.read_episodes(step))["instance"]
            _, found = compared(again, Node(step, "train", instance))
            assert first_that_differs(found) is None


@pytest.mark.slow
def test_what_a_step_taught_is_written_beside_its_episodes(folder):
    ran = replay(f"--run_dir={folder}", "--taught=5")
    assert ran.returncode == 0, ran.stderr
    run = RunFolder(folder)
    lines = [json.loads(line) for line in gzip.decompress(run.taught_by(5).read_bytes()).splitlines()]
    count = sum(len(g["candidates"]) for r in run.read_episodes(5) for g in r["groups"])
    assert len(lines) == count and {line["speaker"] for line in lines} == {"scout", "mover"}
    assert all(len(line["after"]) == len(line["weight"]) for line in lines)
    (instance, *_) = sorted({line["instance"] for line in lines})
    drawn = tree(folder, 5, instance)
    first, *_ = drawn.data["groups"]
    for candidate, line in zip(first["candidates"], lines, strict=False):
        np.testing.assert_allclose(candidate["taught"]["after"], line["after"], atol=1e-5)
        np.testing.assert_allclose(candidate["taught"]["weight"], line["weight"], rtol=1e-4)


@pytest.mark.slow
def test_a_replay_with_a_change_is_printed_kept_and_shown(folder, tmp_path):
    ran = replay(f"--run_dir={folder}", "--node=3/train/9/0/1/1/mover", "--say=[R]")
    assert ran.returncode == 0, ran.stderr
    assert "-- candidate 4, executed: ok" in ran.stdout and ran.stdout.rstrip().endswith("0001.jsonl.gz")
    (record,) = RunFolder(folder).read_replays()
    assert record["replay"]["says"] == "[R]" and record["replay"]["node"] == "3/train/9/0/1/1/mover"
    names = write_page(RunFolder(folder), tmp_path / "page.html")
    assert "replay-3" in names
